"""Triton kernels for weights whose groups of input channels have scales, and minima, of their own.

`count_channels` counts, `add_groups` adds up, `add_shares` finishes: only rows of channels that fire are read, and they
are added, never multiplied. A word of a row holds eight integers of 4 bits or four of 8, all made positive. It is split
into lanes of twice the width (bytes for 4 bits), which one addition of words adds up at once, for each binary digit of
|count|. Where the count is negative, the integers' complements are added, and what they are too much is taken off at
the end.

A program of `add_groups` is one warp. It takes some outputs and a share of the groups, one after the other, so that a
channel's count is the same for the whole warp. Within a group everything is an integer; then the sum is rescaled once.
The shares depend on the layer's shape alone and are added in a fixed order; the result may differ from the plain rule's
(`models/layers/rescale.py`), which has no shares, by float32's rounding.
"""

# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportOperatorIssue=false
# pyright: reportIndexIssue=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportPossiblyUnboundVariable=false, reportAssignmentType=false

from __future__ import annotations

import triton
import triton.language as tl

from ...neuro.threshold_triton import count_of
from .list import GATED, NORM, input_at, inverse_rms, token_threshold
from .upper import bits_of, middles_of

# Rows whose lanes are added up before they could overflow: 16 * 15 < 2^8.
ROWS = tl.constexpr(16)
# Rows whose sums lanes of 16 bits hold: 256 * 15 * 15 < 2^16.
MOST_ROWS = tl.constexpr(256)


@triton.jit
def count_channels(
    x_ptr,  # as in `list_events`
    norm_ptr,
    seen_ptr,
    count_ptr,  # int32, [tokens, count_stride]
    threshold_ptr,  # float32, [tokens]
    failed_ptr,  # int32, [tokens]
    num_inputs,
    count_stride,
    eps,
    a,
    b,
    c,
    quiet,
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
    count = tl.where(fits, count_of(x, threshold, quiet, SMALL=True, FMA=False), 0)
    tl.store(count_ptr + token * count_stride + channel, count, mask=channel < num_inputs)
    if SEEN:
        tl.store(seen_ptr + token * num_inputs + channel, x, mask=channel < num_inputs)
    if program == 0:
        tl.store(threshold_ptr + token, tl.where(fits, threshold, float("nan")))
        tl.store(failed_ptr + token, (fits == 0).to(tl.int32))


@triton.jit
def lanes_of(count, w, BITS: tl.constexpr):
    """Return the integers of words in lanes of twice the width, complements where count < 0; even and odd ones."""
    LANES: tl.constexpr = 0x0F0F0F0F if BITS == 4 else 0x00FF00FF
    flip = (count >> 31) & LANES
    return (w & LANES) ^ flip, (w >> BITS & LANES) ^ flip


@triton.jit
def fold(folded, even, odd, digit: tl.constexpr, BITS: tl.constexpr):
    """Add lanes, shifted by the place of their digit, to lanes of twice their width."""
    LANES: tl.constexpr = 0x00FF00FF if BITS == 4 else 0x0000FFFF
    even_low, even_high, odd_low, odd_high = folded
    even_low += (even & LANES) << digit
    even_high += (even >> 2 * BITS & LANES) << digit
    odd_low += (odd & LANES) << digit
    odd_high += (odd >> 2 * BITS & LANES) << digit
    return even_low, even_high, odd_low, odd_high


@triton.jit
def unfold(sums, folded, digit, BITS: tl.constexpr):
    """Add folded lanes, shifted by the place of their first digit, to the fields of a word, the lowest field first."""
    sum0, sum1, sum2, sum3, sum4, sum5, sum6, sum7 = sums
    even_low, even_high, odd_low, odd_high = folded
    if BITS == 4:
        sum0 += (even_low & 65535) << digit
        sum1 += (odd_low & 65535) << digit
        sum2 += (even_high & 65535) << digit
        sum3 += (odd_high & 65535) << digit
        sum4 += (even_low >> 16 & 65535) << digit
        sum5 += (odd_low >> 16 & 65535) << digit
        sum6 += (even_high >> 16 & 65535) << digit
        sum7 += (odd_high >> 16 & 65535) << digit
    else:
        sum0 += even_low << digit
        sum1 += odd_low << digit
        sum2 += even_high << digit
        sum3 += odd_high << digit
    return sum0, sum1, sum2, sum3, sum4, sum5, sum6, sum7


@triton.jit
def add_rows(
    folded, counts_ptr, rows_ptr, end, digit, edge0, edge1, keep0, keep1,
    UPPER: tl.constexpr, RAGGED: tl.constexpr, ROW_WORDS: tl.constexpr, BITS: tl.constexpr, WORDS: tl.constexpr,
):  # fmt: skip
    """Add four digits, from `digit` on, of the rows of ROWS channels, of which `end` are of this group."""
    nothing = tl.zeros([WORDS], tl.int32)
    even0, even1, even2, even3 = nothing, nothing, nothing, nothing
    odd0, odd1, odd2, odd3 = nothing, nothing, nothing, nothing
    counts, rows = (), ()
    for row in tl.static_range(ROWS):
        if RAGGED:
            count = tl.load(counts_ptr + row, mask=row < end, other=0)
        else:
            count = tl.load(counts_ptr + row)
        counts = counts + (count,)  # noqa: RUF005 - Triton unpacks no tuples
    for row in tl.static_range(ROWS):
        w = tl.load(rows_ptr + row * ROW_WORDS, mask=tl.abs(counts[row]) >> digit != 0, other=0)
        rows = rows + (w,)  # noqa: RUF005
    for row in tl.static_range(ROWS):
        w = rows[row]
        if UPPER:
            w = w & bits_of(counts[row], edge0, edge1, keep0, keep1)
        even, odd = lanes_of(counts[row], w, BITS)
        digits = tl.abs(counts[row]) >> digit
        if digits & 1 != 0:
            even0 += even
            odd0 += odd
        if digits & 2 != 0:
            even1 += even
            odd1 += odd
        if digits & 4 != 0:
            even2 += even
            odd2 += odd
        if digits & 8 != 0:
            even3 += even
            odd3 += odd
    folded = fold(folded, even0, odd0, 0, BITS)
    folded = fold(folded, even1, odd1, 1, BITS)
    folded = fold(folded, even2, odd2, 2, BITS)
    return fold(folded, even3, odd3, 3, BITS)


@triton.jit
def add_group(
    sums, counts_ptr, rows_ptr, size, most, edge0, edge1, keep0, keep1,
    UPPER: tl.constexpr, SIZE: tl.constexpr, RAGGED: tl.constexpr,
    ROW_WORDS: tl.constexpr, BITS: tl.constexpr, WORDS: tl.constexpr,
):  # fmt: skip
    """Add the rows of a group's channels, whose largest |count| is `most`."""
    nothing = tl.zeros([WORDS], tl.int32)
    for start in tl.static_range(0, SIZE, MOST_ROWS):
        digit = 0
        while most >> digit > 0:  # more than four digits are rare
            folded = nothing, nothing, nothing, nothing
            for row in range(start, min(start + MOST_ROWS, SIZE), ROWS):
                folded = add_rows(
                    folded, counts_ptr + row, rows_ptr + row * ROW_WORDS, size - row, digit,
                    edge0, edge1, keep0, keep1, UPPER, RAGGED, ROW_WORDS, BITS, WORDS,
                )  # fmt: skip
            sums = unfold(sums, folded, digit, BITS)
            digit += 4
    return sums


@triton.jit
def add_groups(
    count_ptr,  # int32, [tokens, inputs, and zeros up to whole groups]
    rows_ptr,  # int32 words, [inputs, ROW_WORDS]
    scale_ptr,  # [groups, padded outputs]
    minimum_ptr,  # the same, if MINIMUM
    partial_ptr,  # float32, [tokens, shares, padded outputs]
    num_inputs,
    count_stride,
    scale_stride,
    padded_outputs,
    num_groups,
    per_share,
    edge0,  # this and the next five as of `UpperBits`
    edge1,
    keep0,
    keep1,
    middle0,
    middle1,
    UPPER: tl.constexpr,  # whether small counts read upper bits
    BITS: tl.constexpr,
    LIFT: tl.constexpr,  # what the packed integers are too much
    MINIMUM: tl.constexpr,
    SIZE: tl.constexpr,  # channels of a group
    PADDED_SIZE: tl.constexpr,  # the same, padded to a power of two
    RAGGED: tl.constexpr,  # whether a group does not divide into portions of ROWS
    ROW_WORDS: tl.constexpr,  # so that rows are loaded without arithmetic for their addresses
    WORDS: tl.constexpr,
):
    """Add the rows of a share of the groups, 32 / BITS * WORDS outputs of them; grid [tiles, shares, tokens]."""
    tile, share, token = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    FIELDS: tl.constexpr = 32 // BITS
    lane = tl.arange(0, WORDS)
    count_ptr += token * count_stride
    rows_ptr += tile * WORDS + lane
    none, whole, wide = tl.zeros([WORDS], tl.float32), tl.zeros([WORDS], tl.int32), tl.full([], 0, tl.int64)
    parts = none, none, none, none, none, none, none, none
    for group in range(share * per_share, min((share + 1) * per_share, num_groups)):
        first = wide + group * SIZE
        local = tl.arange(0, PADDED_SIZE)
        counts = tl.load(count_ptr + first + local, mask=local < SIZE, other=0)
        total, negative = tl.sum(counts), tl.sum(tl.maximum(-counts, 0))
        sums = whole, whole, whole, whole, whole, whole, whole, whole
        sums = add_group(
            sums, count_ptr + first, rows_ptr + first * ROW_WORDS, min(num_inputs - first, SIZE),
            tl.max(tl.abs(counts)), edge0, edge1, keep0, keep1, UPPER, SIZE, RAGGED, ROW_WORDS, BITS, WORDS,
        )  # fmt: skip
        # A complement is 2^BITS - 1 too much.
        too_much = (negative << BITS) - negative + LIFT * total
        if UPPER:  # sums in halves
            too_much = 2 * too_much - tl.sum(middles_of(counts, edge0, edge1, middle0, middle1))
        at = (wide + group) * scale_stride + tile * FIELDS * WORDS + lane
        parts = add_terms(parts, sums, total, too_much, scale_ptr, minimum_ptr, at, UPPER, MINIMUM, BITS, WORDS)
    mine = partial_ptr + (token * tl.num_programs(1) + share) * padded_outputs + tile * FIELDS * WORDS + lane
    for field in tl.static_range(FIELDS):
        tl.store(mine + field * WORDS, parts[field])


@triton.jit
def add_terms(
    parts, sums, total, too_much, scale_ptr, minimum_ptr, at,
    UPPER: tl.constexpr, MINIMUM: tl.constexpr, BITS: tl.constexpr, WORDS: tl.constexpr,
):  # fmt: skip
    """Add scale * sum + minimum * total of a group to each field's part, as the plain rule rounds it."""
    part0, part1, part2, part3, part4, part5, part6, part7 = parts
    sum0, sum1, sum2, sum3, sum4, sum5, sum6, sum7 = sums
    part0 += term(sum0, total, too_much, scale_ptr, minimum_ptr, at, UPPER, MINIMUM)
    part1 += term(sum1, total, too_much, scale_ptr, minimum_ptr, at + WORDS, UPPER, MINIMUM)
    part2 += term(sum2, total, too_much, scale_ptr, minimum_ptr, at + 2 * WORDS, UPPER, MINIMUM)
    part3 += term(sum3, total, too_much, scale_ptr, minimum_ptr, at + 3 * WORDS, UPPER, MINIMUM)
    if BITS == 4:
        part4 += term(sum4, total, too_much, scale_ptr, minimum_ptr, at + 4 * WORDS, UPPER, MINIMUM)
        part5 += term(sum5, total, too_much, scale_ptr, minimum_ptr, at + 5 * WORDS, UPPER, MINIMUM)
        part6 += term(sum6, total, too_much, scale_ptr, minimum_ptr, at + 6 * WORDS, UPPER, MINIMUM)
        part7 += term(sum7, total, too_much, scale_ptr, minimum_ptr, at + 7 * WORDS, UPPER, MINIMUM)
    return part0, part1, part2, part3, part4, part5, part6, part7


@triton.jit
def term(sums, total, too_much, scale_ptr, minimum_ptr, at, UPPER: tl.constexpr, MINIMUM: tl.constexpr):
    """Return scale * sum + minimum * total of a group; with UPPER, `too_much` is in halves."""
    scale = tl.load(scale_ptr + at).to(tl.float32)
    if UPPER:
        sums, scale = sums << 1, scale * 0.5
    found = (sums - too_much).to(tl.float32) * scale
    if MINIMUM:
        found += total.to(tl.float32) * tl.load(minimum_ptr + at).to(tl.float32)
    return found


@triton.jit
def add_shares(
    partial_ptr,  # float32, [tokens, shares, padded outputs]
    threshold_ptr,  # float32, [tokens]
    bias_ptr,  # [outputs], if BIAS
    first_ptr,  # int32, [tiles]: the first output of each tile in y
    end_ptr,  # int32, [tiles]: the output after the last one of its matrix
    y_ptr,  # [tokens, outputs]
    shares,
    padded_outputs,
    num_outputs,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    TILE: tl.constexpr,  # outputs of a tile
    BLOCK: tl.constexpr,  # outputs of a program: a part of a tile
    SHARES: tl.constexpr,  # shares, padded to a power of two
):
    """Add the shares of BLOCK outputs, rescale, and fill y; grid [blocks, tokens]."""
    block, token = tl.program_id(0), tl.program_id(1).to(tl.int64)
    lane = tl.arange(0, BLOCK)
    share = tl.arange(0, SHARES)
    here = partial_ptr + (token * shares + share[:, None]) * padded_outputs + (block * BLOCK + lane)[None, :]
    parts = tl.load(here, mask=(share < shares)[:, None], other=0)
    tile = block // (TILE // BLOCK)
    output = tl.load(first_ptr + tile) + block % (TILE // BLOCK) * BLOCK + lane
    is_output = output < tl.load(end_ptr + tile)
    y = tl.sum(parts, 0) * tl.load(threshold_ptr + token)
    if BIAS:
        y += tl.load(bias_ptr + output, mask=is_output, other=0).to(tl.float32)
    here = y_ptr + token * num_outputs + output
    if RESIDUAL:
        y = tl.load(here, mask=is_output, other=0).to(tl.float32) + y.to(y_ptr.dtype.element_ty).to(tl.float32)
    tl.store(here, y.to(y_ptr.dtype.element_ty), mask=is_output)
