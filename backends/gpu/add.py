"""Triton kernel of mode `spike` that adds the listed rows; `spike.py` says how, `list.py` what a list is."""

# ruff: noqa: PLR0912, PLR0915 - a kernel is one function
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportOperatorIssue=false
# pyright: reportIndexIssue=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportPossiblyUnboundVariable=false

from __future__ import annotations

import triton
import triton.language as tl

from .list import HEAD
from .upper import at_level


@triton.jit
def expanded(of_slot, ROWS: tl.constexpr, SLOTS: tl.constexpr):
    """Repeat values of slots, [SLOTS], for each of a tile's rows, [ROWS * SLOTS]."""
    return tl.reshape(tl.broadcast_to(of_slot[None, :], (ROWS, SLOTS)), (ROWS * SLOTS,))


@triton.jit
def places_at(places, length, tile, ROWS: tl.constexpr):
    """Load the places of a tile of every slot's share; those beyond its end are empty, which is negative."""
    return tl.load(places + tile * ROWS, mask=length > tile * ROWS, other=-4)


@triton.jit
def rows_at(rows_ptr, place, num_words, word, UPPER: tl.constexpr, PLANES: tl.constexpr):
    """Load the rows at some places, or their planes, for `words_of`; zeros where a place is empty."""
    is_row = (place >= 0)[:, None]
    row = tl.multiple_of((place >> (4 if UPPER else 2))[:, None] * num_words, [1, 4])
    here = rows_ptr + (row + word[None, :])
    upper = tl.load(here, mask=is_row, other=0, eviction_policy="evict_first")
    if not PLANES:
        return upper, upper
    reads_all = is_row & ((place >> 2 & 3) == 0)[:, None]
    return upper, tl.load(here + (num_words >> 1), mask=reads_all, other=0, eviction_policy="evict_first")


@triton.jit
def words_of(rows, level, keep0, keep1, MASKED: tl.constexpr, PLANES: tl.constexpr):
    """Return words of four integers of loaded rows; only upper bits where a level says so.

    It is apart from `rows_at` so that nothing waits for the rows before they are added.
    """
    w, lower = rows
    if PLANES:
        first, second = w << 4 & -252645136 | lower & 0x0F0F0F0F, w & -252645136 | lower >> 4 & 0x0F0F0F0F
        w = tl.interleave(first, second)
    if MASKED:
        w = w & at_level(level, keep0, keep1, -1)
    return w


@triton.jit
def words_of_tile(column, num_words, WORDS: tl.constexpr, PLANES: tl.constexpr):
    """Return the words of a row, or of its upper plane, that a tile reads; those beyond the last are read there again.

    A thread reads 16 bytes at a time.
    """
    LOADED: tl.constexpr = WORDS // 2 if PLANES else WORDS
    last = (num_words >> 1 if PLANES else num_words) - 4
    word = tl.minimum(column * LOADED + tl.arange(0, LOADED), last + tl.arange(0, LOADED) % 4)
    return tl.max_contiguous(tl.multiple_of(word, 4), 4)


@triton.jit
def add_rows(
    sums, rows, place, keep0, keep1,
    MASKED: tl.constexpr, PLANES: tl.constexpr, ROWS: tl.constexpr, SLOTS: tl.constexpr, WORDS: tl.constexpr,
):  # fmt: skip
    """Add a tile to the running sums, and these to the totals where the digit drops after it."""
    even, odd, sum0, sum1, sum2, sum3 = sums
    w = words_of(rows, (place >> 2 & 3)[:, None], keep0, keep1, MASKED, PLANES)
    # 0x80 in each byte adds 128; 0x7F complements as well; nothing where there is no row.
    lift = tl.where(place >= 0, -2139062144 ^ -(place & 1), 0)[:, None]
    even += tl.sum(tl.reshape((w ^ lift) & 0x00FF00FF, (ROWS, SLOTS, WORDS)), 0)
    odd += tl.sum(tl.reshape((w >> 8 ^ lift) & 0x00FF00FF, (ROWS, SLOTS, WORDS)), 0)
    drops = -(tl.max(tl.reshape((place & 2)[:, None], (ROWS, SLOTS, 1)), 0) >> 1)
    sum0 += even & 0xFFFF & drops
    sum1 += odd & 0xFFFF & drops
    sum2 += even >> 16 & 0xFFFF & drops
    sum3 += odd >> 16 & 0xFFFF & drops
    return even, odd, sum0, sum1, sum2, sum3


@triton.jit
def paired(low, high):
    """Pack two sums below 2^25, and the number 1."""
    return (high.to(tl.int64) << 26) + low + (1 << 52)


@triton.jit
def matrix_of(
    tile, rows0_ptr, rows1_ptr, rows2_ptr, scale0_ptr, scale1_ptr, scale2_ptr, bias0_ptr, bias1_ptr, bias2_ptr,
    words0, words1, words2, outputs0, outputs1, outputs2, MATRICES: tl.constexpr, WORDS: tl.constexpr,
):  # fmt: skip
    """Return a tile's matrix (rows, scale, bias, words, outputs), its first tile and output, and all outputs."""
    rows_ptr, scale_ptr, bias_ptr, num_words, num_outputs = rows0_ptr, scale0_ptr, bias0_ptr, words0, outputs0
    first_tile, first_output, all_outputs = 0, 0, outputs0
    if MATRICES > 1:
        tiles0 = tl.cdiv(words0, WORDS)
        all_outputs += outputs1
        if tile >= tiles0:
            rows_ptr, scale_ptr, bias_ptr, num_words, num_outputs = rows1_ptr, scale1_ptr, bias1_ptr, words1, outputs1
            first_tile, first_output = tiles0, outputs0
    if MATRICES > 2:
        tiles1 = tl.cdiv(words0, WORDS) + tl.cdiv(words1, WORDS)
        all_outputs += outputs2
        if tile >= tiles1:
            rows_ptr, scale_ptr, bias_ptr, num_words, num_outputs = rows2_ptr, scale2_ptr, bias2_ptr, words2, outputs2
            first_tile, first_output = tiles1, outputs0 + outputs1
    return rows_ptr, scale_ptr, bias_ptr, num_words, num_outputs, first_tile, first_output, all_outputs


@triton.jit
def add_events(
    list_ptr,  # this and the next two as in `list_events`
    high_ptr,
    head_ptr,
    threshold_ptr,
    y_ptr,  # [tokens, all outputs]: int32 sums, or rescaled activations
    sums_ptr,  # int64, zeros, [tokens, num_sums]: 4 * WORDS sums per tile, or half as many pairs
    rows0_ptr,  # weights, int32 words of four int8, [inputs, words], of up to three matrices that follow one another
    rows1_ptr,
    rows2_ptr,
    scale0_ptr,  # float32, [outputs]
    scale1_ptr,
    scale2_ptr,
    bias0_ptr,  # [outputs], or any pointer where there is none
    bias1_ptr,
    bias2_ptr,
    words0,
    words1,
    words2,
    outputs0,
    outputs1,
    outputs2,
    num_sums,
    lists,
    keep0,  # as of `UpperBits`
    keep1,
    MATRICES: tl.constexpr,
    UPPER: tl.constexpr,  # whether small counts read upper bits
    MASKED: tl.constexpr,  # whether lower bits come along, and are masked
    PLANES: tl.constexpr,  # whether rows are as of `planes_of`
    RESCALE: tl.constexpr,
    BIAS: tl.constexpr,  # all of them have a bias
    RESIDUAL: tl.constexpr,  # add to what is in y
    CHANNELS: tl.constexpr,
    ROWS: tl.constexpr,
    TOP: tl.constexpr,
    SHARES: tl.constexpr,  # of a list, a power of two
    SLOTS: tl.constexpr,
    WORDS: tl.constexpr,
    LENGTH: tl.constexpr,
    STAGES: tl.constexpr,
    PAIRS: tl.constexpr,
):
    """Add the rows of SLOTS shares of lists, 4 * WORDS columns of them; grid [tiles, programs, tokens]."""
    tile = tl.program_id(0)
    token = tl.program_id(2)
    rows_ptr, scale_ptr, bias_ptr, num_words, num_outputs, first_tile, first_output, all_outputs = matrix_of(
        tile, rows0_ptr, rows1_ptr, rows2_ptr, scale0_ptr, scale1_ptr, scale2_ptr, bias0_ptr, bias1_ptr, bias2_ptr,
        words0, words1, words2, outputs0, outputs1, outputs2, MATRICES, WORDS,
    )  # fmt: skip
    rows_ptr, num_words = tl.multiple_of(rows_ptr, 16), tl.multiple_of(num_words, 4)
    column = tile - first_tile  # of the tile, in its matrix
    word = words_of_tile(column, num_words, WORDS, PLANES)
    # All loaded here, so that nothing waits for them at the end.
    output = column * (4 * WORDS) + tl.arange(0, 4 * WORDS)
    y = y_ptr + token.to(tl.int64) * all_outputs + first_output + output
    if RESCALE:
        scale = tl.load(scale_ptr + output, mask=output < num_outputs, other=0)
        if UPPER:
            scale = scale * 0.5  # sums are in halves
        if BIAS:
            bias = tl.load(bias_ptr + output, mask=output < num_outputs, other=0).to(tl.float32)
        if RESIDUAL:
            before = tl.load(y, mask=output < num_outputs, other=0).to(tl.float32)
    slot = tl.program_id(1) * SLOTS + tl.arange(0, SLOTS)
    list_of_slot = slot // SHARES
    share = slot % SHARES
    is_slot = list_of_slot < lists
    place_in_list = (token * lists + list_of_slot).to(tl.int64)
    head = head_ptr + place_in_list * HEAD
    num_tiles = tl.load(head + 3 + TOP, mask=is_slot, other=0)
    begin = num_tiles * share // SHARES
    end = num_tiles * (share + 1) // SHARES
    is_first = is_slot & (share == 0)
    lifted = tl.load(head, mask=is_first, other=0)
    num_high = tl.load(head + 1, mask=is_first, other=0)
    if UPPER:
        middle = tl.load(head + 3, mask=is_first, other=0)
    ends = tl.load(head[:, None] + 4 + tl.arange(0, TOP)[None, :], mask=is_slot[:, None], other=0)
    digits_left = tl.sum((ends > end[:, None]).to(tl.int32), 1)
    if RESCALE:
        threshold = tl.load(threshold_ptr + token)
    # Row r of a tile is for slot r % SLOTS; the rows of a slot are those of one thread for each word.
    row_of_slot = tl.arange(0, ROWS * SLOTS) // SLOTS
    places = list_ptr + expanded(place_in_list * LENGTH + begin * ROWS, ROWS, SLOTS) + row_of_slot
    length = expanded((end - begin) * ROWS, ROWS, SLOTS) - row_of_slot
    # Running sums of even and odd columns, two to a word, and totals.
    even = tl.zeros([SLOTS, WORDS], tl.int32)
    odd = tl.zeros([SLOTS, WORDS], tl.int32)
    sum0 = tl.zeros([SLOTS, WORDS], tl.int32)
    sum1 = tl.zeros([SLOTS, WORDS], tl.int32)
    sum2 = tl.zeros([SLOTS, WORDS], tl.int32)
    sum3 = tl.zeros([SLOTS, WORDS], tl.int32)
    sums = (even, odd, sum0, sum1, sum2, sum3)
    # While a tile is added, the rows of the next tiles are under way, and the places of those after them.
    place0 = places_at(places, length, 0, ROWS)
    place1 = places_at(places, length, 1, ROWS)
    next0 = places_at(places, length, STAGES, ROWS)
    next1 = places_at(places, length, STAGES + 1, ROWS)
    w0 = rows_at(rows_ptr, place0, num_words, word, UPPER, PLANES)
    w1 = rows_at(rows_ptr, place1, num_words, word, UPPER, PLANES)
    if STAGES == 3:
        place2 = places_at(places, length, 2, ROWS)
        next2 = places_at(places, length, STAGES + 2, ROWS)
        w2 = rows_at(rows_ptr, place2, num_words, word, UPPER, PLANES)
    for i in tl.range(2 * STAGES, tl.max(end - begin, 0) + 2 * STAGES, STAGES, num_stages=1):
        sums = add_rows(sums, w0, place0, keep0, keep1, MASKED, PLANES, ROWS, SLOTS, WORDS)
        w0 = rows_at(rows_ptr, next0, num_words, word, UPPER, PLANES)
        place0, next0 = next0, places_at(places, length, i, ROWS)
        sums = add_rows(sums, w1, place1, keep0, keep1, MASKED, PLANES, ROWS, SLOTS, WORDS)
        w1 = rows_at(rows_ptr, next1, num_words, word, UPPER, PLANES)
        place1, next1 = next1, places_at(places, length, i + 1, ROWS)
        if STAGES == 3:
            sums = add_rows(sums, w2, place2, keep0, keep1, MASKED, PLANES, ROWS, SLOTS, WORDS)
            w2 = rows_at(rows_ptr, next2, num_words, word, UPPER, PLANES)
            place2, next2 = next2, places_at(places, length, i + 2, ROWS)
    even, odd, sum0, sum1, sum2, sum3 = sums
    # The running sums count once more for every digit that is left: 1, 2, 4, 8 or 16 times at a go.
    for bit in tl.static_range(4 + TOP // 16):
        more = -(digits_left >> bit & 1)[:, None]
        sum0 += (even & 0xFFFF & more) << bit
        sum1 += (odd & 0xFFFF & more) << bit
        sum2 += (even >> 16 & 0xFFFF & more) << bit
        sum3 += (odd >> 16 & 0xFFFF & more) << bit
    lifted = tl.sum(lifted, 0)
    sum0 = tl.sum(sum0, 0) - lifted
    sum1 = tl.sum(sum1, 0) - lifted
    sum2 = tl.sum(sum2, 0) - lifted
    sum3 = tl.sum(sum3, 0) - lifted
    # Large counts are rare: a row at a time, shifted for every binary digit.
    if tl.sum(num_high, 0) > 0:
        of_program = tl.program_id(1) * SLOTS
        for number in range(tl.cdiv(of_program, SHARES), tl.minimum(tl.cdiv(of_program + SLOTS, SHARES), lists)):
            place_in_lists = (token * lists + number).to(tl.int64)
            here = head_ptr + place_in_lists * HEAD
            for i in range(0, tl.load(here + 1)):
                place = tl.load(high_ptr + place_in_lists * 2 * CHANNELS + i)
                offset = (place >> (4 if UPPER else 2)).to(tl.int64) * num_words
                sign = -(place & 1)
                row = tl.load(rows_ptr + offset + word)
                lower = row
                if PLANES:
                    lower = tl.load(rows_ptr + offset + word + (num_words >> 1), mask=(place >> 2 & 3) == 0, other=0)
                single = words_of((row, lower), place >> 2 & 3, keep0, keep1, MASKED, PLANES)
                rest = tl.load(high_ptr + (place_in_lists * 2 + 1) * CHANNELS + i)
                shift = tl.load(here + 2)
                while rest > 0:
                    if rest & 1:
                        sum0 += ((single << 24 >> 24 ^ sign) - sign) << shift
                        sum1 += ((single << 16 >> 24 ^ sign) - sign) << shift
                        sum2 += ((single << 8 >> 24 ^ sign) - sign) << shift
                        sum3 += ((single >> 24 ^ sign) - sign) << shift
                    rest = rest >> 1
                    shift += 1
    if UPPER:
        middle = tl.sum(middle, 0)
        sum0 = (sum0 << 1) + middle
        sum1 = (sum1 << 1) + middle
        sum2 = (sum2 << 1) + middle
        sum3 = (sum3 << 1) + middle
    # Two sums of 26 bits (or one of 48) share 64 bits with the number of programs that they hold: whose addition
    # completes the number has the sums. So there is no second pass, and half as many atomic additions as sums.
    here = sums_ptr + token.to(tl.int64) * num_sums
    sum_place = tile * (4 * WORDS) + tl.arange(0, 4 * WORDS)
    if PAIRS:
        pair = tile * (2 * WORDS) + tl.arange(0, 2 * WORDS)
        mine = tl.interleave(paired(sum0, sum1), paired(sum2, sum3))
        both = mine + tl.atomic_add(here + pair, mine, sem="relaxed")
        low = both << 38 >> 38
        both = both - low >> 26
        high = both << 38 >> 38
        num_arrived = both - high >> 26
        total = tl.interleave(low, high).to(tl.int32)
        num_arrived = tl.interleave(num_arrived, num_arrived)
    else:
        mine = tl.interleave(tl.interleave(sum0, sum2), tl.interleave(sum1, sum3)).to(tl.int64) + (1 << 48)
        both = mine + tl.atomic_add(here + sum_place, mine, sem="relaxed")
        low = both << 16 >> 16
        num_arrived = both - low >> 48
        total = low.to(tl.int32)
    if RESCALE:
        total = total.to(tl.float32) * scale * threshold
        if BIAS:
            total += bias
        if RESIDUAL:
            total = before + total.to(y_ptr.dtype.element_ty).to(tl.float32)
    is_last = (num_arrived == tl.num_programs(1)) & (output < num_outputs)
    tl.store(y, total.to(y_ptr.dtype.element_ty), mask=is_last)
