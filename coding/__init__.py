"""Codes: integer spike counts become spike trains, and back."""

from .base import ENCODERS, Encoder, decode
from .binary import Binary
from .bitwise import BidirectionalBitwise, Bitwise, TwosComplement
from .events import AEREvent, AEREvents
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
    "Encoder",
    "SignedDigit",
    "SpikeTrain",
    "Ternary",
    "TwosComplement",
    "decode",
]
