"""Which backend is fastest for a call."""

from __future__ import annotations

import torch

from .base import Backend
from .cpu import Cpu
from .gpu import Triton
from .reference import Reference

# Tokens from which multiplying collapsed counts is faster than adding events; measured, see docs/results.md.
# A CPU adds events of several tokens fast as long as the weights stay in its caches.
_CPU_COUNT_FROM, _CPU_LARGE_COUNT_FROM, _GPU_COUNT_FROM = 32, 8, 2
_CACHED_WEIGHTS = 4 * 2**20


def auto(
    device: torch.device, num_tokens: int, num_weights: int, *, events_only: bool = False, in_groups: bool = False
) -> Backend:
    """Return the fastest backend for that many tokens on that device.

    Args:
        device: of the activations.
        num_tokens: of one call.
        num_weights: of the layer, in_features * out_features.
        events_only: the work must be event-driven, because somebody records what spikes do.
        in_groups: groups of input channels have scales of their own, so that a CPU would multiply group by group.
    """
    if device.type == "cpu":
        count_from = _CPU_COUNT_FROM if num_weights <= _CACHED_WEIGHTS else _CPU_LARGE_COUNT_FROM
        return _CPU["spike" if events_only or in_groups or num_tokens < count_from else "count"]
    backend = _GPU["spike" if events_only or num_tokens < _GPU_COUNT_FROM else "count"]
    return backend if backend.why_unavailable(device) is None else Reference()


_CPU = {"spike": Cpu("spike"), "count": Cpu("count")}
_GPU = {"spike": Triton("spike"), "count": Triton("count")}
