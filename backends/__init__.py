"""Backends: spike train times INT8 weight gives exact integer sums."""

import torch

from .base import BACKENDS, Backend
from .cpu import Cpu
from .reference import Reference
from .triton import Triton

__all__ = ["BACKENDS", "Backend", "Cpu", "Reference", "Triton", "auto"]


# Tokens from which multiplying collapsed counts is faster than adding events; measured, see docs/results.md.
_CPU_COUNT_FROM, _GPU_COUNT_FROM = 32, 2


def auto(device: torch.device, num_tokens: int, *, events_only: bool = False) -> Backend:
    """Return the fastest backend for that many tokens on that device.

    Args:
        device: of the activations.
        num_tokens: of one call.
        events_only: the work must be event-driven, because somebody records what spikes do.
    """
    if device.type == "cpu":
        return _CPU["spike" if events_only or num_tokens < _CPU_COUNT_FROM else "count"]
    backend = _GPU["spike" if events_only or num_tokens < _GPU_COUNT_FROM else "count"]
    return backend if backend.why_unavailable(device) is None else Reference()


_CPU = {"spike": Cpu("spike"), "count": Cpu("count")}
_GPU = {"spike": Triton("spike"), "count": Triton("count")}
