"""Neurons: activations become integer spike counts."""

from .adaptive_threshold import AdaptiveThreshold
from .base import NEURONS, MembraneState, Neuron
from .integrate_and_fire import IntegrateAndFire, LeakyIntegrateAndFire
from .spike_count import SpikeCount

__all__ = [
    "NEURONS",
    "AdaptiveThreshold",
    "IntegrateAndFire",
    "LeakyIntegrateAndFire",
    "MembraneState",
    "Neuron",
    "SpikeCount",
]
