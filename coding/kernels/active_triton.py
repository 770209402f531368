"""Kernels that list the active channels of packed trains on a CUDA GPU (Triton); arguments as in `active_numba`.

Import it through `active_kernels_for`: TRITON_INTERPRET=1 must be set before the first import to have any effect.
"""

# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportOperatorIssue=false
# pyright: reportCallIssue=false, reportPossiblyUnboundVariable=false
# Triton turns the arguments of a launch into the types of the kernel's parameters.

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

# Words of a row that are read at a time to find the channels that fired.
_READ = 32


def count_active(fired: Tensor, num_active: Tensor) -> None:
    """Fill num_active, int64 [tokens], with the channels of each token that fired at all."""
    num_timesteps, num_tokens, num_words = fired.shape
    _count_active[(num_tokens,)](fired, num_active, num_timesteps, num_tokens * num_words, num_words, WORDS=_READ)


def list_active(
    fired: Tensor, negative: Tensor, timestep_weight: Tensor, first: Tensor, channel: Tensor, count: Tensor
) -> None:
    """Fill the columns of `ChannelEvents`."""
    num_timesteps, num_tokens, num_words = fired.shape
    weight = timestep_weight.to(count.dtype)
    planes = (fired, negative, weight, num_timesteps, num_tokens * num_words, num_words)
    _list_active[(num_tokens,)](*planes, first, channel, count, SIGN_PLANES=min(len(negative), 2), WORDS=_READ)


@triton.jit
def _active(fired, at, stored, num_timesteps, plane):
    """Return the union over time of words."""
    union = tl.zeros(at.shape, tl.int32)
    for _ in range(num_timesteps):
        union |= tl.load(fired + at, mask=stored, other=0)
        at += plane
    return union


@triton.jit
def _count_active(fired, num_active, num_timesteps, plane, num_words, WORDS: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    found = tl.zeros((WORDS,), tl.int32)
    for start in range(0, num_words, WORDS):
        words = start + tl.arange(0, WORDS)
        union = _active(fired, token * num_words + words, words < num_words, num_timesteps, plane)
        found += tl.sum((union[:, None] >> tl.arange(0, 32)[None, :]) & 1, axis=1)
    tl.store(num_active + token, tl.sum(found, axis=0).to(tl.int64))


@triton.jit
def _list_active(
    fired,
    negative,
    weight,
    num_timesteps,
    plane,
    num_words,
    first,
    channel,
    count,
    SIGN_PLANES: tl.constexpr,  # 2 stands for T
    WORDS: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    event = tl.load(first + token)
    lanes = tl.arange(0, WORDS * 32)
    for start in range(0, num_words, WORDS):
        words = start + lanes // 32
        stored = words < num_words
        at = token * num_words + words
        active = (_active(fired, at, stored, num_timesteps, plane) >> (lanes % 32)) & 1
        total = tl.zeros((WORDS * 32,), count.dtype.element_ty)
        sign_at = at
        for t in range(num_timesteps):
            plus = tl.load(fired + at, mask=stored, other=0)
            spikes = (plus >> (lanes % 32)) & 1
            at += plane
            if SIGN_PLANES > 0:
                minus = plus & tl.load(negative + sign_at, mask=stored, other=0)
                spikes -= 2 * ((minus >> (lanes % 32)) & 1)
                if SIGN_PLANES == 2:
                    sign_at = at
            total += spikes * tl.load(weight + t)
        place = event + tl.cumsum(active, axis=0) - 1
        tl.store(channel + place, start * 32 + lanes, mask=active == 1)
        tl.store(count + place, total, mask=active == 1)
        event += tl.sum(active, axis=0)
