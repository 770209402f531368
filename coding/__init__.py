"""Codes: integer spike counts become spike trains, and back."""

from .activations import pack_activations
from .base import ENCODERS, Encoder, decode
from .binary import Binary
from .bitwise import BidirectionalBitwise, Bitwise, TwosComplement
from .channel_events import ChannelEvents
from .delta import Delta
from .events import AEREvent, AEREvents
from .latency import Latency
from .packed import PackedTrain
from .poisson import Poisson
from .signed_digit import SignedDigit
from .ternary import Ternary
from .train import SpikeTrain
from .weighted_phase import WeightedPhase

__all__ = [
    "ENCODERS",
    "AEREvent",
    "AEREvents",
    "BidirectionalBitwise",
    "Binary",
    "Bitwise",
    "ChannelEvents",
    "Delta",
    "Encoder",
    "Latency",
    "PackedTrain",
    "Poisson",
    "SignedDigit",
    "SpikeTrain",
    "Ternary",
    "TwosComplement",
    "WeightedPhase",
    "decode",
    "pack_activations",
]
