"""Models whose linear layers run on spike trains."""

from .checkpoint import save
from .convert import Conversion, Policy, choose_layers, convert, dequantize
from .load import Loaded, load
from .record import LayerRecord, Recording, record
from .spike_linear import SpikeLinear
from .spikingbrain import SpikingBrainConfig, SpikingBrainForCausalLM, to_spiking

__all__ = [
    "Conversion",
    "LayerRecord",
    "Loaded",
    "Policy",
    "Recording",
    "SpikeLinear",
    "SpikingBrainConfig",
    "SpikingBrainForCausalLM",
    "choose_layers",
    "convert",
    "dequantize",
    "load",
    "record",
    "save",
    "to_spiking",
]
