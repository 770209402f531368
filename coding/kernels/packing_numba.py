"""Kernels that pack and compact trains on the CPU (numba): 32 channels at a time, read once, for all timesteps.

Whether a count fires in a timestep is one comparison (see `Unrolling`). LLVM compares 32 lanes and turns the outcomes
into a word in a few instructions where the processor has them, and correctly on any. Tokens are divided over
`torch.get_num_threads()` threads, where there is work enough for them.
"""

# pyright: reportCallIssue=false
# Compiled code calls an intrinsic without its first parameter.

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from torch import Tensor

from ...compiled import compiled
from ...neuro import AdaptiveThreshold
from ..unrolling import LARGEST_COUNT, Unrolling

# Activations (tokens times channels) that are measured and packed while they are in a core's own cache.
_BLOCK = 2**14
# Channels from which a second thread saves more than waking it costs.
_WORTH_THREADS = 2**18


def pack_counts(count: Tensor, unrolling: Unrolling, fired: Tensor, negative: Tensor) -> tuple[int, int]:
    """Fill a packed train and return the smallest and largest count; if they do not fit, the train means nothing.

    Args:
        count: int32 or int64, [tokens, channels].
        unrolling: the code.
        fired: int32, [T, tokens, words].
        negative: int32, [S, tokens, words].
    """
    code, counts, ones = _arrays(unrolling), count.numpy(), np.ones(len(count), np.float32)
    plus, minus = fired.numpy(), negative.numpy()

    def work(first: int, last: int) -> tuple[int, int]:
        return _pack(counts[first:last], ones[first:last], *code, plus[:, first:last], minus[:, first:last])

    low, high = _range(_on_threads(work, *count.shape))
    return int(low), int(high)


def measure(x: Tensor, neuron: AdaptiveThreshold, threshold: Tensor) -> tuple[float, float]:
    """Fill the thresholds of a neuron; return the smallest and largest x / threshold, not yet rounded.

    Division and rounding keep the order of numbers, so the two give the range of all counts. NaN if x is not finite.

    Args:
        x: float32, bfloat16 or float16, [tokens, channels], with one of each at least.
        neuron: for k, floor and ceiling.
        threshold: float32, [tokens].
    """
    (values, is_bfloat), settings, worth = _numbers(x), _settings(neuron), threshold.numpy()

    def work(first: int, last: int) -> tuple[np.float32, np.float32]:
        return _measure_blocks(values[first:last], is_bfloat, *settings, worth[first:last])

    return _range(_on_threads(work, *x.shape))


def pack_activations(x: Tensor, threshold: Tensor, unrolling: Unrolling, fired: Tensor, negative: Tensor) -> None:
    """Fill a packed train with round(x / threshold), half to even; all counts fit. Arguments as above."""
    _blocks_on_threads(x, None, threshold, unrolling, fired, negative)


def measure_and_pack(
    x: Tensor, neuron: AdaptiveThreshold, threshold: Tensor, unrolling: Unrolling, fired: Tensor, negative: Tensor
) -> tuple[float, float]:
    """Do `measure` and `pack_activations` in one pass over x; if the range returned does not fit, nothing is valid."""
    return _blocks_on_threads(x, neuron, threshold, unrolling, fired, negative)


def _blocks_on_threads(
    x: Tensor,
    neuron: AdaptiveThreshold | None,
    threshold: Tensor,
    unrolling: Unrolling,
    fired: Tensor,
    negative: Tensor,
) -> tuple[float, float]:
    """Pack, after measuring if there is a neuron."""
    (values, is_bfloat), code, worth = _numbers(x), _arrays(unrolling), threshold.numpy()
    settings, plus, minus = _settings(neuron or AdaptiveThreshold()), fired.numpy(), negative.numpy()

    def work(a: int, b: int) -> tuple[np.float32, np.float32]:
        planes = plus[:, a:b], minus[:, a:b]
        return _pack_blocks(values[a:b], is_bfloat, neuron is not None, *settings, worth[a:b], *code, *planes)

    return _range(_on_threads(work, *x.shape))


def count_active(fired: Tensor, num_active: Tensor) -> None:
    """Fill num_active, int64 [tokens], with the channels of each token that fired at all; fired: [T, tokens, words]."""
    planes, found = fired.numpy(), num_active.numpy()
    _on_threads(lambda a, b: _count_active(planes[:, a:b], found[a:b]), fired.shape[1], 32 * fired.shape[2])


def list_active(
    fired: Tensor, negative: Tensor, timestep_weight: Tensor, first: Tensor, channel: Tensor, count: Tensor
) -> None:
    """Fill the columns of `ChannelEvents`; first: where each token's events start, int64 [tokens]."""
    plus, minus, weight, start = fired.numpy(), negative.numpy(), timestep_weight.to(count.dtype).numpy(), first.numpy()
    columns = channel.numpy(), count.numpy()

    def work(a: int, b: int) -> None:
        _list_active(plus[:, a:b], minus[:, a:b], weight, start[a:b], *columns)

    _on_threads(work, fired.shape[1], 32 * fired.shape[2])


def _arrays(unrolling: Unrolling) -> tuple[np.ndarray, np.ndarray, int, int, int]:
    mask, above = unrolling.mask.numpy(), unrolling.above.numpy()
    return mask, above, unrolling.zero_point, -int(unrolling.sign_planes > 0), -int(unrolling.sign_planes > 1)


def _settings(neuron: AdaptiveThreshold) -> tuple[np.float32, np.float32, np.float32]:
    return np.float32(neuron.k), np.float32(neuron.floor), np.float32(neuron.ceiling)


def _numbers(x: Tensor) -> tuple[np.ndarray, bool]:
    """Return activations as NumPy has them, 16-bit ones as bits, and whether they are bfloat16."""
    return (x if x.dtype == torch.float32 else x.view(torch.int16)).numpy(), x.dtype == torch.bfloat16


def _range(ranges: list) -> tuple:
    """Return the smallest low and largest high of (low, high) pairs; NaN if there is one."""
    if len(ranges) == 1:
        return ranges[0]
    lows, highs = zip(*ranges, strict=True)
    return np.min(lows).item(), np.max(highs).item()


def _on_threads(work: Callable, num_tokens: int, num_channels: int) -> list:
    """Return what work(first token, last token) returns for each thread's tokens."""
    num_threads = min(torch.get_num_threads(), num_tokens) if num_tokens * num_channels >= _WORTH_THREADS else 1
    bounds = [num_tokens * part // num_threads for part in range(num_threads + 1)]
    parts = list(itertools.pairwise(bounds))
    others = [_pool(num_threads, os.getpid()).submit(work, *part) for part in parts[1:]]
    return [work(*parts[0]), *(other.result() for other in others)]


@functools.lru_cache(maxsize=1)
def _pool(num_threads: int, process: int) -> ThreadPoolExecutor:
    """Return the threads that help the calling one; new ones in a forked process, which has none of its parent's."""
    return ThreadPoolExecutor(num_threads)


def _vector(kind: ir.Type) -> ir.VectorType:
    return ir.VectorType(kind, 32)


def _pointer(context, builder, array_type, array, vector, first=None):
    """Return the address of 32 numbers of a contiguous array, from the first on, as that of a vector."""
    start = context.make_array(array_type)(context, builder, array).data
    start = start if first is None else builder.gep(start, [first])
    return builder.bitcast(start, vector.as_pointer())


def _to_all(builder, scalar):
    """Return a vector with the scalar in every lane."""
    one = builder.insert_element(ir.Constant(_vector(scalar.type), ir.Undefined), scalar, ir.IntType(32)(0))
    return builder.shuffle_vector(one, one, ir.Constant(_vector(ir.IntType(32)), [0] * 32))


def _cast(builder, number, kind):
    """Return an integer, or a vector of integers, in as many bits as kind has."""
    if isinstance(number.type, ir.VectorType):
        bits, wanted = number.type.element.width, _vector(kind)
    else:
        bits, wanted = number.type.width, kind
    if bits == kind.width:
        return number
    return builder.trunc(number, wanted) if bits > kind.width else builder.sext(number, wanted)


@intrinsic
def _unroll(  # pragma: no cover - compiled
    typingctx, channels, first, worth, zero_point, signed, digits, patterns, signs, extremes
):
    """Write the patterns of 32 channels and those of their negative spikes (see `Unrolling`).

    Lane by lane in registers, in as many bits as patterns have: Numba would widen every sum to 64.

    Args:
        typingctx: Numba's.
        channels: contiguous; counts, or float32, which are divided by worth and rounded, halves to the even neighbour.
        first: place of the first channel.
        worth: float32.
        zero_point: of the code.
        signed: -1 if counts below 0 are negative spikes, else 0.
        digits: -1 for the non-adjacent form, else 0.
        patterns: 32 integers to write to.
        signs: as many of the same kind.
        extremes: [2, 32], of the kind of the channels: the smallest and largest count of each lane so far.
    """

    def generate(context, builder, signature, arguments):
        kind = context.get_value_type(patterns.dtype)
        source = _vector(context.get_value_type(channels.dtype))
        count = builder.load(_pointer(context, builder, channels, arguments[0], source, arguments[1]))
        count.align = channels.dtype.bitwidth // 8
        if isinstance(channels.dtype, types.Integer):
            for row, beyond in enumerate("<>"):
                at = _pointer(context, builder, extremes, arguments[8], source, ir.IntType(64)(32 * row))
                so_far = builder.load(at)
                so_far.align = count.align
                further = builder.select(builder.icmp_signed(beyond, count, so_far), count, so_far)
                builder.store(further, at).align = count.align
        if isinstance(channels.dtype, types.Float):
            kind_of_function = ir.FunctionType(source, [source])
            half_to_even = builder.module.declare_intrinsic("llvm.roundeven.v32f32", (), kind_of_function)
            quotient = builder.fdiv(count, _to_all(builder, arguments[2]))
            count = builder.fptosi(builder.call(half_to_even, [quotient]), _vector(ir.IntType(32)))
        lift, sign_mask, digit_mask = (_to_all(builder, _cast(builder, x, kind)) for x in arguments[3:6])
        lifted = builder.add(_cast(builder, count, kind), lift)
        below = builder.icmp_signed("<", lifted, ir.Constant(lifted.type, [0] * 32))
        flip = builder.and_(builder.sext(below, lifted.type), sign_mask)
        magnitude = builder.sub(builder.xor(lifted, flip), flip)
        half = builder.and_(builder.ashr(magnitude, ir.Constant(lifted.type, [1] * 32)), digit_mask)
        total = builder.add(magnitude, half)
        pattern = builder.xor(total, half)
        minus = builder.and_(builder.select(below, total, half), pattern)
        for value, array, to in ((pattern, patterns, arguments[6]), (minus, signs, arguments[7])):
            builder.store(value, _pointer(context, builder, array, to, lifted.type)).align = kind.width // 8

    if channels.layout != "C":
        return None  # a type error: places are those of contiguous numbers
    signature = (channels, types.int64, types.float32, types.int64, types.int64, types.int64, patterns, signs, extremes)
    return types.void(*signature), generate


@intrinsic
def _where(typingctx, lanes, mask, above):  # pragma: no cover - compiled
    """Return a word whose bit j is 1 where (lanes[j] & mask) > above; lanes is a contiguous array of 32 integers."""

    def generate(context, builder, signature, arguments):
        vector = _vector(context.get_value_type(lanes.dtype))
        value = builder.load(_pointer(context, builder, lanes, arguments[0], vector))
        value.align = lanes.dtype.bitwidth // 8
        mask_vector, above_vector = (_to_all(builder, scalar) for scalar in arguments[1:])
        fires = builder.icmp_signed(">", builder.and_(value, mask_vector), above_vector)
        return builder.bitcast(fires, ir.IntType(32))

    return types.int32(lanes, lanes.dtype, lanes.dtype), generate


@compiled
def _pack(  # pragma: no cover - compiled
    source, threshold, mask, above, zero_point, signed, digits, fired, negative
):
    """Pack counts, or round(source / threshold) of float32; source: [tokens, channels], threshold: float32 [tokens].

    Without slices: each would be counted as a reference, which takes longer than to pack a word.

    Returns:
        The smallest and the largest of counts.
    """
    patterns, signs = np.zeros(32, mask.dtype), np.zeros(32, mask.dtype)
    last, extremes = np.full(32, source[0, 0]), np.full((2, 32), source[0, 0])
    num_channels = source.shape[1]
    for token in range(fired.shape[1]):
        worth = threshold[token]
        for word in range(fired.shape[2]):
            first, used = 32 * word, np.int32(-1)
            if first + 32 <= num_channels:
                at = token * num_channels + first
                _unroll(source, at, worth, zero_point, signed, digits, patterns, signs, extremes)
            else:
                for j in range(num_channels - first):
                    last[j] = source[token, first + j]
                used = np.int32((1 << (num_channels - first)) - 1)
                _unroll(last, 0, worth, zero_point, signed, digits, patterns, signs, extremes)
            for t in range(fired.shape[0]):
                fired[t, token, word] = _where(patterns, mask[t], above[t]) & used
            if negative.shape[0] == 1:
                negative[0, token, word] = _where(signs, -1, 0) & used
            else:
                for t in range(negative.shape[0]):
                    negative[t, token, word] = _where(signs, mask[t], above[t]) & used
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
def _measure_blocks(x, is_bfloat, k, floor, ceiling, threshold):  # pragma: no cover - compiled
    """Do `_measure` for activations of any kind."""
    low, high = np.float32(np.inf), np.float32(-np.inf)
    block = np.empty((max(1, _BLOCK // x.shape[1]), x.shape[1]), np.float32)
    for first in range(0, len(x), len(block)):
        rows = _load(x, first, is_bfloat, block)
        smallest, largest = _measure(rows, k, floor, ceiling, threshold[first : first + len(rows)])
        if not smallest <= largest:
            return smallest, largest
        low, high = min(low, smallest), max(high, largest)
    return low, high


@compiled
def _pack_blocks(  # pragma: no cover - compiled
    x, is_bfloat, measures, k, floor, ceiling, threshold, mask, above, zero_point, signed, digits, fired, negative
):
    """Do `_measure`, if asked, and `_pack`; a range beyond that of int32 ends it."""
    low, high = np.float32(np.inf), np.float32(-np.inf)
    block = np.empty((max(1, _BLOCK // x.shape[1]), x.shape[1]), np.float32)
    for first in range(0, len(x), len(block)):
        rows = _load(x, first, is_bfloat, block)
        last = first + len(rows)
        if measures:
            smallest, largest = _measure(rows, k, floor, ceiling, threshold[first:last])
            if not -LARGEST_COUNT <= smallest <= largest <= LARGEST_COUNT:
                return smallest, largest
            low, high = min(low, smallest), max(high, largest)
        planes = fired[:, first:last], negative[:, first:last]
        _pack(rows, threshold[first:last], mask, above, zero_point, signed, digits, *planes)
    return low, high


@compiled(error_model="numpy")
def _measure(x, k, floor, ceiling, threshold):  # pragma: no cover - compiled
    """Fill threshold, float32 [tokens]; return the extremes of x / threshold; x: float32 [tokens, channels]."""
    low, high = np.float32(np.inf), np.float32(-np.inf)
    for token in range(x.shape[0]):
        mean = np.float32(_sum_of_magnitudes(x[token]) / x.shape[1])
        if not np.isfinite(mean):
            return np.float32(np.nan), np.float32(np.nan)
        threshold[token] = min(max(np.float32(mean / k), floor), ceiling)
        smallest, largest = _extremes(x[token])
        low = min(low, np.float32(smallest / threshold[token]))
        high = max(high, np.float32(largest / threshold[token]))
    return low, high


@compiled(fastmath={"reassoc"})
def _sum_of_magnitudes(x):  # pragma: no cover - compiled
    """Return the sum of |x| in float64, in whatever order suits vector registers."""
    total = 0.0
    for channel in range(x.shape[0]):
        total += np.float64(abs(x[channel]))
    return total


@compiled
def _ordered(bits):  # pragma: no cover - compiled
    """Turn the bits of a finite float32 into an int32 of the same order, and back."""
    return bits ^ ((bits >> 31) & np.int32(0x7FFFFFFF))


@compiled
def _extremes(x):  # pragma: no cover - compiled
    """Return the smallest and the largest of finite numbers, as integers, whose comparisons are compiled to vectors."""
    bits = x.view(np.int32)
    low, high = np.int32(_ordered(bits[0])), np.int32(_ordered(bits[0]))
    for channel in range(bits.shape[0]):
        key = np.int32(_ordered(bits[channel]))
        low = min(low, key)
        high = max(high, key)
    ends = np.empty(2, np.int32)
    ends[0], ends[1] = _ordered(low), _ordered(high)
    values = ends.view(np.float32)
    return values[0], values[1]


@compiled
def _active(fired, token, word):  # pragma: no cover - compiled
    """Return the union of a word over time, as uint32."""
    union = np.uint32(0)
    for t in range(fired.shape[0]):
        union |= np.uint32(fired[t, token, word])
    return union


def _of_word(name: str, *flags: int):
    """Return an intrinsic that counts bits of a uint32 with an instruction of LLVM's."""

    @intrinsic
    def count(typingctx, word):  # pragma: no cover - compiled
        def generate(context, builder, signature, arguments):
            kind, bit = ir.IntType(32), ir.IntType(1)
            shape = ir.FunctionType(kind, [kind, *(bit for _ in flags)])
            function = builder.module.declare_intrinsic(f"llvm.{name}.i32", (), shape)
            found = builder.call(function, [*arguments, *(bit(flag) for flag in flags)])
            return builder.zext(found, ir.IntType(64))

        return types.int64(types.uint32), generate

    return count


_num_ones = _of_word("ctpop")
_num_trailing_zeros = _of_word("cttz", 1)  # of a word that is not 0


@intrinsic
def _add_spikes(typingctx, plus, minus, weight, counts):  # pragma: no cover - compiled
    """Add a plane's spikes to 32 counts: weight for each bit of plus, -weight where it is in minus too."""

    def generate(context, builder, signature, arguments):
        fired, negative = (builder.bitcast(word, _vector(ir.IntType(1))) for word in arguments[:2])
        worth = _to_all(builder, arguments[2])
        place = _pointer(context, builder, counts, arguments[3], worth.type)
        so_far, nothing = builder.load(place), ir.Constant(worth.type, [0] * 32)
        so_far.align = counts.dtype.bitwidth // 8
        spike = builder.select(negative, builder.sub(nothing, worth), worth)
        total = builder.add(so_far, builder.select(fired, spike, nothing))
        builder.store(total, place).align = so_far.align

    return types.void(types.int32, types.int32, counts.dtype, counts), generate


@compiled
def _count_active(fired, num_active):  # pragma: no cover - compiled
    for token in range(fired.shape[1]):
        total = 0
        for word in range(fired.shape[2]):
            total += _num_ones(_active(fired, token, word))
        num_active[token] = total


@compiled
def _list_active(fired, negative, weight, first, channel, count):  # pragma: no cover - compiled
    """List channels and counts; weight: [T], of the dtype of count."""
    counts = np.zeros(32, count.dtype)
    for token in range(fired.shape[1]):
        event = first[token]
        for word in range(fired.shape[2]):
            active = _active(fired, token, word)
            if active == 0:
                continue
            counts[:] = 0
            for t in range(fired.shape[0]):
                minus = np.int32(0)
                if negative.shape[0] > 0:
                    minus = negative[t if negative.shape[0] > 1 else 0, token, word]
                _add_spikes(fired[t, token, word], minus, weight[t], counts)
            while active:
                j = _num_trailing_zeros(active)
                channel[event] = 32 * word + j
                count[event] = counts[j]
                event += 1
                active &= active - np.uint32(1)  # clears the lowest one
