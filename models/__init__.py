"""Models whose linear layers run on spike trains."""

from .conversion import from_transformer, to_spiking
from .io import Loaded, load, save
from .layers import Conversion, Policy, SpikeLinear, choose_layers, convert, dequantize
from .recording import LayerRecord, Recording, record
from .spikingbrain import SpikingBrainConfig, SpikingBrainForCausalLM

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
    "from_transformer",
    "load",
    "record",
    "save",
    "to_spiking",
]
