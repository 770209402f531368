"""Spiking layers, and how linear layers become them."""

from .convert import Conversion, Policy, choose_layers, convert, dequantize
from .spike_aware import SpikeAwareLinear, spike_aware
from .spike_linear import SpikeLinear

__all__ = [
    "Conversion",
    "Policy",
    "SpikeAwareLinear",
    "SpikeLinear",
    "choose_layers",
    "convert",
    "dequantize",
    "spike_aware",
]
