"""Kernels that pack and compact trains on a CUDA GPU (Triton); the functions of `pack_cpu`, which see for arguments.

Import it through `kernels_for`: TRITON_INTERPRET=1 must be set before the first import to have any effect.
"""

# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportOperatorIssue=false
# pyright: reportCallIssue=false, reportPossiblyUnboundVariable=false
# Triton turns the arguments of a launch into the types of the kernel's parameters.

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...neuro import AdaptiveThreshold
from ..unrolling import Unrolling

# Most words that one program takes at a time: 128 words are 4096 channels. Each of its warps takes 32.
_WORDS = 128
# Planes that are taken from a count together: a byte holds as many, and the sign.
_PLANES = 7
# Words of a row that are read at a time to find the channels that fired.
_READ = 32


def pack_counts(count: Tensor, unrolling: Unrolling, fired: Tensor, negative: Tensor) -> tuple[int, int]:
    """Fill a packed train and return the smallest and largest of the counts and 0, which fits every code."""
    blocks = -(-fired.shape[-1] // _words(count.shape[1]))
    extremes = torch.empty(len(count), blocks, 2, dtype=count.dtype, device=count.device)
    _launch(count, extremes, unrolling, fired, negative, of_counts=True)
    low, high = _range(extremes)
    return int(low), int(high)


def pack_activations(x: Tensor, threshold: Tensor, unrolling: Unrolling, fired: Tensor, negative: Tensor) -> None:
    """Fill a packed train with round(x / threshold), half to even."""
    _launch(x, threshold, unrolling, fired, negative, of_counts=False)


def measure(x: Tensor, neuron: AdaptiveThreshold, threshold: Tensor) -> tuple[float, float]:
    """Fill the thresholds of a neuron; return the smallest and largest x / threshold."""
    extremes = torch.empty(len(x), 2, dtype=torch.float32, device=x.device)
    words = _words(x.shape[1])
    _measure[(len(x),)](x, threshold, extremes, x.shape[1], *_settings(neuron), WORDS=words, num_warps=words // 32)
    return _range(extremes)


def measure_and_pack(
    x: Tensor, neuron: AdaptiveThreshold, threshold: Tensor, unrolling: Unrolling, fired: Tensor, negative: Tensor
) -> tuple[float, float]:
    """Do `measure` and `pack_activations` in one launch; if the range returned does not fit, nothing is valid.

    Row by row: a row is still in a cache when it is packed.
    """
    extremes = torch.empty(len(x), 2, dtype=torch.float32, device=x.device)
    words = _words(x.shape[1])
    _measure_and_pack[(len(x),)](
        x,
        threshold,
        extremes,
        fired,
        negative,
        fired[0].numel(),
        x.shape[1],
        *_settings(neuron),
        *_planes(unrolling),
        **_code(unrolling),
        WORDS=words,
        num_warps=words // 32,
        # More rows at a time: one is read while another is packed. Wide patterns would not fit.
        maxnreg=None if unrolling.dtype == torch.int64 else 64,
    )
    return _range(extremes)


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


def _launch(
    source: Tensor, other: Tensor, unrolling: Unrolling, fired: Tensor, negative: Tensor, *, of_counts: bool
) -> None:
    num_tokens, num_words = fired.shape[1:]
    words = _words(source.shape[1])
    _pack[(num_tokens, -(-num_words // words))](
        source,
        other,
        fired,
        negative,
        num_tokens * num_words,
        source.shape[1],
        *_planes(unrolling),
        **_code(unrolling),
        OF_COUNTS=of_counts,
        WORDS=words,
        num_warps=words // 32,
    )


def _range(extremes: Tensor) -> tuple[float, float]:
    """Return the smallest and largest number, on the host; both are NaN if one of them is."""
    found = torch.empty(2, dtype=extremes.dtype, device=extremes.device)
    torch.aminmax(extremes, out=(found[0], found[1]))
    low, high = found.tolist()
    return low, high


def _settings(neuron: AdaptiveThreshold) -> tuple[float, float, float]:
    return float(neuron.k), float(neuron.floor), float(neuron.ceiling)


def _words(num_channels: int) -> int:
    """Return how many words of a row a program takes at a time."""
    return 32 if num_channels <= 1024 else 64 if num_channels <= 2048 else _WORDS


def _planes(unrolling: Unrolling) -> tuple[int, int, int]:
    """Return T, how many bytes hold the planes of a count, and the zero point."""
    return unrolling.num_timesteps, -(-unrolling.num_timesteps // _PLANES), unrolling.zero_point


@functools.lru_cache(maxsize=64)
def _code(unrolling: Unrolling) -> dict[str, int | bool]:
    num_timesteps, num_bytes, _ = _planes(unrolling)
    return {
        "RATE": unrolling.rate,
        "SIGN_PLANES": min(unrolling.sign_planes, 2),
        "WIDE": unrolling.dtype == torch.int64,
        # Counts that fit round by one addition, see `_rounded`.
        "SMALL": max(-unrolling.low, unrolling.high) < 2**22,
        # As few as the bytes need, all of them equally full.
        "PLANES": -(-num_timesteps // num_bytes),
    }


@triton.jit
def _rounded(value, SMALL: tl.constexpr):
    """Round float32 half to even: numbers below 2^31, or, if SMALL, below 2^22 (others become any number)."""
    if SMALL:
        # 1.5 * 2^23 has no places after the point, and the count in its last bits.
        return (value + 12582912.0).to(tl.int32, bitcast=True) - 0x4B400000
    else:
        # What is cut off is exact, so no case is special.
        whole = value.to(tl.int32)
        rest = value - whole.to(tl.float32)
        away = (tl.abs(rest) > 0.5) | ((tl.abs(rest) == 0.5) & ((whole & 1) == 1))
        return whole + tl.where(away, tl.where(value > 0, 1, -1), 0)


@triton.jit
def _fours(byte, WORDS: tl.constexpr):
    """Put bytes, int32 [words, 32], side by side: int32 [words, 8]."""
    side_by_side = byte << (8 * (tl.arange(0, 32) % 4))[None, :]
    # No bit occurs twice, so that the sum is the union; it may wrap.
    return tl.sum(side_by_side.reshape((WORDS, 8, 4)), axis=2)


@triton.jit
def _plane(four, b: tl.constexpr):
    """Return bit b of all bytes in words [words], the one of channel j at place j."""
    # One product moves four bits from places 0, 8, 16 and 24 to places 24, 25, 26 and 27.
    nibble = ((((four >> b) & 0x01010101) * 0x01020408) >> 24) & 15
    return tl.sum(nibble << (4 * tl.arange(0, 8))[None, :], axis=1)


@triton.jit
def _byte(pattern, first, RATE: tl.constexpr, PLANES: tl.constexpr):
    """Return planes first ... first + PLANES - 1 of patterns as the low bits of an int32, last timestep first."""
    if RATE:
        # The timesteps that fire are the first ones: the bits from T - pattern on, which is what comes in here.
        return (-1 << tl.minimum(tl.maximum(pattern - first, 0), PLANES).to(tl.int32)) & ((1 << PLANES) - 1)
    else:
        return (pattern >> first).to(tl.int32) & ((1 << PLANES) - 1)


@triton.jit
def _store_train(
    count,  # [words, 32], 0 beyond the last channel
    words,
    fired,
    negative,
    at,  # place of the words in the first plane
    plane,  # words from one timestep to the next
    num_channels,
    num_timesteps,
    num_bytes,
    zero_point,
    RATE: tl.constexpr,
    SIGN_PLANES: tl.constexpr,  # 2 stands for T
    WIDE: tl.constexpr,
    PLANES: tl.constexpr,
    WORDS: tl.constexpr,
):
    """Store all planes of a block of counts."""
    if WIDE:
        count = count.to(tl.int64)
    else:
        count = count.to(tl.int32)
    if SIGN_PLANES == 0:
        pattern = (count + zero_point).to(count.dtype)
    else:
        pattern = tl.abs(count)
    if SIGN_PLANES == 2:
        half = pattern >> 1
        total = pattern + half
        pattern = total ^ half
        minus = tl.where(count < 0, total, half) & pattern
    if RATE:
        pattern = num_timesteps - pattern
    left = num_channels - words * 32
    stored = left > 0
    used = tl.where(left < 32, (1 << (left & 31)) - 1, -1)
    for i in range(num_bytes):
        first = i * PLANES
        byte = _byte(pattern, first, RATE, PLANES)
        if SIGN_PLANES == 1:
            byte |= (count < 0).to(tl.int32) << 7
        four = _fours(byte, WORDS)
        if SIGN_PLANES == 1:
            tl.store(negative + at, _plane(four, 7) & used, stored & (i == 0))
        if SIGN_PLANES == 2:
            minus_four = _fours(_byte(minus, first, RATE, PLANES), WORDS)
        for b in tl.static_range(PLANES):
            t = num_timesteps - 1 - first - b
            place = at + t.to(tl.int64) * plane
            tl.store(fired + place, _plane(four, b) & used, stored & (t >= 0))
            if SIGN_PLANES == 2:
                tl.store(negative + place, _plane(minus_four, b) & used, stored & (t >= 0))


@triton.jit
def _load(source, token, words, num_channels):
    """Return a block [words, 32] of a row, 0 beyond the last channel."""
    channels = words[:, None] * 32 + tl.arange(0, 32)[None, :]
    return tl.load(source + token * num_channels + channels, mask=channels < num_channels, other=0)


@triton.jit
def _pack(
    source,  # counts, or activations
    other,  # extremes [tokens, blocks, 2] to fill, or thresholds
    fired,
    negative,
    plane,
    num_channels,
    num_timesteps,
    num_bytes,
    zero_point,
    RATE: tl.constexpr,
    SIGN_PLANES: tl.constexpr,
    WIDE: tl.constexpr,
    SMALL: tl.constexpr,
    PLANES: tl.constexpr,
    OF_COUNTS: tl.constexpr,
    WORDS: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    num_words = (num_channels + 31) // 32
    words = block * WORDS + tl.arange(0, WORDS)
    value = _load(source, token, words, num_channels)
    if OF_COUNTS:
        count = value
        extreme = other + 2 * (token * tl.num_programs(1) + block)
        tl.store(extreme, tl.min(count))
        tl.store(extreme + 1, tl.max(count))
    else:
        count = _rounded(tl.div_rn(value.to(tl.float32), tl.load(other + token)), SMALL)
    _store_train(
        count,
        words,
        fired,
        negative,
        token * num_words + words,
        plane,
        num_channels,
        num_timesteps,
        num_bytes,
        zero_point,
        RATE,
        SIGN_PLANES,
        WIDE,
        PLANES,
        WORDS,
    )


@triton.jit
def _extent(value, words, num_channels):
    """Return the sum of absolute values, float64, and the smallest and largest number of a block."""
    inside = words[:, None] * 32 + tl.arange(0, 32)[None, :] < num_channels
    value = value.to(tl.float32)
    low = tl.min(tl.where(inside, value, float("inf")))
    return tl.sum(tl.abs(value).to(tl.float64)), low, tl.max(tl.where(inside, value, float("-inf")))


@triton.jit
def _measured(x, token, num_channels, k, floor, ceiling, WORDS: tl.constexpr):
    """Return the threshold of a row, and its smallest and largest number over it."""
    words = tl.arange(0, WORDS)
    total, low, high = _extent(_load(x, token, words, num_channels), words, num_channels)
    for start in range(WORDS, (num_channels + 31) // 32, WORDS):
        more = _load(x, token, start + words, num_channels)
        more_total, more_low, more_high = _extent(more, start + words, num_channels)
        total += more_total
        low = tl.minimum(low, more_low)
        high = tl.maximum(high, more_high)
    mean = (total / num_channels).to(tl.float32)
    worth = tl.minimum(tl.maximum(tl.div_rn(mean, k), floor), ceiling)
    # NaN or infinity in x makes the mean so, and the range NaN.
    nothing = mean * 0.0
    return worth, tl.div_rn(low, worth) + nothing, tl.div_rn(high, worth) + nothing


@triton.jit
def _measure(x, threshold, extremes, num_channels, k, floor, ceiling, WORDS: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    worth, low, high = _measured(x, token, num_channels, k, floor, ceiling, WORDS)
    tl.store(threshold + token, worth)
    tl.store(extremes + 2 * token, low)
    tl.store(extremes + 2 * token + 1, high)


@triton.jit
def _measure_and_pack(
    x,
    threshold,
    extremes,
    fired,
    negative,
    plane,
    num_channels,
    k,
    floor,
    ceiling,
    num_timesteps,
    num_bytes,
    zero_point,
    RATE: tl.constexpr,
    SIGN_PLANES: tl.constexpr,
    WIDE: tl.constexpr,
    SMALL: tl.constexpr,
    PLANES: tl.constexpr,
    WORDS: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    num_words = (num_channels + 31) // 32
    worth, low, high = _measured(x, token, num_channels, k, floor, ceiling, WORDS)
    tl.store(threshold + token, worth)
    tl.store(extremes + 2 * token, low)
    tl.store(extremes + 2 * token + 1, high)
    for start in range(0, num_words, WORDS):
        words = start + tl.arange(0, WORDS)
        value = _load(x, token, words, num_channels)
        _store_train(
            _rounded(tl.div_rn(value.to(tl.float32), worth), SMALL),
            words,
            fired,
            negative,
            token * num_words + words,
            plane,
            num_channels,
            num_timesteps,
            num_bytes,
            zero_point,
            RATE,
            SIGN_PLANES,
            WIDE,
            PLANES,
            WORDS,
        )


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
