"""Language models on integer spike trains: event-driven, by additions only, exactly.

Activations become spike counts (`neuro`), counts become spike trains (`coding`), layers run on the spikes
(`backends`, `models`), a recording of the run becomes energy (`energy`) and figures (`analysis`).
"""

from .coding import (
    AEREvents,
    BidirectionalBitwise,
    Binary,
    Bitwise,
    Encoder,
    SignedDigit,
    SpikeTrain,
    Ternary,
    TwosComplement,
    decode,
)
from .errors import SpikebrainError
from .models import Policy, SpikeLinear, convert, dequantize, load, record, save
from .neuro import AdaptiveThreshold, IntegrateAndFire, LeakyIntegrateAndFire, SpikeCount

__version__ = "0.1.0"

__all__ = [
    "AEREvents",
    "AdaptiveThreshold",
    "BidirectionalBitwise",
    "Binary",
    "Bitwise",
    "Encoder",
    "IntegrateAndFire",
    "LeakyIntegrateAndFire",
    "Policy",
    "SignedDigit",
    "SpikeCount",
    "SpikeLinear",
    "SpikeTrain",
    "SpikebrainError",
    "Ternary",
    "TwosComplement",
    "convert",
    "decode",
    "dequantize",
    "load",
    "record",
    "save",
]
