"""Spiking layers, the settings that say which layers spike and how, and the swap of linear layers."""

from . import ops
from .choose import check_matches, choose_layers, patterns_of
from .graded_linear import GradedLinear
from .guards import guard
from .settings import SETTINGS, SpikeSettings, neuron_with_k
from .spike_aware import SpikeAware, SpikeAwareLinear, spike_aware
from .spike_linear import SpikeLinear, spiking_layers
from .split_linear import SplitSpikeLinear, split_spiking
from .swap import Conversion, swap_linears, to_dense

__all__ = [
    "SETTINGS",
    "Conversion",
    "GradedLinear",
    "SpikeAware",
    "SpikeAwareLinear",
    "SpikeLinear",
    "SpikeSettings",
    "SplitSpikeLinear",
    "check_matches",
    "choose_layers",
    "guard",
    "neuron_with_k",
    "ops",
    "patterns_of",
    "spike_aware",
    "spiking_layers",
    "split_spiking",
    "swap_linears",
    "to_dense",
]
