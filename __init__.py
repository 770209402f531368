"""Language models on integer spike trains: event-driven, by additions only, exactly.

Activations become spike counts (`neuro`), counts become spike trains (`coding`), layers run on the spikes
(`backends`, `models`), a recording of the run becomes energy (`energy`) and figures (`analysis`).
"""

from .coding import (
    AEREvents,
    BidirectionalBitwise,
    Binary,
    Bitwise,
    ChannelEvents,
    Encoder,
    PackedTrain,
    SignedDigit,
    SpikeTrain,
    Ternary,
    TwosComplement,
    decode,
    pack_activations,
)
from .errors import SpikebrainError
from .models import Policy, SpikeLinear, SpikingBrainConfig, SpikingBrainForCausalLM, dequantize, save, to_spiking
from .models.io import load
from .models.layers import convert
from .models.recording import record
from .neuro import AdaptiveThreshold, IntegrateAndFire, LeakyIntegrateAndFire, SpikeCount
from .version import __version__

__all__ = [
    "AEREvents",
    "AdaptiveThreshold",
    "BidirectionalBitwise",
    "Binary",
    "Bitwise",
    "ChannelEvents",
    "Encoder",
    "IntegrateAndFire",
    "LeakyIntegrateAndFire",
    "PackedTrain",
    "Policy",
    "SignedDigit",
    "SpikeCount",
    "SpikeLinear",
    "SpikeTrain",
    "SpikebrainError",
    "SpikingBrainConfig",
    "SpikingBrainForCausalLM",
    "Ternary",
    "TwosComplement",
    "__version__",
    "convert",
    "decode",
    "dequantize",
    "load",
    "pack_activations",
    "record",
    "save",
    "to_spiking",
]
