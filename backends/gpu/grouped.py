"""Triton kernels for weights whose groups of input channels have scales, and minima, of their own.

`count_channels` counts, `add_groups` adds up: only rows of channels that fire are read, and they are multiplied by the
count. A program takes some outputs and a share of the groups. Within a group everything is an integer; then the sum is
rescaled once. The shares depend on the layer's shape alone and are added in order, so the result is the same on every
GPU; it may differ from the plain rule's (`models/layers/rescale.py`), which has no shares, by float32's rounding.

Integers of 4 bits are packed eight to a word, so that word i of a tile holds the outputs i, i + WORDS, ... of the tile.
"""

# ruff: noqa: PLR0915 - a kernel is one function
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportOperatorIssue=false
# pyright: reportIndexIssue=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportPossiblyUnboundVariable=false

from __future__ import annotations

import triton
import triton.language as tl

from ...neuro.threshold_triton import add_lanes, count_of, lanes_statistic, threshold_of
from .list import NORM, input_at, inverse_rms

# Sums of |count| of a group below which 15 times it fits 16 bits with a sign.
_NARROW = tl.constexpr(2**15 // 15)


@triton.jit
def count_channels(
    x_ptr,  # as in `list_events`
    norm_ptr,
    seen_ptr,
    count_ptr,  # int32, [tokens, inputs]
    threshold_ptr,  # float32, [tokens]
    failed_ptr,  # int32, [tokens]
    num_inputs,
    eps,
    a,
    b,
    c,
    RULE: tl.constexpr,
    SOURCE: tl.constexpr,
    SEEN: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """Count CHANNELS channels of a token; grid [tokens, shares of the channels]."""
    token = tl.program_id(0).to(tl.int64)
    program = tl.program_id(1)
    x_row = x_ptr + token * num_inputs * (2 if SOURCE == 2 else 1)
    inverse = 1.0
    if SOURCE == NORM:
        inverse = inverse_rms(x_row, num_inputs, eps, BLOCK, BLOCKS)
    lanes = tl.zeros([BLOCK], tl.float64)
    for block in tl.static_range(BLOCKS):
        every = block * BLOCK + tl.arange(0, BLOCK)
        lanes = add_lanes(lanes, input_at(x_row, norm_ptr, every, num_inputs, inverse, SOURCE), RULE)
    threshold, fits, _ = threshold_of(lanes_statistic(lanes, RULE), num_inputs, a, b, c, RULE)
    channel = program * CHANNELS + tl.arange(0, CHANNELS)
    x = input_at(x_row, norm_ptr, channel, num_inputs, inverse, SOURCE)
    count = tl.where(fits, count_of(x, threshold, SMALL=True, FMA=False), 0)
    tl.store(count_ptr + token * num_inputs + channel, count, mask=channel < num_inputs)
    if SEEN:
        tl.store(seen_ptr + token * num_inputs + channel, x, mask=channel < num_inputs)
    if program == 0:
        tl.store(threshold_ptr + token, tl.where(fits, threshold, float("nan")))
        tl.store(failed_ptr + token, (fits == 0).to(tl.int32))


@triton.jit
def field_sums(w, count, narrow, BITS: tl.constexpr):
    """Return the sums of the fields of words times the counts of their rows: eight of 4 bits, or four of 8 (twice).

    Where the sums fit 16 bits, two fields are added at a time.
    """
    times = count[:, None]
    if BITS == 8:
        sum0 = tl.sum((w << 24 >> 24) * times, 0)
        sum1 = tl.sum((w << 16 >> 24) * times, 0)
        sum2 = tl.sum((w << 8 >> 24) * times, 0)
        sum3 = tl.sum((w >> 24) * times, 0)
        return sum0, sum1, sum2, sum3, sum0, sum1, sum2, sum3
    pair0 = tl.sum((w & 0x000F000F) * times, 0)
    pair1 = tl.sum((w >> 4 & 0x000F000F) * times, 0)
    pair2 = tl.sum((w >> 8 & 0x000F000F) * times, 0)
    pair3 = tl.sum((w >> 12 & 0x000F000F) * times, 0)
    sum0, sum1, sum2, sum3 = pair0 << 16 >> 16, pair1 << 16 >> 16, pair2 << 16 >> 16, pair3 << 16 >> 16
    sum4, sum5, sum6, sum7 = pair0 - sum0 >> 16, pair1 - sum1 >> 16, pair2 - sum2 >> 16, pair3 - sum3 >> 16
    if narrow == 0:
        sum0, sum1 = tl.sum((w & 15) * times, 0), tl.sum((w >> 4 & 15) * times, 0)
        sum2, sum3 = tl.sum((w >> 8 & 15) * times, 0), tl.sum((w >> 12 & 15) * times, 0)
        sum4, sum5 = tl.sum((w >> 16 & 15) * times, 0), tl.sum((w >> 20 & 15) * times, 0)
        sum6, sum7 = tl.sum((w >> 24 & 15) * times, 0), tl.sum((w >> 28 & 15) * times, 0)
    return sum0, sum1, sum2, sum3, sum4, sum5, sum6, sum7


@triton.jit
def term(sums, scale_ptr, minimum_ptr, at, total, LIFT: tl.constexpr, MINIMUM: tl.constexpr):
    """Return scale * sum + minimum * total of a group, as the plain rule rounds it."""
    scale = tl.load(scale_ptr + at).to(tl.float32)
    found = (sums - LIFT * total).to(tl.float32) * scale
    if MINIMUM:
        found += total.to(tl.float32) * tl.load(minimum_ptr + at).to(tl.float32)
    return found


@triton.jit
def finish(
    part,
    partial_ptr,
    splits,
    padded,
    output,
    threshold,
    bias_ptr,
    y_ptr,
    num_outputs,
    ONE: tl.constexpr,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
):
    """Add the shares in order, rescale, store."""
    total = part
    if not ONE:
        total = tl.load(partial_ptr + output, cache_modifier=".cg")
        for split in range(1, splits):
            total += tl.load(partial_ptr + split * padded + output, cache_modifier=".cg")
    y = total * threshold
    is_output = output < num_outputs
    if BIAS:
        y += tl.load(bias_ptr + output, mask=is_output, other=0).to(tl.float32)
    if RESIDUAL:
        before = tl.load(y_ptr + output, mask=is_output, other=0).to(tl.float32)
        y = before + y.to(y_ptr.dtype.element_ty).to(tl.float32)
    tl.store(y_ptr + output, y.to(y_ptr.dtype.element_ty), mask=is_output)


@triton.jit
def add_groups(
    count_ptr,  # int32, [tokens, inputs]
    threshold_ptr,  # float32, [tokens]
    rows_ptr,  # int32 words, [inputs, row_words]
    scale_ptr,  # [groups, padded outputs]
    minimum_ptr,  # the same, if MINIMUM
    bias_ptr,  # [outputs], if BIAS
    y_ptr,  # [tokens, y_stride], from the first output of this matrix on
    partial_ptr,  # float32, [tokens, splits, padded outputs]
    arrived_ptr,  # int32, [tokens, tiles], zeros before and after
    num_inputs,
    row_words,
    num_outputs,
    y_stride,
    num_groups,
    per_split,
    BITS: tl.constexpr,
    LIFT: tl.constexpr,  # what packed integers are too much
    MINIMUM: tl.constexpr,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    SIZE: tl.constexpr,  # channels of a group
    GROUP: tl.constexpr,  # the same, padded
    WORDS: tl.constexpr,
    ONE: tl.constexpr,  # there is one share
):
    """Add the rows of a share of the groups, 32 / BITS * WORDS outputs of them; grid [tiles, shares, tokens]."""
    tile, split, token = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    splits = tl.num_programs(1)
    FIELDS: tl.constexpr = 32 // BITS
    padded = row_words * FIELDS
    lane = tl.arange(0, WORDS)
    word = tile * WORDS + lane
    local = tl.arange(0, GROUP)
    count_row = count_ptr + token * num_inputs
    output = tile * (FIELDS * WORDS) + lane
    part0, part1 = tl.zeros([WORDS], tl.float32), tl.zeros([WORDS], tl.float32)
    part2, part3 = tl.zeros([WORDS], tl.float32), tl.zeros([WORDS], tl.float32)
    part4, part5 = tl.zeros([WORDS], tl.float32), tl.zeros([WORDS], tl.float32)
    part6, part7 = tl.zeros([WORDS], tl.float32), tl.zeros([WORDS], tl.float32)
    first, end = split * per_split, tl.minimum((split + 1) * per_split, num_groups)
    channel = first * SIZE + local
    next_count = tl.load(count_row + channel, mask=(local < SIZE) & (channel < num_inputs), other=0)
    here = rows_ptr + channel.to(tl.int64)[:, None] * row_words + word[None, :]
    next_w = tl.load(here, mask=(next_count != 0)[:, None], other=0)
    for g in range(first, end):
        count, w = next_count, next_w
        # The rows of the next group are under way while these are added.
        channel = (g + 1) * SIZE + local
        is_channel = (local < SIZE) & (channel < num_inputs) & (g + 1 < end)
        next_count = tl.load(count_row + channel, mask=is_channel, other=0)
        here = rows_ptr + channel.to(tl.int64)[:, None] * row_words + word[None, :]
        next_w = tl.load(here, mask=(next_count != 0)[:, None], other=0)
        total = tl.sum(count, 0)
        narrow = (tl.sum(tl.abs(count), 0) < _NARROW).to(tl.int32)
        sum0, sum1, sum2, sum3, sum4, sum5, sum6, sum7 = field_sums(w, count, narrow, BITS)
        at = g * padded + output
        part0 += term(sum0, scale_ptr, minimum_ptr, at, total, LIFT, MINIMUM)
        part1 += term(sum1, scale_ptr, minimum_ptr, at + WORDS, total, LIFT, MINIMUM)
        part2 += term(sum2, scale_ptr, minimum_ptr, at + 2 * WORDS, total, LIFT, MINIMUM)
        part3 += term(sum3, scale_ptr, minimum_ptr, at + 3 * WORDS, total, LIFT, MINIMUM)
        if FIELDS == 8:
            part4 += term(sum4, scale_ptr, minimum_ptr, at + 4 * WORDS, total, LIFT, MINIMUM)
            part5 += term(sum5, scale_ptr, minimum_ptr, at + 5 * WORDS, total, LIFT, MINIMUM)
            part6 += term(sum6, scale_ptr, minimum_ptr, at + 6 * WORDS, total, LIFT, MINIMUM)
            part7 += term(sum7, scale_ptr, minimum_ptr, at + 7 * WORDS, total, LIFT, MINIMUM)
    start = token * splits * padded
    number = 0
    if not ONE:
        mine = partial_ptr + start + split * padded + output
        tl.store(mine, part0)
        tl.store(mine + WORDS, part1)
        tl.store(mine + 2 * WORDS, part2)
        tl.store(mine + 3 * WORDS, part3)
        if FIELDS == 8:
            tl.store(mine + 4 * WORDS, part4)
            tl.store(mine + 5 * WORDS, part5)
            tl.store(mine + 6 * WORDS, part6)
            tl.store(mine + 7 * WORDS, part7)
        tl.debug_barrier()  # all threads have stored before one says so
        arrived = arrived_ptr + token * tl.num_programs(0) + tile
        number = tl.atomic_add(arrived, 1, sem="acq_rel")
        tl.store(arrived, 0, mask=number == splits - 1)
    if number < splits - 1:
        return
    threshold = tl.load(threshold_ptr + token)
    y = y_ptr + token * y_stride
    shares = partial_ptr + start
    finish(part0, shares, splits, padded, output, threshold, bias_ptr, y, num_outputs, ONE, BIAS, RESIDUAL)
    output += WORDS
    finish(part1, shares, splits, padded, output, threshold, bias_ptr, y, num_outputs, ONE, BIAS, RESIDUAL)
    output += WORDS
    finish(part2, shares, splits, padded, output, threshold, bias_ptr, y, num_outputs, ONE, BIAS, RESIDUAL)
    output += WORDS
    finish(part3, shares, splits, padded, output, threshold, bias_ptr, y, num_outputs, ONE, BIAS, RESIDUAL)
    if FIELDS == 8:
        output += WORDS
        finish(part4, shares, splits, padded, output, threshold, bias_ptr, y, num_outputs, ONE, BIAS, RESIDUAL)
        output += WORDS
        finish(part5, shares, splits, padded, output, threshold, bias_ptr, y, num_outputs, ONE, BIAS, RESIDUAL)
        output += WORDS
        finish(part6, shares, splits, padded, output, threshold, bias_ptr, y, num_outputs, ONE, BIAS, RESIDUAL)
        output += WORDS
        finish(part7, shares, splits, padded, output, threshold, bias_ptr, y, num_outputs, ONE, BIAS, RESIDUAL)
