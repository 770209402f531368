"""Triton kernels for weights whose groups of input channels have scales, and minima, of their own.

`count_channels` counts, `add_groups` adds up: only rows of channels that fire are read, and they are added, never
multiplied. A word of a row holds eight integers of 4 bits or four of 8, all made positive. It is split into lanes of
twice the width (bytes for 4 bits), which one addition of words adds up at once, for each binary digit of |count|; where
the count is negative, the integers' complements are added, and what they are too much is taken off at the end.

A program takes some outputs and a share of the groups, PARALLEL of them at a time. Within a group everything is an
integer; then the sum is rescaled once. The shares depend on the layer's shape alone and are added in a fixed order; the
result may differ from the plain rule's (`models/layers/rescale.py`), which has no shares, by float32's rounding.
"""

# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportOperatorIssue=false
# pyright: reportIndexIssue=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportPossiblyUnboundVariable=false, reportAssignmentType=false

from __future__ import annotations

import triton
import triton.language as tl

from ...neuro.threshold_triton import count_of
from .list import GATED, NORM, input_at, inverse_rms, token_threshold

# Groups that a program adds up at a time, one for each of its warps.
PARALLEL = tl.constexpr(4)
# Rows whose lanes are added up before they could overflow: 16 * 15 < 2^8, 16 * 255 < 2^16.
ROWS = tl.constexpr(16)


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
    x_row = x_ptr + token * num_inputs * (2 if SOURCE == GATED else 1)
    inverse = 1.0
    if SOURCE == NORM:
        inverse = inverse_rms(x_row, num_inputs, eps, BLOCK, BLOCKS)
    threshold, fits = token_threshold(x_row, norm_ptr, num_inputs, inverse, a, b, c, RULE, SOURCE, BLOCK, BLOCKS)
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
def row_of(count_row, rows_ptr, group, end, local, num_inputs, row_words, word, SIZE: tl.constexpr):
    """Load the count of channel `local` of each group, and the words of its row where it fires."""
    channel = group * SIZE + local
    is_channel = (local < SIZE) & (group < end) & (channel < num_inputs)
    count = tl.load(count_row + channel, mask=is_channel, other=0)
    here = rows_ptr + channel.to(tl.int64)[:, None] * row_words + word[None, :]
    return count, tl.load(here, mask=(count != 0)[:, None], other=0)


@triton.jit
def lanes_of(count, w, BITS: tl.constexpr):
    """Return the integers of words in lanes of twice the width, complements where count < 0; even and odd ones."""
    LANES: tl.constexpr = 0x0F0F0F0F if BITS == 4 else 0x00FF00FF
    flip = ((count >> 31) & LANES)[:, None]
    return (w & LANES) ^ flip, (w >> BITS & LANES) ^ flip


@triton.jit
def add_digit(sums, even, odd, digit, BITS: tl.constexpr):
    """Add lanes, shifted by the place of their digit, to the sums of the fields of a word, lowest field first."""
    sum0, sum1, sum2, sum3, sum4, sum5, sum6, sum7 = sums
    if BITS == 4:
        sum0 += (even & 255) << digit
        sum2 += (even >> 8 & 255) << digit
        sum4 += (even >> 16 & 255) << digit
        sum6 += (even >> 24 & 255) << digit
        sum1 += (odd & 255) << digit
        sum3 += (odd >> 8 & 255) << digit
        sum5 += (odd >> 16 & 255) << digit
        sum7 += (odd >> 24 & 255) << digit
    else:
        sum0 += (even & 65535) << digit
        sum2 += (even >> 16 & 65535) << digit
        sum1 += (odd & 65535) << digit
        sum3 += (odd >> 16 & 65535) << digit
    return sum0, sum1, sum2, sum3, sum4, sum5, sum6, sum7


@triton.jit
def group_sums(
    count_row, rows_ptr, group, end, num_inputs, row_words, word,
    SIZE: tl.constexpr, PADDED_SIZE: tl.constexpr, BITS: tl.constexpr, WORDS: tl.constexpr,
):  # fmt: skip
    """Return for PARALLEL groups the sums of the fields of words, of counts, and of |count| where it is negative."""
    nothing = tl.zeros([PARALLEL, WORDS], tl.int32)
    sums = nothing, nothing, nothing, nothing, nothing, nothing, nothing, nothing
    local = tl.arange(0, PADDED_SIZE)[None, :]
    channel = group[:, None] * SIZE + local
    is_channel = (local < SIZE) & (group < end)[:, None] & (channel < num_inputs)
    every = tl.load(count_row + channel, mask=is_channel, other=0)
    total, negative = tl.sum(every, 1), tl.sum(tl.maximum(-every, 0), 1)
    above = tl.max(tl.max(tl.abs(every), 1), 0) >> 3
    for start in range(0, SIZE, ROWS):
        even0, even1, even2, odd0, odd1, odd2 = nothing, nothing, nothing, nothing, nothing, nothing
        counts, rows = (), ()
        for row in tl.static_range(ROWS):  # so that all loads are under way at once
            count, w = row_of(count_row, rows_ptr, group, end, start + row, num_inputs, row_words, word, SIZE)
            counts, rows = counts + (count,), rows + (w,)  # noqa: RUF005 - Triton unpacks no tuples
        for row in tl.static_range(ROWS):
            count = counts[row]
            even, odd = lanes_of(count, rows[row], BITS)
            magnitude = tl.abs(count)
            fires = (0 - (magnitude & 1))[:, None]
            even0 += even & fires
            odd0 += odd & fires
            fires = (0 - (magnitude >> 1 & 1))[:, None]
            even1 += even & fires
            odd1 += odd & fires
            fires = (0 - (magnitude >> 2 & 1))[:, None]
            even2 += even & fires
            odd2 += odd & fires
        sums = add_digit(sums, even0, odd0, 0, BITS)
        sums = add_digit(sums, even1, odd1, 1, BITS)
        sums = add_digit(sums, even2, odd2, 2, BITS)
        # Counts of 8 and more are rare.
        most, digit = above, 3
        while most > 0:
            even0, odd0 = nothing, nothing
            for number in range(start, start + ROWS):
                count, w = row_of(count_row, rows_ptr, group, end, number, num_inputs, row_words, word, SIZE)
                even, odd = lanes_of(count, w, BITS)
                fires = (0 - (tl.abs(count) >> digit & 1))[:, None]
                even0 += even & fires
                odd0 += odd & fires
            sums = add_digit(sums, even0, odd0, digit, BITS)
            most, digit = most >> 1, digit + 1
    return sums, total, negative


@triton.jit
def add_groups(
    count_ptr,  # int32, [tokens, inputs]
    threshold_ptr,  # float32, [tokens]
    rows_ptr,  # int32 words, [inputs, row_words]
    scale_ptr,  # [groups, padded outputs]
    minimum_ptr,  # the same, if MINIMUM
    bias_ptr,  # [outputs], if BIAS
    first_ptr,  # int32, [tiles]: the first output of each tile in y
    end_ptr,  # int32, [tiles]: the output after the last one of its matrix
    y_ptr,  # [tokens, outputs]
    partial_ptr,  # float32, [tokens, splits, padded outputs]
    arrived_ptr,  # int32, [tokens, tiles], zeros before and after
    num_inputs,
    row_words,
    scale_stride,
    num_outputs,
    num_groups,
    per_split,
    BITS: tl.constexpr,
    LIFT: tl.constexpr,  # what the packed integers are too much
    MINIMUM: tl.constexpr,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    SIZE: tl.constexpr,  # channels of a group
    PADDED_SIZE: tl.constexpr,  # the same, padded to a power of two
    WORDS: tl.constexpr,
    SPLITS: tl.constexpr,  # shares, padded to a power of two
):
    """Add the rows of a share of the groups, 32 / BITS * WORDS outputs of them; grid [tiles, shares, tokens]."""
    tile, split, token = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    tiles, splits = tl.num_programs(0), tl.num_programs(1)
    FIELDS: tl.constexpr = 32 // BITS
    lane = tl.arange(0, WORDS)
    nothing = tl.zeros([PARALLEL, WORDS], tl.float32)
    parts = nothing, nothing, nothing, nothing, nothing, nothing, nothing, nothing
    end = tl.minimum((split + 1) * per_split, num_groups)
    for start in range(split * per_split, end, PARALLEL):
        group = start + tl.arange(0, PARALLEL)
        sums, total, negative = group_sums(
            count_ptr + token * num_inputs, rows_ptr, group, end, num_inputs, row_words, tile * WORDS + lane,
            SIZE, PADDED_SIZE, BITS, WORDS,
        )  # fmt: skip
        # A complement is 2^BITS - 1 too much.
        too_much = ((negative << BITS) - negative + LIFT * total)[:, None]
        at = group.to(tl.int64)[:, None] * scale_stride + (tile * FIELDS * WORDS + lane)[None, :]
        parts = add_terms(parts, sums, total, too_much, scale_ptr, minimum_ptr, at, group < end, MINIMUM, BITS, WORDS)
    first = tl.load(first_ptr + tile)
    store_outputs(
        parts, partial_ptr + token * splits * tiles * FIELDS * WORDS, arrived_ptr + token * tiles + tile, tile, split,
        splits, tiles * FIELDS * WORDS, tl.load(threshold_ptr + token), bias_ptr, y_ptr + token * num_outputs, first,
        tl.load(end_ptr + tile), BIAS, RESIDUAL, BITS, WORDS, SPLITS,
    )  # fmt: skip


@triton.jit
def add_terms(
    parts, sums, total, too_much, scale_ptr, minimum_ptr, at, is_group,
    MINIMUM: tl.constexpr, BITS: tl.constexpr, WORDS: tl.constexpr,
):  # fmt: skip
    """Add scale * sum + minimum * total of the groups to each field's part, as the plain rule rounds it."""
    part0, part1, part2, part3, part4, part5, part6, part7 = parts
    sum0, sum1, sum2, sum3, sum4, sum5, sum6, sum7 = sums
    part0 += term(sum0, total, too_much, scale_ptr, minimum_ptr, at, is_group, MINIMUM)
    part1 += term(sum1, total, too_much, scale_ptr, minimum_ptr, at + WORDS, is_group, MINIMUM)
    part2 += term(sum2, total, too_much, scale_ptr, minimum_ptr, at + 2 * WORDS, is_group, MINIMUM)
    part3 += term(sum3, total, too_much, scale_ptr, minimum_ptr, at + 3 * WORDS, is_group, MINIMUM)
    if BITS == 4:
        part4 += term(sum4, total, too_much, scale_ptr, minimum_ptr, at + 4 * WORDS, is_group, MINIMUM)
        part5 += term(sum5, total, too_much, scale_ptr, minimum_ptr, at + 5 * WORDS, is_group, MINIMUM)
        part6 += term(sum6, total, too_much, scale_ptr, minimum_ptr, at + 6 * WORDS, is_group, MINIMUM)
        part7 += term(sum7, total, too_much, scale_ptr, minimum_ptr, at + 7 * WORDS, is_group, MINIMUM)
    return part0, part1, part2, part3, part4, part5, part6, part7


@triton.jit
def term(sums, total, too_much, scale_ptr, minimum_ptr, at, is_group, MINIMUM: tl.constexpr):
    """Return scale * sum + minimum * total of the groups, 0 where there is none."""
    found = (sums - too_much).to(tl.float32) * tl.load(scale_ptr + at, mask=is_group[:, None], other=0).to(tl.float32)
    if MINIMUM:
        minimum = tl.load(minimum_ptr + at, mask=is_group[:, None], other=0).to(tl.float32)
        found += total.to(tl.float32)[:, None] * minimum
    return found


@triton.jit
def store_outputs(
    parts, partial_ptr, arrived_ptr, tile, split, splits, padded, threshold, bias_ptr, y_ptr, first, end,
    BIAS: tl.constexpr, RESIDUAL: tl.constexpr, BITS: tl.constexpr, WORDS: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """Leave this share's parts; the last program of a tile adds all shares, rescales, and fills y."""
    part0, part1, part2, part3, part4, part5, part6, part7 = parts
    lane = tl.arange(0, WORDS)
    place = tile * (32 // BITS) * WORDS + lane
    mine = partial_ptr + split * padded + place
    tl.store(mine, tl.sum(part0, 0))
    tl.store(mine + WORDS, tl.sum(part1, 0))
    tl.store(mine + 2 * WORDS, tl.sum(part2, 0))
    tl.store(mine + 3 * WORDS, tl.sum(part3, 0))
    if BITS == 4:
        tl.store(mine + 4 * WORDS, tl.sum(part4, 0))
        tl.store(mine + 5 * WORDS, tl.sum(part5, 0))
        tl.store(mine + 6 * WORDS, tl.sum(part6, 0))
        tl.store(mine + 7 * WORDS, tl.sum(part7, 0))
    tl.debug_barrier()  # all threads have stored before one says so
    number = tl.atomic_add(arrived_ptr, 1, sem="acq_rel")
    tl.store(arrived_ptr, 0, mask=number == splits - 1)
    if number < splits - 1:
        return
    share = tl.arange(0, SPLITS)
    for field in tl.static_range(32 // BITS):
        here = partial_ptr + share[:, None] * padded + (place + field * WORDS)[None, :]
        shares = tl.load(here, mask=(share < splits)[:, None], other=0, cache_modifier=".cg")
        output = first + field * WORDS + lane
        is_output = output < end
        y = tl.sum(shares, 0) * threshold
        if BIAS:
            y += tl.load(bias_ptr + output, mask=is_output, other=0).to(tl.float32)
        if RESIDUAL:
            before = tl.load(y_ptr + output, mask=is_output, other=0).to(tl.float32)
            y = before + y.to(y_ptr.dtype.element_ty).to(tl.float32)
        tl.store(y_ptr + output, y.to(y_ptr.dtype.element_ty), mask=is_output)
