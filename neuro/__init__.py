"""Neurons: activations become integer spike counts."""

from .adaptive_threshold import AdaptiveThreshold
from .band import Band, without_band
from .base import NEURONS, NO_RULE, CountBounds, CountTable, KernelRule, MembraneState, Neuron
from .checks import checking_plugins
from .dead_zone import DeadZoneThreshold
from .integrate_and_fire import IntegrateAndFire, LeakyIntegrateAndFire
from .largest_magnitude import LargestMagnitude
from .rate_distortion import RateDistortionThreshold
from .spike_count import LARGEST_COUNT, SpikeCount

__all__ = [
    "LARGEST_COUNT",
    "NEURONS",
    "NO_RULE",
    "AdaptiveThreshold",
    "Band",
    "CountBounds",
    "CountTable",
    "DeadZoneThreshold",
    "IntegrateAndFire",
    "KernelRule",
    "LargestMagnitude",
    "LeakyIntegrateAndFire",
    "MembraneState",
    "Neuron",
    "RateDistortionThreshold",
    "SpikeCount",
    "checking_plugins",
    "without_band",
]
