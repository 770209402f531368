"""Neurons: activations become integer spike counts."""

from .adaptive_threshold import AdaptiveThreshold
from .base import NEURONS, NO_RULE, CountBounds, KernelRule, MembraneState, Neuron
from .checks import checking_plugins
from .integrate_and_fire import IntegrateAndFire, LeakyIntegrateAndFire
from .spike_count import LARGEST_COUNT, SpikeCount

__all__ = [
    "LARGEST_COUNT",
    "NEURONS",
    "NO_RULE",
    "AdaptiveThreshold",
    "CountBounds",
    "IntegrateAndFire",
    "KernelRule",
    "LeakyIntegrateAndFire",
    "MembraneState",
    "Neuron",
    "SpikeCount",
    "checking_plugins",
]
