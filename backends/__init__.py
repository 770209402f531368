"""Backends: spike train times INT8 weight gives exact integer sums."""

import torch

from .base import BACKENDS, Backend
from .cpu import Cpu
from .reference import Reference

__all__ = ["BACKENDS", "Backend", "Cpu", "Reference", "auto"]


# Tokens from which multiplying collapsed counts is faster than adding events, on a CPU; measured, see DESIGN.md.
_COUNT_FROM = 32
_FEW, _MANY = Cpu("spike"), Cpu("count")


def auto(device: torch.device, num_tokens: int, *, events_only: bool = False) -> Backend:
    """Return the fastest backend for that many tokens on that device.

    Args:
        device: of the activations.
        num_tokens: of one call.
        events_only: the work must be event-driven, because somebody records what spikes do.
    """
    if device.type != "cpu":
        return Reference()
    return _MANY if num_tokens >= _COUNT_FROM and not events_only else _FEW
