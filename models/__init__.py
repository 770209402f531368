"""Models whose linear layers run on spike trains."""

from .checkpoint import save
from .convert import Conversion, Policy, convert, dequantize
from .load import Loaded, load
from .record import LayerRecord, Recording, record
from .spike_linear import SpikeLinear

__all__ = [
    "Conversion",
    "LayerRecord",
    "Loaded",
    "Policy",
    "Recording",
    "SpikeLinear",
    "convert",
    "dequantize",
    "load",
    "record",
    "save",
]
