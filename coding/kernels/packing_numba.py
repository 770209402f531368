"""Kernels that pack trains on the CPU (numba): 32 channels at a time, read once, for all timesteps.

Whether a count fires in a timestep is one comparison (see `Unrolling`). LLVM compares 32 lanes and turns the results
into a word in a few instructions where the processor has them, and correctly on any. Tokens are divided over
`torch.get_num_threads()` threads where there is enough work for them.
"""

# pyright: reportCallIssue=false
# Compiled code calls an intrinsic without its first parameter.

from __future__ import annotations

import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from torch import Tensor

from ...compiled import compiled
from ...neuro import LARGEST_COUNT, NO_RULE, KernelRule
from ...neuro.threshold_numba import build_rounded_ratio, measure_tokens
from ..unrolling import Unrolling
from .threads import on_threads
from .vectors import cast, in_all_lanes, vector, vector_pointer

# Activations (tokens times channels) that are measured and packed while they are in a core's own cache.
_BLOCK = 2**14
_NO_RULE = NO_RULE.number


def pack_counts(count: Tensor, unrolling: Unrolling, fired: Tensor, negative: Tensor) -> tuple[int, int]:
    """Fill a packed train and return the smallest and largest count; if they do not fit, the train is invalid.

    Args:
        count: int32 or int64, [tokens, channels].
        unrolling: the code.
        fired: int32, [T, tokens, words].
        negative: int32, [S, tokens, words].
    """
    code, counts, ones = _arrays(unrolling), count.numpy(), np.ones(len(count), np.float32)
    plus, minus = fired.numpy(), negative.numpy()

    def work(first: int, last: int) -> tuple[int, int]:
        return _pack(
            counts[first:last], ones[first:last], np.float32(0), *code, plus[:, first:last], minus[:, first:last]
        )

    low, high = _range(on_threads(work, *count.shape))
    return int(low), int(high)


def measure(x: Tensor, rule: KernelRule, threshold: Tensor) -> tuple[float, float]:
    """Fill the thresholds of a neuron; return the smallest and largest x / threshold, not yet rounded, 0 if quiet.

    The two give the range of all counts. They are NaN if x is not finite.

    Args:
        x: float32, bfloat16 or float16, [tokens, channels], with one of each at least.
        rule: of the neuron.
        threshold: float32, [tokens].
    """
    (values, is_bfloat), settings, thresholds = _numbers(x), _settings(rule), threshold.numpy()

    def work(first: int, last: int) -> tuple[np.float32, np.float32]:
        return _measure_blocks(values[first:last], is_bfloat, *settings, thresholds[first:last])

    return _range(on_threads(work, *x.shape))


def pack_activations(
    x: Tensor, rule: KernelRule, threshold: Tensor, unrolling: Unrolling, fired: Tensor, negative: Tensor
) -> None:
    """Fill a packed train with the counts for thresholds that `measure` found; all fit. Arguments as above."""
    _pack_on_threads(x, NO_RULE._replace(quiet=rule.quiet), threshold, unrolling, fired, negative)


def measure_and_pack(
    x: Tensor, rule: KernelRule, threshold: Tensor, unrolling: Unrolling, fired: Tensor, negative: Tensor
) -> tuple[float, float]:
    """Do `measure` and `pack_activations` in one pass over x; if the range returned does not fit, nothing is valid."""
    return _pack_on_threads(x, rule, threshold, unrolling, fired, negative)


def _pack_on_threads(
    x: Tensor,
    rule: KernelRule,
    threshold: Tensor,
    unrolling: Unrolling,
    fired: Tensor,
    negative: Tensor,
) -> tuple[float, float]:
    """Pack, after measuring unless the rule has no number."""
    (values, is_bfloat), code, thresholds = _numbers(x), _arrays(unrolling), threshold.numpy()
    settings, plus, minus = _settings(rule), fired.numpy(), negative.numpy()

    def work(a: int, b: int) -> tuple[np.float32, np.float32]:
        planes = plus[:, a:b], minus[:, a:b]
        return _pack_blocks(values[a:b], is_bfloat, *settings, thresholds[a:b], *code, *planes)

    return _range(on_threads(work, *x.shape))


def _arrays(unrolling: Unrolling) -> tuple[np.ndarray, np.ndarray, int, int, int]:
    mask, above = unrolling.mask.numpy(), unrolling.above.numpy()
    return mask, above, unrolling.zero_point, -int(unrolling.sign_planes > 0), -int(unrolling.sign_planes > 1)


def _settings(rule: KernelRule) -> tuple[int, np.float32, np.float32, np.float32, np.float32]:
    a, b, c, quiet = map(np.float32, rule.numbers)
    return rule.number, a, b, c, quiet


def _numbers(x: Tensor) -> tuple[np.ndarray, bool]:
    """Return activations as NumPy has them, 16-bit ones as bits, and whether they are bfloat16."""
    return (x if x.dtype == torch.float32 else x.view(torch.int16)).numpy(), x.dtype == torch.bfloat16


def _range(ranges: list) -> tuple:
    """Return the smallest low and largest high of (low, high) pairs; NaN if there is one."""
    if len(ranges) == 1:
        return ranges[0]
    lows, highs = zip(*ranges, strict=True)
    return np.min(lows).item(), np.max(highs).item()


@intrinsic
def _unroll(  # pragma: no cover - compiled
    typingctx, channels, first, threshold, quiet, zero_point, signed, digits, patterns, signs, extremes
):
    """Write the patterns of 32 channels and those of their negative spikes (see `Unrolling`).

    Lane by lane in registers, in as many bits as patterns have: Numba would widen every sum to 64.

    Args:
        typingctx: Numba's.
        channels: contiguous; counts, or float32, of which counts are found.
        first: index of the first channel.
        threshold: of the token, float32.
        quiet: see `KernelRule`, float32.
        zero_point: of the code.
        signed: -1 if counts below 0 are negative spikes, else 0.
        digits: -1 for the non-adjacent form, else 0.
        patterns: 32 integers to write to.
        signs: as many of the same kind.
        extremes: [2, 32], of the kind of the channels: the smallest and largest count of each lane so far.
    """

    def generate(context, builder, signature, arguments):
        kind = context.get_value_type(patterns.dtype)
        source = vector(context.get_value_type(channels.dtype))
        count = builder.load(vector_pointer(context, builder, channels, arguments[0], source, arguments[1]))
        count.align = channels.dtype.bitwidth // 8
        if isinstance(channels.dtype, types.Integer):
            for row, beyond in enumerate("<>"):
                at = vector_pointer(context, builder, extremes, arguments[9], source, ir.IntType(64)(32 * row))
                so_far = builder.load(at)
                so_far.align = count.align
                further = builder.select(builder.icmp_signed(beyond, count, so_far), count, so_far)
                builder.store(further, at).align = count.align
        if isinstance(channels.dtype, types.Float):
            ratio = build_rounded_ratio(builder, count, *(in_all_lanes(builder, value) for value in arguments[2:4]))
            count = builder.fptosi(ratio, vector(ir.IntType(32)))
        lift, sign_mask, digit_mask = (in_all_lanes(builder, cast(builder, x, kind)) for x in arguments[4:7])
        lifted = builder.add(cast(builder, count, kind), lift)
        below = builder.icmp_signed("<", lifted, ir.Constant(lifted.type, [0] * 32))
        flip = builder.and_(builder.sext(below, lifted.type), sign_mask)
        magnitude = builder.sub(builder.xor(lifted, flip), flip)
        half = builder.and_(builder.ashr(magnitude, ir.Constant(lifted.type, [1] * 32)), digit_mask)
        total = builder.add(magnitude, half)
        pattern = builder.xor(total, half)
        minus = builder.and_(builder.select(below, total, half), pattern)
        for value, array, to in ((pattern, patterns, arguments[7]), (minus, signs, arguments[8])):
            builder.store(value, vector_pointer(context, builder, array, to, lifted.type)).align = kind.width // 8

    if channels.layout != "C":
        return None  # a type error: indices are those of contiguous numbers
    number, integer = types.float32, types.int64
    settings = (number, number, integer, integer, integer)
    return types.void(channels, integer, *settings, patterns, signs, extremes), generate


@intrinsic
def _fires(typingctx, lanes, mask, above):  # pragma: no cover - compiled
    """Return a word whose bit j is 1 where (lanes[j] & mask) > above; lanes is a contiguous array of 32 integers."""

    def generate(context, builder, signature, arguments):
        kind = vector(context.get_value_type(lanes.dtype))
        value = builder.load(vector_pointer(context, builder, lanes, arguments[0], kind))
        value.align = lanes.dtype.bitwidth // 8
        mask_vector, above_vector = (in_all_lanes(builder, scalar) for scalar in arguments[1:])
        fires = builder.icmp_signed(">", builder.and_(value, mask_vector), above_vector)
        return builder.bitcast(fires, ir.IntType(32))

    return types.int32(lanes, lanes.dtype, lanes.dtype), generate


@compiled
def _pack(  # pragma: no cover - compiled
    source, threshold, quiet, mask, above, zero_point, signed, digits, fired, negative
):
    """Pack counts, or those of float32; source: [tokens, channels], threshold: float32 [tokens], quiet: of the rule.

    Without slices: each would be counted as a reference, which takes longer than to pack a word.

    Returns:
        The smallest and the largest of counts.
    """
    patterns, signs = np.zeros(32, mask.dtype), np.zeros(32, mask.dtype)
    last, extremes = np.full(32, source[0, 0]), np.full((2, 32), source[0, 0])
    num_channels = source.shape[1]
    for token in range(fired.shape[1]):
        token_threshold = threshold[token]
        for word in range(fired.shape[2]):
            first, used = 32 * word, np.int32(-1)
            if first + 32 <= num_channels:
                at = token * num_channels + first
                _unroll(source, at, token_threshold, quiet, zero_point, signed, digits, patterns, signs, extremes)
            else:
                for j in range(num_channels - first):
                    last[j] = source[token, first + j]
                used = np.int32((1 << (num_channels - first)) - 1)
                _unroll(last, 0, token_threshold, quiet, zero_point, signed, digits, patterns, signs, extremes)
            for t in range(fired.shape[0]):
                fired[t, token, word] = _fires(patterns, mask[t], above[t]) & used
            if negative.shape[0] == 1:
                negative[0, token, word] = _fires(signs, -1, 0) & used
            else:
                for t in range(negative.shape[0]):
                    negative[t, token, word] = _fires(signs, mask[t], above[t]) & used
    return extremes[0].min(), extremes[1].max()


@intrinsic
def _float32_of(typingctx, value, is_bfloat):  # pragma: no cover - compiled
    """Return a float32: the number itself, or that whose bits an int16 holds, as bfloat16 or float16."""

    def generate(context, builder, signature, arguments):
        bits, is_bfloat = arguments
        if isinstance(value, types.Float):
            return bits
        single, word = ir.FloatType(), ir.IntType(32)
        half = builder.fpext(builder.bitcast(bits, ir.HalfType()), single)
        brain = builder.bitcast(builder.shl(builder.zext(bits, word), word(16)), single)
        return builder.select(is_bfloat, brain, half)

    return types.float32(value, types.boolean), generate


@compiled
def _load(x, first, is_bfloat, block):  # pragma: no cover - compiled
    """Fill block, float32 [rows, channels], with rows of x from the first on; return those that there are."""
    num_rows = min(len(block), len(x) - first)
    for row in range(num_rows):
        for channel in range(x.shape[1]):
            block[row, channel] = _float32_of(x[first + row, channel], is_bfloat)
    return block[:num_rows]


@compiled
def _measure_blocks(x, is_bfloat, rule, a, b, c, quiet, threshold):  # pragma: no cover - compiled
    """Do `measure_tokens` for activations of any dtype."""
    low, high = np.float32(np.inf), np.float32(-np.inf)
    block = np.empty((max(1, _BLOCK // x.shape[1]), x.shape[1]), np.float32)
    for first in range(0, len(x), len(block)):
        rows = _load(x, first, is_bfloat, block)
        smallest, largest = measure_tokens(rows, rule, a, b, c, quiet, threshold[first : first + len(rows)])
        if not smallest <= largest:
            return smallest, largest
        low, high = min(low, smallest), max(high, largest)
    return low, high


@compiled
def _pack_blocks(  # pragma: no cover - compiled
    x, is_bfloat, rule, a, b, c, quiet, threshold, mask, above, zero_point, signed, digits, fired, negative
):
    """Do `measure_tokens`, unless there is no rule, and `_pack`; stop where a count does not fit 32 bits."""
    low, high = np.float32(np.inf), np.float32(-np.inf)
    block = np.empty((max(1, _BLOCK // x.shape[1]), x.shape[1]), np.float32)
    for first in range(0, len(x), len(block)):
        rows = _load(x, first, is_bfloat, block)
        last = first + len(rows)
        if rule != _NO_RULE:
            smallest, largest = measure_tokens(rows, rule, a, b, c, quiet, threshold[first:last])
            if not -LARGEST_COUNT <= smallest <= largest <= LARGEST_COUNT:
                return smallest, largest
            low, high = min(low, smallest), max(high, largest)
        planes = fired[:, first:last], negative[:, first:last]
        _pack(rows, threshold[first:last], quiet, mask, above, zero_point, signed, digits, *planes)
    return low, high
