"""Triton kernel of mode `spike` that lists the weight rows to add; `spike.py` says what for.

A list is for CHANNELS input channels of a token. It is an array of places in the order of falling digit, in tiles of
ROWS places that share a digit; a place is one row to add, or empty. |count| = 64 * high + TOP * tops + digit, where
TOP is 8 or 16: a channel takes a place of its digit, and `tops` places of digit TOP. What is above goes to the high
list, of places and `high`. A place holds

- from bit 2 on, the channel, whose row of any matrix that reads this input is added; negative where the place is empty.
  Where small counts read upper bits (UPPER), the channel's level is in bits 2 and 3 and the channel from bit 4 on,
- in bit 1, whether the digit drops by one after this tile,
- in bit 0, whether the row is subtracted.

The head of a list holds HEAD integers: what the lifted weights are too much, the channels in the high list, the shift
of their counts, what the middles of `upper.py` add, and where the tiles of digits TOP, TOP - 1, ... 1 end.
"""

# ruff: noqa: PLR0912, PLR0915 - a kernel is one function
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportOperatorIssue=false
# pyright: reportIndexIssue=false, reportAttributeAccessIssue=false, reportCallIssue=false

from __future__ import annotations

import triton
import triton.language as tl

from ...neuro.threshold_triton import COUNTED, add_lanes, count_of, lanes_statistic, threshold_of
from .upper import level_of, middles_of

HEAD = tl.constexpr(20)
# Of a program of `list_events`.
THREADS = tl.constexpr(256)
# Where the input of a token comes from: it is there; RMSNorm of what is there; SiLU(first half) * second half of it.
GIVEN, NORM, GATED = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


@triton.jit
def tiles_of(number, ROWS: tl.constexpr):
    """Return how many tiles hold that many rows, at least one."""
    return tl.maximum(tl.cdiv(number, ROWS), 1)


@triton.jit
def number_of(found, digit: tl.constexpr):
    """Return how many channels have a digit, or how many of them up to each channel."""
    return found[(digit - 1) // 3] >> 10 * ((digit - 1) % 3) & 1023


@triton.jit
def prefetch_rows(row, num_bytes, wanted):
    """Fetch the first bytes of rows of weights into the L2 cache, where wanted; one instruction a row."""
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
    high_ptr,  # int32, [tokens, lists, 2, CHANNELS]
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
    edge0,  # the next four as of `UpperBits`
    edge1,
    middle0,
    middle1,
    RULE: tl.constexpr,  # COUNTED if x holds counts
    SOURCE: tl.constexpr,
    SEEN: tl.constexpr,
    MATRICES: tl.constexpr,
    UPPER: tl.constexpr,  # whether small counts read upper bits
    PLANES: tl.constexpr,  # whether rows are as of `planes_of`
    CHANNELS: tl.constexpr,
    ROWS: tl.constexpr,
    TOP: tl.constexpr,
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
                bytes_read = 4
                if PLANES:
                    bytes_read = tl.where(level_of(soon, edge0, edge1) == 0, 4, 2)
                prefetch_rows(rows_ptr + ahead.to(tl.int64) * num_words, num_words * bytes_read, wanted)
                if MATRICES > 1:
                    prefetch_rows(rows1_ptr + ahead.to(tl.int64) * num_words1, num_words1 * bytes_read, wanted)
                if MATRICES > 2:
                    prefetch_rows(rows2_ptr + ahead.to(tl.int64) * num_words2, num_words2 * bytes_read, wanted)
        share = tl.cdiv(num_sums, others)
        for start in range(0, share, CHANNELS):
            at = start + local
            place = (program - lists) * share + at
            here = sums_ptr + token.to(tl.int64) * num_sums + place
            tl.store(here, tl.zeros([CHANNELS], tl.int64), mask=(at < share) & (place < num_sums))
        return

    magnitude = tl.abs(count)
    negative = (count < 0).to(tl.int32)
    tops = (magnitude & 63) // TOP
    digit = magnitude & (TOP - 1)
    # Ranks of the channels of each digit, three 10-bit counters to a word; the last word has those of `tops`, too.
    upto, found = (), ()
    for word in tl.static_range(TOP // 3 + 1):
        of_word = (digit > 3 * word) & (digit <= 3 * word + 3)
        ones = tl.where(of_word, 1 << 10 * (digit - 3 * word - 1), 0)
        if word == TOP // 3:
            ones = ones | tops << 16
        upto, found = upto + (tl.cumsum(ones, 0),), found + (tl.sum(ones, 0),)  # noqa: RUF005
    # Tiles of each digit, at least one: then the digit drops by one from tile to tile at most.
    below = 0
    for digit_of in tl.static_range(1, TOP):
        below += tiles_of(number_of(found, digit_of), ROWS)
    # If not all places may be added in 16 bits, those of the largest digit go to the high list.
    num_tops = found[TOP // 3] >> 16
    crowded = ROWS * (tiles_of(num_tops, ROWS) + below) > most_places
    tops = tl.where(crowded, 0, tops)
    end = tiles_of(tl.where(crowded, 0, num_tops), ROWS)
    ends = (end,)  # of TOP, TOP - 1, ..., 1
    for i in tl.static_range(1, TOP):
        end += tiles_of(number_of(found, TOP - i), ROWS)
        ends = ends + (end,)  # noqa: RUF005
    place_in_list = (token * lists + program).to(tl.int64)
    places = list_ptr + place_in_list * LENGTH
    # All places are empty at first.
    for start in range(0, end * ROWS, CHANNELS):
        at = start + local
        drops = at < 0
        for i in tl.static_range(TOP):
            drops = drops | (at // ROWS + 1 == ends[i])
        tl.store(places + at, -4 | drops.to(tl.int32) << 1, mask=at < end * ROWS)
    tl.debug_barrier()
    event = channel << 2 | negative
    middle = 0
    if UPPER:
        event = channel << 4 | level_of(count, edge0, edge1) << 2 | negative
        middle = tl.sum(middles_of(count, edge0, edge1, middle0, middle1))
    at, last = digit, digit
    for i in tl.static_range(1, TOP):
        rank = number_of(upto, TOP - i)
        at = tl.where(digit == TOP - i, ends[i - 1] * ROWS + rank - 1, at)
        last = tl.where(digit == TOP - i, ends[i], last)
    tl.store(places + at, event | (at // ROWS + 1 == last).to(tl.int32) << 1, mask=digit > 0)
    at = (upto[TOP // 3] >> 16) - tops
    for i in tl.static_range(64 // TOP - 1):
        tl.store(places + at + i, event | ((at + i) // ROWS + 1 == ends[0]).to(tl.int32) << 1, mask=i < tops)
    shift = tl.where(crowded, 3 + TOP // 16, 6)
    high = magnitude >> shift
    is_high = (high > 0).to(tl.int32)
    num_high = tl.sum(is_high, 0)
    if num_high > 0:
        here = high_ptr + place_in_list * 2 * CHANNELS + tl.cumsum(is_high, 0) - is_high
        tl.store(here, event, mask=is_high > 0)
        tl.store(here + CHANNELS, high, mask=is_high > 0)
    head = head_ptr + place_in_list * HEAD
    # Every row that is added is 128 too much, or 127 if it is subtracted, times its digit.
    tl.store(head, tl.sum((128 - negative) * (TOP * tops + digit), 0))
    tl.store(head + 1, num_high)
    tl.store(head + 2, shift)
    tl.store(head + 3, middle)
    for i in tl.static_range(TOP):
        tl.store(head + 4 + i, ends[i])
