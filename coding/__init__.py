"""Codes: integer spike counts become spike trains, and back."""

from .activations import pack_activations
from .base import ENCODERS, Encoder, decode
from .binary import Binary
from .bitwise import BidirectionalBitwise, Bitwise, TwosComplement
from .channel_events import ChannelEvents
from .events import AEREvent, AEREvents
from .packed import PackedTrain
from .signed_digit import SignedDigit
from .ternary import Ternary
from .train import SpikeTrain

__all__ = [
    "ENCODERS",
    "AEREvent",
    "AEREvents",
    "BidirectionalBitwise",
    "Binary",
    "Bitwise",
    "ChannelEvents",
    "Encoder",
    "PackedTrain",
    "SignedDigit",
    "SpikeTrain",
    "Ternary",
    "TwosComplement",
    "decode",
    "pack_activations",
]
