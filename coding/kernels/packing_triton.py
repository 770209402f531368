"""Kernels that pack trains on a CUDA GPU (Triton); the functions and arguments of `packing_numba`.

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

from ...neuro import NO_RULE, KernelRule
from ...neuro.threshold_triton import block_statistic, count_of, heard, merged, threshold_of
from ..unrolling import Unrolling

# Most words that one program takes at a time: 128 words are 4096 channels. Each of its warps takes 32.
_WORDS = 128
# Planes that are taken from a count together: a byte holds as many, and the sign.
_PLANES = 7


def pack_counts(count: Tensor, unrolling: Unrolling, fired: Tensor, negative: Tensor) -> tuple[int, int]:
    """Fill a packed train and return the smallest and largest of the counts and 0, which fits every code."""
    blocks = -(-fired.shape[-1] // _words(count.shape[1]))
    extremes = torch.empty(len(count), blocks, 2, dtype=count.dtype, device=count.device)
    _launch(count, extremes, NO_RULE, unrolling, fired, negative, of_counts=True)
    low, high = _range(extremes)
    return int(low), int(high)


def pack_activations(
    x: Tensor, rule: KernelRule, threshold: Tensor, unrolling: Unrolling, fired: Tensor, negative: Tensor
) -> None:
    """Fill a packed train with the counts for thresholds that `measure` found."""
    _launch(x, threshold, rule, unrolling, fired, negative, of_counts=False)


def measure(x: Tensor, rule: KernelRule, threshold: Tensor) -> tuple[float, float]:
    """Fill the thresholds of a neuron; return the smallest and largest x / threshold, 0 if quiet."""
    extremes = torch.empty(len(x), 2, dtype=torch.float32, device=x.device)
    words = _words(x.shape[1])
    _measure[(len(x),)](
        x, threshold, extremes, x.shape[1], *rule.numbers, RULE=rule.number, WORDS=words, num_warps=words // 32
    )
    return _range(extremes)


def measure_and_pack(
    x: Tensor, rule: KernelRule, threshold: Tensor, unrolling: Unrolling, fired: Tensor, negative: Tensor
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
        *rule.numbers,
        *_planes(unrolling),
        **_code(unrolling),
        RULE=rule.number,
        WORDS=words,
        num_warps=words // 32,
        # More rows at a time: one is read while another is packed. Wide patterns would not fit.
        maxnreg=None if unrolling.dtype == torch.int64 else 64,
    )
    return _range(extremes)


def _launch(
    source: Tensor,
    other: Tensor,
    rule: KernelRule,
    unrolling: Unrolling,
    fired: Tensor,
    negative: Tensor,
    *,
    of_counts: bool,
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
        rule.quiet,
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
        # Counts that fit round by one addition, see `count_of`.
        "SMALL": max(-unrolling.low, unrolling.high) < 2**22,
        # As few as the bytes need, all of them equally full.
        "PLANES": -(-num_timesteps // num_bytes),
    }


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
    quiet,
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
        count = count_of(value, tl.load(other + token), quiet, SMALL, FMA=False)
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
def _extent(value, words, num_channels, RULE: tl.constexpr):
    """Return the neuron's statistic, and the smallest and largest number of a block."""
    inside = words[:, None] * 32 + tl.arange(0, 32)[None, :] < num_channels
    value = value.to(tl.float32)
    low = tl.min(tl.where(inside, value, float("inf")))
    return block_statistic(value, RULE, None), low, tl.max(tl.where(inside, value, float("-inf")))


@triton.jit
def _measure_token(
    x, threshold, extremes, token, num_channels, a, b, c, quiet, RULE: tl.constexpr, WORDS: tl.constexpr
):
    """Store the threshold of a row, and its smallest and largest number divided by it, 0 if quiet; return the first."""
    words = tl.arange(0, WORDS)
    statistic, low, high = _extent(_load(x, token, words, num_channels), words, num_channels, RULE)
    for start in range(WORDS, (num_channels + 31) // 32, WORDS):
        more = _load(x, token, start + words, num_channels)
        more_statistic, more_low, more_high = _extent(more, start + words, num_channels, RULE)
        statistic = merged(statistic, more_statistic, RULE)
        low = tl.minimum(low, more_low)
        high = tl.maximum(high, more_high)
    # NaN or infinity in x makes the range NaN.
    token_threshold, _, nothing = threshold_of(statistic, num_channels, a, b, c, RULE)
    tl.store(threshold + token, token_threshold)
    tl.store(extremes + 2 * token, heard(tl.div_rn(low, token_threshold), quiet) + nothing)
    tl.store(extremes + 2 * token + 1, heard(tl.div_rn(high, token_threshold), quiet) + nothing)
    return token_threshold


@triton.jit
def _measure(x, threshold, extremes, num_channels, a, b, c, quiet, RULE: tl.constexpr, WORDS: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    _measure_token(x, threshold, extremes, token, num_channels, a, b, c, quiet, RULE, WORDS)


@triton.jit
def _measure_and_pack(
    x,
    threshold,
    extremes,
    fired,
    negative,
    plane,
    num_channels,
    a,
    b,
    c,
    quiet,
    num_timesteps,
    num_bytes,
    zero_point,
    RATE: tl.constexpr,
    SIGN_PLANES: tl.constexpr,
    WIDE: tl.constexpr,
    SMALL: tl.constexpr,
    PLANES: tl.constexpr,
    RULE: tl.constexpr,
    WORDS: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    num_words = (num_channels + 31) // 32
    token_threshold = _measure_token(x, threshold, extremes, token, num_channels, a, b, c, quiet, RULE, WORDS)
    for start in range(0, num_words, WORDS):
        words = start + tl.arange(0, WORDS)
        value = _load(x, token, words, num_channels)
        _store_train(
            count_of(value, token_threshold, quiet, SMALL, FMA=False),
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
