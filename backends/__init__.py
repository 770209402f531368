"""Backends: spike train times INT8 weight gives exact integer sums."""

from .auto import auto
from .base import BACKENDS, Backend, ExpertWeights, Memo, ScaleUnits, WeightMemory
from .chip import Chip
from .cpu import Cpu
from .device import device_of
from .gpu import Triton
from .reference import Reference

__all__ = [
    "BACKENDS",
    "Backend",
    "Chip",
    "Cpu",
    "ExpertWeights",
    "Memo",
    "Reference",
    "ScaleUnits",
    "Triton",
    "WeightMemory",
    "auto",
    "device_of",
]
