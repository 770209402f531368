"""Kernels that pack and compact trains on a CUDA GPU (Triton); the functions of `pack_cpu`, which see for arguments.

Import it through `kernels_for`: TRITON_INTERPRET=1 must be set before the first import to have any effect.
"""

# pyright: reportArgumentType=false
# Triton turns the arguments of a launch into the types of the kernel's parameters.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..neuro import AdaptiveThreshold
from .unrolling import Unrolling

# Words that one program packs: 32 words are 1024 channels.
_WORDS = 32
# Channels that a program sums at a time.
_BLOCK = 4096


def pack_counts(count: Tensor, unrolling: Unrolling, fired: Tensor, negative: Tensor) -> tuple[int, int]:
    """Fill a packed train and return the smallest and largest count."""
    _launch(count, count, unrolling, fired, negative, of_counts=True)
    low, high = torch.stack(count.aminmax()).tolist()
    return low, high


def pack_activations(x: Tensor, threshold: Tensor, unrolling: Unrolling, fired: Tensor, negative: Tensor) -> None:
    """Fill a packed train with round(x / threshold), half to even."""
    _launch(x, threshold, unrolling, fired, negative, of_counts=False)


def measure(x: Tensor, neuron: AdaptiveThreshold, threshold: Tensor) -> tuple[float, float]:
    """Fill the thresholds of a neuron; return the smallest and largest x / threshold."""
    lows, highs = torch.empty(2, len(x), dtype=torch.float32, device=x.device)
    settings = (float(neuron.k), float(neuron.floor), float(neuron.ceiling))
    _measure[(len(x),)](x, threshold, lows, highs, x.shape[1], *settings, BLOCK=_block(x.shape[1]))
    low, high = torch.stack((lows.amin(), highs.amax())).tolist()
    return low, high


def measure_and_pack(
    x: Tensor, neuron: AdaptiveThreshold, threshold: Tensor, unrolling: Unrolling, fired: Tensor, negative: Tensor
) -> tuple[float, float]:
    """Do `measure` and `pack_activations`: x is read twice, the second time from the cache if it fits there."""
    low, high = measure(x, neuron, threshold)
    if unrolling.fits(low, high):
        pack_activations(x, threshold, unrolling, fired, negative)
    return low, high


def count_active(fired: Tensor, num_active: Tensor) -> None:
    """Fill num_active, int64 [tokens], with the channels of each token that fired at all."""
    num_timesteps, num_tokens, num_words = fired.shape
    _count_active[(num_tokens,)](fired, num_active, num_timesteps, num_tokens * num_words, num_words, WORDS=_WORDS)


def list_active(
    fired: Tensor, negative: Tensor, timestep_weight: Tensor, first: Tensor, channel: Tensor, count: Tensor
) -> None:
    """Fill the columns of `ChannelEvents`."""
    num_timesteps, num_tokens, num_words = fired.shape
    weight = timestep_weight.to(count.dtype)
    planes = (fired, negative, weight, num_timesteps, num_tokens * num_words, num_words)
    _list_active[(num_tokens,)](*planes, first, channel, count, SIGN_PLANES=min(len(negative), 2), WORDS=_WORDS)


def _launch(
    source: Tensor, threshold: Tensor, unrolling: Unrolling, fired: Tensor, negative: Tensor, *, of_counts: bool
) -> None:
    num_timesteps, num_tokens, num_words = fired.shape
    _pack[(num_tokens, triton.cdiv(num_words, _WORDS))](
        source,
        threshold,
        fired,
        negative,
        num_timesteps,
        num_tokens * num_words,
        source.shape[1],
        num_words,
        unrolling.zero_point,
        OF_COUNTS=of_counts,
        RATE=unrolling.rate,
        SIGN_PLANES=min(unrolling.sign_planes, 2),
        WIDE=unrolling.dtype == torch.int64,
        WORDS=_WORDS,
    )


def _block(num_channels: int) -> int:
    return min(_BLOCK, triton.next_power_of_2(num_channels))


@triton.jit
def _rounded(value):
    """Round float32 below 2^31 half to even. What is cut off is exact, so no case is special."""
    whole = value.to(tl.int32)
    rest = value - whole.to(tl.float32)
    away = (tl.abs(rest) > 0.5) | ((tl.abs(rest) == 0.5) & ((whole & 1) == 1))
    return whole + tl.where(away, tl.where(value > 0, 1, -1), 0)


@triton.jit
def _packed(fires):
    """Turn booleans [words, 32] into words. Each power of two occurs once at most; the last one is the sign."""
    place = tl.arange(0, 32)
    return tl.sum(tl.where(fires, (tl.full((32,), 1, tl.int32) << place)[None, :], 0), axis=1).to(tl.int32)


@triton.jit
def _fires(pattern, t, num_timesteps, RATE: tl.constexpr):
    """Return where a pattern fires at timestep t."""
    if RATE:
        return pattern > t
    else:
        return ((pattern >> (num_timesteps - 1 - t)) & 1) == 1


@triton.jit
def _pack(
    source,
    threshold,
    fired,
    negative,
    num_timesteps,
    plane,  # words from one timestep to the next
    num_channels,
    num_words,
    zero_point,
    OF_COUNTS: tl.constexpr,
    RATE: tl.constexpr,
    SIGN_PLANES: tl.constexpr,  # 2 stands for T
    WIDE: tl.constexpr,
    WORDS: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    words = tl.program_id(1) * WORDS + tl.arange(0, WORDS)
    channels = words[:, None] * 32 + tl.arange(0, 32)[None, :]
    inside = channels < num_channels
    value = tl.load(source + token * num_channels + channels, mask=inside, other=0)
    if OF_COUNTS:
        count = value
    else:
        count = _rounded(tl.div_rn(value.to(tl.float32), tl.load(threshold + token)))
    if WIDE:
        count = count.to(tl.int64)
    else:
        count = count.to(tl.int32)
    if SIGN_PLANES == 0:
        pattern = (count + zero_point).to(count.dtype)
        minus = pattern
    else:
        pattern = tl.abs(count)
        minus = tl.where(count < 0, pattern, 0)
    if SIGN_PLANES == 2:
        half = pattern >> 1
        total = pattern + half
        pattern = total ^ half
        minus = tl.where(count < 0, total, half) & pattern
    at = token * num_words + words
    if SIGN_PLANES == 1:
        tl.store(negative + at, _packed(minus > 0), words < num_words)
    for t in range(num_timesteps):
        tl.store(fired + at, _packed(inside & _fires(pattern, t, num_timesteps, RATE)), words < num_words)
        if SIGN_PLANES == 2:
            tl.store(negative + at, _packed(inside & _fires(minus, t, num_timesteps, RATE)), words < num_words)
        at += plane


@triton.jit
def _measure(x, threshold, lows, highs, num_channels, k, floor, ceiling, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    total = tl.zeros((BLOCK,), tl.float64)
    low = tl.full((BLOCK,), float("inf"), tl.float32)
    high = tl.full((BLOCK,), float("-inf"), tl.float32)
    for start in range(0, num_channels, BLOCK):
        channels = start + tl.arange(0, BLOCK)
        inside = channels < num_channels
        value = tl.load(x + token * num_channels + channels, mask=inside, other=0).to(tl.float32)
        total += tl.abs(value).to(tl.float64)
        low = tl.minimum(low, tl.where(inside, value, float("inf")))
        high = tl.maximum(high, tl.where(inside, value, float("-inf")))
    mean = (tl.sum(total, axis=0) / num_channels).to(tl.float32)
    worth = tl.minimum(tl.maximum(tl.div_rn(mean, k), floor), ceiling)
    tl.store(threshold + token, worth)
    # NaN or infinity in x makes the mean so, and the range NaN.
    nothing = mean * 0.0
    tl.store(lows + token, tl.div_rn(tl.min(low, axis=0), worth) + nothing)
    tl.store(highs + token, tl.div_rn(tl.max(high, axis=0), worth) + nothing)


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
