"""Backends: spike train times INT8 weight gives exact integer sums."""

import torch

from .base import BACKENDS, Backend
from .cpu import Cpu
from .reference import Reference
from .triton import Triton

__all__ = ["BACKENDS", "Backend", "Cpu", "Reference", "Triton", "auto"]


def auto(device: torch.device, num_tokens: int) -> Backend:
    """Return the fastest backend for that many tokens on that device."""
    return Cpu() if device.type == "cpu" else Reference()
