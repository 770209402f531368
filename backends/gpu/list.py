"""Triton kernel of mode `spike` that lists the weight rows to add; `spike.py` says what for.

A list is for CHANNELS input channels of a token. It is an array of places in the order of falling digit, in tiles of
ROWS places that share a digit; a place is one row to add, or empty. |count| = 64 * high + 8 * eights + digit: a channel
takes a place of its digit, and `eights` places of digit 8. What is above goes to the high list. A place holds

- from bit 2 on, the channel, whose row of any matrix that reads this input is added; negative where the place is empty,
- in bit 1, whether the digit drops by one after this tile,
- in bit 0, whether the row is subtracted.

The head of a list holds HEAD integers: what the lifted weights are too much, the channels in the high list, the shift
of their counts, nothing, and where the tiles of digits 8, 7, ... 1 end.
"""

# ruff: noqa: PLR0912, PLR0915 - a kernel is one function
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportOperatorIssue=false
# pyright: reportIndexIssue=false, reportAttributeAccessIssue=false, reportCallIssue=false

from __future__ import annotations

import triton
import triton.language as tl

from ...neuro.threshold_triton import COUNTED, add_lanes, count_of, lanes_statistic, threshold_of

HEAD = tl.constexpr(12)
# Of a program of `list_events`.
THREADS = tl.constexpr(256)
# Where the input of a token comes from: it is there; RMSNorm of what is there; SiLU(first half) * second half of it.
GIVEN, NORM, GATED = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


@triton.jit
def tiles_of(number, ROWS: tl.constexpr):
    """Return how many tiles hold that many rows, at least one."""
    return tl.maximum(tl.cdiv(number, ROWS), 1)


@triton.jit
def prefetch_rows(row, num_bytes, wanted):
    """Fetch whole rows of weights into the L2 cache, where wanted; one instruction a row."""
    tl.inline_asm_elementwise(
        "{ .reg .pred p; setp.ne.s32 p, $3, 0; @p cp.async.bulk.prefetch.L2.global [$1], $2; mov.b32 $0, 0; }",
        "=r,l,r,r",
        [row.to(tl.int64), num_bytes, wanted.to(tl.int32)],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def input_at(x_row, norm_ptr, channel, num_inputs, inverse, SOURCE: tl.constexpr):
    """Load a token's input, rounded after each step as PyTorch's operators do in its dtype; 0 beyond the last channel.

    Args:
        x_row: what is there for the token.
        norm_ptr: weight of the norm, [inputs].
        channel: which channels.
        num_inputs: channels that there are.
        inverse: what `inverse_rms` returned.
        SOURCE: GIVEN, NORM or GATED.
    """
    x = tl.load(x_row + channel, mask=channel < num_inputs, other=0)
    dtype: tl.constexpr = x_row.dtype.element_ty
    if SOURCE == NORM:
        weight = tl.load(norm_ptr + channel, mask=channel < num_inputs, other=0).to(tl.float32)
        x = (weight * (x.to(tl.float32) * inverse).to(dtype).to(tl.float32)).to(dtype)
    if SOURCE == GATED:
        gate = x.to(tl.float32)
        up = tl.load(x_row + num_inputs + channel, mask=channel < num_inputs, other=0).to(tl.float32)
        x = ((gate / (1 + tl.exp(-gate))).to(dtype).to(tl.float32) * up).to(dtype)
    return x


@triton.jit
def inverse_rms(x_row, num_inputs, eps, BLOCK: tl.constexpr, BLOCKS: tl.constexpr):
    """Return 1 / sqrt(mean of x^2 + eps) of a token, float32."""
    squares = tl.zeros([BLOCK], tl.float32)
    for block in tl.static_range(BLOCKS):
        channel = block * BLOCK + tl.arange(0, BLOCK)
        x = tl.load(x_row + channel, mask=channel < num_inputs, other=0).to(tl.float32)
        squares += x * x
    return tl.rsqrt(tl.sum(squares, 0) / num_inputs + eps)


@triton.jit
def token_threshold(
    x_row, norm_ptr, num_inputs, inverse, a, b, c,
    RULE: tl.constexpr, SOURCE: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """Return the threshold of a token's input, read as by `input_at`, and whether its counts are sure to fit."""
    part = tl.zeros([BLOCK], tl.float64)
    for block in tl.static_range(BLOCKS):  # so that all loads are under way at once
        channel = block * BLOCK + tl.arange(0, BLOCK)
        part = add_lanes(part, input_at(x_row, norm_ptr, channel, num_inputs, inverse, SOURCE), RULE)
    threshold, fits, _ = threshold_of(lanes_statistic(part, RULE), num_inputs, a, b, c, RULE)
    return threshold, fits


@triton.jit
def list_events(
    x_ptr,  # activations or int32 counts, [tokens, inputs], or twice as many where SOURCE is GATED
    norm_ptr,  # where SOURCE is NORM: weight of the norm, [inputs]
    seen_ptr,  # filled with the input if SEEN, [tokens, inputs]
    rows_ptr,  # weights, int32 words of four int8, [inputs, words], of up to three matrices that read this input
    rows1_ptr,
    rows2_ptr,
    list_ptr,  # int32, [tokens, lists, LENGTH]
    high_ptr,  # int32, [tokens, lists, CHANNELS]
    head_ptr,  # int32, [tokens, lists, HEAD]
    threshold_ptr,  # float32, [tokens]
    failed_ptr,  # int32, [tokens]
    sums_ptr,  # int64, [tokens, num_sums], which this kernel sets to zero
    num_inputs,
    num_sums,
    num_words,
    num_words1,
    num_words2,
    lists,
    most_places,  # of a list
    eps,  # of the norm
    a,  # the rule's numbers
    b,
    c,
    quiet,
    RULE: tl.constexpr,  # COUNTED if x holds counts
    SOURCE: tl.constexpr,
    SEEN: tl.constexpr,
    MATRICES: tl.constexpr,
    CHANNELS: tl.constexpr,
    ROWS: tl.constexpr,
    LENGTH: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
    PREFETCH: tl.constexpr,
):
    """List the rows of a token that must be added; grid [tokens, programs], of which the first `lists` write a list."""
    token = tl.program_id(0)
    program = tl.program_id(1)
    programs = tl.num_programs(1)
    x_row = x_ptr + token.to(tl.int64) * num_inputs * (2 if SOURCE == GATED else 1)
    local = tl.arange(0, CHANNELS)
    channel = program * CHANNELS + local
    inverse = 1.0
    if SOURCE == NORM:
        inverse = inverse_rms(x_row, num_inputs, eps, BLOCK, BLOCKS)
    x = input_at(x_row, norm_ptr, channel, num_inputs, inverse, SOURCE)
    if SEEN:
        tl.store(seen_ptr + token.to(tl.int64) * num_inputs + channel, x, mask=channel < num_inputs)
    threshold = 1.0
    fits = True
    if RULE == COUNTED:
        count = x
    else:
        threshold, fits = token_threshold(x_row, norm_ptr, num_inputs, inverse, a, b, c, RULE, SOURCE, BLOCK, BLOCKS)
        count = tl.where(fits, count_of(x, threshold, quiet, SMALL=True, FMA=False), 0)
        if program == 0:
            tl.store(threshold_ptr + token, tl.where(fits, threshold, float("nan")))
            tl.store(failed_ptr + token, (fits == 0).to(tl.int32))
    if program >= lists:
        others = programs - lists
        if PREFETCH > 0:
            # Every thread has a channel of its own, and every warp about as many of them as the others.
            lane = tl.arange(0, THREADS)
            for start in range(0, num_inputs, others * THREADS):
                ahead = start + ((lane & 7) * (THREADS // 8) + (lane >> 3)) * others + program - lists
                soon = input_at(x_row, norm_ptr, ahead, num_inputs, inverse, SOURCE)
                if RULE != COUNTED:
                    soon = tl.where(fits, count_of(soon, threshold, quiet, SMALL=True, FMA=False), 0)
                wanted = tl.abs(soon) >= PREFETCH
                prefetch_rows(rows_ptr + ahead.to(tl.int64) * num_words, num_words * 4, wanted)
                if MATRICES > 1:
                    prefetch_rows(rows1_ptr + ahead.to(tl.int64) * num_words1, num_words1 * 4, wanted)
                if MATRICES > 2:
                    prefetch_rows(rows2_ptr + ahead.to(tl.int64) * num_words2, num_words2 * 4, wanted)
        share = tl.cdiv(num_sums, others)
        for start in range(0, share, CHANNELS):
            at = start + local
            place = (program - lists) * share + at
            here = sums_ptr + token.to(tl.int64) * num_sums + place
            tl.store(here, tl.zeros([CHANNELS], tl.int64), mask=(at < share) & (place < num_sums))
        return

    magnitude = tl.abs(count)
    negative = (count < 0).to(tl.int32)
    eights = (magnitude & 63) >> 3
    digit = magnitude & 7
    # Ranks of the channels of each digit, three 10-bit counters to a word.
    ones = tl.where((digit >= 1) & (digit <= 3), 1 << (10 * (digit - 1)), 0)
    fours = tl.where((digit >= 4) & (digit <= 6), 1 << (10 * (digit - 4)), 0)
    sevens = (digit == 7).to(tl.int32) | (eights << 16)
    upto1, upto4, upto7 = tl.cumsum(ones, 0), tl.cumsum(fours, 0), tl.cumsum(sevens, 0)
    num1, num4, num7 = tl.sum(ones, 0), tl.sum(fours, 0), tl.sum(sevens, 0)
    # Tiles of each digit, at least one: then the digit drops by one from tile to tile at most.
    tiles7 = tiles_of(num7 & 1023, ROWS)
    tiles6 = tiles_of(num4 >> 20, ROWS)
    tiles5 = tiles_of(num4 >> 10 & 1023, ROWS)
    tiles4 = tiles_of(num4 & 1023, ROWS)
    tiles3 = tiles_of(num1 >> 20, ROWS)
    tiles2 = tiles_of(num1 >> 10 & 1023, ROWS)
    tiles1 = tiles_of(num1 & 1023, ROWS)
    below8 = tiles7 + tiles6 + tiles5 + tiles4 + tiles3 + tiles2 + tiles1
    # If not all places may be added in 16 bits, those for multiples of 8 go to the high list.
    crowded = ROWS * (tiles_of(num7 >> 16, ROWS) + below8) > most_places
    eights = tl.where(crowded, 0, eights)
    tiles8 = tiles_of(tl.where(crowded, 0, num7 >> 16), ROWS)
    end8 = tiles8
    end7 = end8 + tiles7
    end6 = end7 + tiles6
    end5 = end6 + tiles5
    end4 = end5 + tiles4
    end3 = end4 + tiles3
    end2 = end3 + tiles2
    end1 = end2 + tiles1
    place_in_list = (token * lists + program).to(tl.int64)
    places = list_ptr + place_in_list * LENGTH
    # All places are empty at first.
    for start in range(0, end1 * ROWS, CHANNELS):
        at = start + local
        tile = at // ROWS + 1
        drops = (tile == end8) | (tile == end7) | (tile == end6) | (tile == end5)
        drops = drops | (tile == end4) | (tile == end3) | (tile == end2) | (tile == end1)
        tl.store(places + at, -4 | drops.to(tl.int32) << 1, mask=at < end1 * ROWS)
    tl.debug_barrier()
    event = channel << 2 | negative
    first = tl.where(digit == 3, end4, tl.where(digit == 2, end3, end2))
    first = tl.where(digit == 5, end6, tl.where(digit == 4, end5, first))
    first = tl.where(digit == 7, end8, tl.where(digit == 6, end7, first))
    end = tl.where(digit == 3, end3, tl.where(digit == 2, end2, end1))
    end = tl.where(digit == 5, end5, tl.where(digit == 4, end4, end))
    end = tl.where(digit == 7, end7, tl.where(digit == 6, end6, end))
    rank = tl.where(digit <= 3, upto1 >> 10 * (digit - 1), upto4 >> 10 * (digit - 4))
    rank = tl.where(digit == 7, upto7, rank) & 1023
    at = first * ROWS + rank - 1
    tl.store(places + at, event | (at // ROWS + 1 == end).to(tl.int32) << 1, mask=digit > 0)
    at = (upto7 >> 16) - eights
    for i in tl.static_range(7):
        tl.store(places + at + i, event | ((at + i) // ROWS + 1 == end8).to(tl.int32) << 1, mask=i < eights)
    high = tl.where(crowded, magnitude >> 3, magnitude >> 6)
    is_high = (high > 0).to(tl.int32)
    num_high = tl.sum(is_high, 0)
    if num_high > 0:
        at = tl.cumsum(is_high, 0) - is_high
        tl.store(high_ptr + place_in_list * CHANNELS + at, high << 11 | local << 1 | negative, mask=is_high > 0)
    head = head_ptr + place_in_list * HEAD
    # Every row that is added is 128 too much, or 127 if it is subtracted, times its digit.
    tl.store(head, tl.sum((128 - negative) * (8 * eights + digit), 0))
    tl.store(head + 1, num_high)
    tl.store(head + 2, tl.where(crowded, 3, 6))
    tl.store(head + 4, end8)
    tl.store(head + 5, end7)
    tl.store(head + 6, end6)
    tl.store(head + 7, end5)
    tl.store(head + 8, end4)
    tl.store(head + 9, end3)
    tl.store(head + 10, end2)
    tl.store(head + 11, end1)
