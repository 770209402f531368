"""The event kernel of the CPU backend: adds and subtracts the weight rows of the channels that spike.

A channel's count is written in signed hexadecimal digits, -8 to 8. Rows whose digits have the same magnitude are summed
in one 16-bit bucket (added for digits > 0, subtracted for digits < 0). A bucket is shifted into the total when it is
full or the rows end. So a row with |count| <= 8 is added once, and no weight is multiplied.
"""

# Type checkers do not know that numba passes an intrinsic its first argument.
# pyright: reportCallIssue=false

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ...compiled import compiled

DIGIT_BITS = 4
LARGEST_DIGIT = 8
# The magnitudes of a count's digits add up to less than this many times the count (9 = 16 - 7: 23 / 9; the limit is
# 2.75), so no partial sum of shifted buckets exceeds this many times the largest sum of the rows.
DIGITS_WEIGH = 3
# Rows that a bucket holds: |sum of 255 INT8 weights| <= 255 * 128 = 32640 fits 16 bits, 256 weights of -128 would not.
_BUCKET_ROWS = 255
# Rows added to a bucket before checking again whether it is full.
_BATCH = 64
# Channels sorted together: enough of them in each bucket to add eight rows at a time, few enough that memory is read
# nearly in order.
_TILE = 1024
# While rows are added, the first cache lines of rows that come this much later are fetched into the second-level cache.
# Long rows need no such help: the processor prefetches them by itself.
_ROWS_AHEAD, _LINES_AHEAD, _LINE, _LONG_ROW = 32, 9, 64, 2048


@compiled
def add_events(count, rows, pass_outputs, buckets, total):  # pragma: no cover - compiled
    """Add count @ rows to total.

    count: int32 or int64 [in]; rows: int8 [in, out]; pass_outputs: outputs visited together, at most
    buckets.shape[1]; buckets: int16 [8 * digits or more, ...], zero before and after; total: int32 or int64 [out].
    """
    digits = num_digits(count)
    channels = np.empty(digits * count.shape[0], np.int32)
    ends = np.empty((num_tiles(count), 2 * LARGEST_DIGIT * digits), np.int32)
    list_events(count, channels, ends)
    for start in range(0, total.shape[0], pass_outputs):
        add_listed(channels, ends, rows, start, buckets, total[start : min(start + pass_outputs, total.shape[0])])


@compiled
def list_events(count, channels, ends):  # pragma: no cover - compiled
    """List the channels that spike, tile by tile, those of a bucket and sign together.

    count: int32 or int64 [in]; channels: int32 [digits * in or more], filled; ends: int32 [tiles, 2 * buckets], filled
    with where in `channels` the added rows of bucket b end (2 * b), and the subtracted ones, which follow (2 * b + 1).
    """
    lists = np.empty((1 + ends.shape[1], _TILE), np.int32)
    length = np.empty(len(lists), np.int64)
    num = 0
    for tile in range(ends.shape[0]):
        _sort(count, tile * _TILE, lists, length)
        for which in range(1, length.shape[0]):
            for i in range(length[which]):
                channels[num + i] = lists[which, i]
            num += length[which]
            ends[tile, which - 1] = num


@compiled
def add_listed(channels, ends, rows, start, buckets, block):  # pragma: no cover - compiled
    """Add what `list_events` listed to the sums of the outputs from `start` on.

    rows: int8 [in, out]; buckets: int16 [buckets or more, block.shape[0] or more], zero before and after; block: int32
    or int64, the sums of these outputs.
    """
    num_buckets = ends.shape[1] // 2
    filled = np.zeros(num_buckets, np.int64)
    at = 0
    for tile in range(ends.shape[0]):
        for b in range(num_buckets):
            bucket = buckets[b, : block.shape[0]]
            # Two calls with a constant sign: with a variable one the compiled loops take twice as long.
            end = ends[tile, 2 * b]
            filled[b] = _fill(rows, channels[at:], end - at, 0, start, bucket, filled[b], b, block)
            at = end
            end = ends[tile, 2 * b + 1]
            filled[b] = _fill(rows, channels[at:], end - at, -1, start, bucket, filled[b], b, block)
            at = end
    for b in range(num_buckets):
        if filled[b] > 0:
            _empty(buckets[b, : block.shape[0]], b, block)


@compiled
def num_tiles(count):  # pragma: no cover - compiled
    """Return how many tiles the channels are listed in."""
    return (count.shape[0] + _TILE - 1) // _TILE


@compiled
def num_digits(count):  # pragma: no cover - compiled
    """Return the number of signed hexadecimal digits of the largest |count|."""
    largest = 0
    for channel in range(count.shape[0]):
        largest = max(largest, abs(count[channel]))
    num = 0
    while largest > 0:
        num += 1
        # What is left after taking a digit off: 8 leaves nothing, and 9 leaves 1 = (9 + 7) >> 4.
        largest = (largest + LARGEST_DIGIT - 1) >> DIGIT_BITS
    return num


@compiled
def _sort(count, first, lists, length):  # pragma: no cover - compiled
    """List the channels of the tile from `first` on by digit: list 1 + 2 * bucket, the next one for negative digits.

    Bucket 8 * level + |digit| - 1 is that of a digit. Silent channels go to list 0, which is never read: so the usual
    channel of one digit takes no branch that depends on its count, which a processor could not predict.
    """
    length[:] = 0
    for channel in range(first, min(first + _TILE, count.shape[0])):
        rest = abs(count[channel])
        minus = 1 if count[channel] < 0 else 0
        if rest <= LARGEST_DIGIT:
            at = max(2 * rest - 1 + minus, 0)
            lists[at, length[at]] = channel
            length[at] += 1
            continue
        level = 0
        while rest > 0:
            digit = rest & (2 * LARGEST_DIGIT - 1)
            rest >>= DIGIT_BITS
            if digit > LARGEST_DIGIT:
                digit -= 2 * LARGEST_DIGIT
                rest += 1
            if digit != 0:
                negative = minus if digit > 0 else 1 - minus
                at = 2 * (LARGEST_DIGIT * level + abs(digit)) - 1 + negative
                lists[at, length[at]] = channel
                length[at] += 1
            level += 1


@intrinsic
def _prefetch(typing_context, rows, row, column):  # pragma: no cover - compiled
    """Fetch an element of a 2D array into the second-level cache, without waiting for it."""

    def generate(context, builder, signature, arguments):
        array_type = signature.args[0]
        array = context.make_array(array_type)(context, builder, arguments[0])
        shape, strides = cgutils.unpack_tuple(builder, array.shape), cgutils.unpack_tuple(builder, array.strides)
        pointer = cgutils.get_item_pointer2(
            context, builder, array.data, shape, strides, array_type.layout, arguments[1:], wraparound=False
        )
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        to_read, second_level, data = (ir.Constant(number, value) for value in (0, 2, 1))
        builder.call(function, [builder.bitcast(pointer, byte), to_read, second_level, data])
        return context.get_dummy_value()

    return types.void(rows, types.intp, types.intp), generate


@compiled
def _fill(rows, listed, num, sign, start, bucket, filled, b, block):  # pragma: no cover - compiled
    """Add the first `num` listed rows to the bucket, and empty it into block before it is full.

    Returns how many rows the bucket holds, `filled` before.
    """
    for first in range(0, num, _BATCH):
        batch = min(num - first, _BATCH)
        if filled + batch > _BUCKET_ROWS:
            _empty(bucket, b, block)
            filled = 0
        _add_rows(rows, listed[first:], batch, sign, start, bucket)
        filled += batch
    return filled


@compiled
def _add_rows(rows, listed, num, sign, start, bucket):  # pragma: no cover - compiled
    """Add rows[c, start:] to the bucket for the first `num` listed c if sign is 0, subtract them if it is -1.

    Eight rows at a time, so that the bucket is loaded and stored less often, and all in 16 bits, so that a vector
    register holds many sums. (v ^ -1) + 1 is -v.
    """
    stop = start + bucket.shape[0]
    prefetch_to = min(start + _LINES_AHEAD * _LINE, stop) if stop - start <= _LONG_ROW else start
    flip = np.int16(sign)
    eights = num // 8 * 8
    for e in range(0, eights, 8):
        for ahead in range(e + _ROWS_AHEAD, min(e + _ROWS_AHEAD + 8, listed.shape[0])):
            for column in range(start, prefetch_to, _LINE):
                _prefetch(rows, listed[ahead], column)
        r0, r1 = rows[listed[e], start:stop], rows[listed[e + 1], start:stop]
        r2, r3 = rows[listed[e + 2], start:stop], rows[listed[e + 3], start:stop]
        r4, r5 = rows[listed[e + 4], start:stop], rows[listed[e + 5], start:stop]
        r6, r7 = rows[listed[e + 6], start:stop], rows[listed[e + 7], start:stop]
        for i in range(bucket.shape[0]):
            four = np.int16(np.int16(r0[i]) + np.int16(r1[i])) + np.int16(np.int16(r2[i]) + np.int16(r3[i]))
            more = np.int16(np.int16(r4[i]) + np.int16(r5[i])) + np.int16(np.int16(r6[i]) + np.int16(r7[i]))
            eight = np.int16(np.int16(four) + np.int16(more))
            bucket[i] = np.int16(bucket[i] + np.int16(np.int16(eight ^ flip) - flip))
    twos = eights + (num - eights) // 2 * 2
    for e in range(eights, twos, 2):
        r0, r1 = rows[listed[e], start:stop], rows[listed[e + 1], start:stop]
        for i in range(bucket.shape[0]):
            two = np.int16(np.int16(r0[i]) + np.int16(r1[i]))
            bucket[i] = np.int16(bucket[i] + np.int16(np.int16(two ^ flip) - flip))
    for e in range(twos, num):
        r0 = rows[listed[e], start:stop]
        for i in range(bucket.shape[0]):
            bucket[i] = np.int16(bucket[i] + np.int16(np.int16(np.int16(r0[i]) ^ flip) - flip))


@compiled
def _empty(bucket, b, block):  # pragma: no cover - compiled
    """Add a bucket times its weight to block, by shifts: one addition for each binary digit; then clear the bucket."""
    weight = (b % LARGEST_DIGIT + 1) << (DIGIT_BITS * (b // LARGEST_DIGIT))
    bit = 0
    while weight >> bit:
        if (weight >> bit) & 1:
            for i in range(block.shape[0]):
                block[i] += bucket[i] << bit
        bit += 1
    bucket[:] = 0
