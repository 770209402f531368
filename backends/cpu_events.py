"""The event kernel of the CPU backend: adds and subtracts the weight rows of the channels that spike.

The number of times that a channel's row counts is written in signed hexadecimal digits, -8 to 8. Rows with the same
digit magnitude are summed in one 16-bit bucket (added for digits > 0, subtracted for digits < 0); a bucket is shifted
into the total when it is full or the rows end. So a row of |count| <= 8 is added once, and no weight is multiplied.

Who edits this file deletes __pycache__: numba does not notice that cpu.py and cpu_layer.py have compiled it in.
"""

from __future__ import annotations

import numba
import numpy as np

DIGIT_BITS = 4
LARGEST_DIGIT = 8
# The digits of a count weigh less than this many times the count (9 = 16 - 7: 23 / 9; the limit is 2.75), so no partial
# sum of shifted buckets exceeds this many times what the rows can add up to.
DIGITS_WEIGH = 3
# Rows that a bucket holds: |sum of 255 INT8 weights| <= 255 * 128 = 32640 fits 16 bits, 256 weights of -128 would not.
_BUCKET_ROWS = 255
# Rows added to a bucket at once, before anybody looks whether it is full.
_BATCH = 64
# Channels sorted together: enough of them in each bucket to add eight rows at a time, few enough that memory is read
# nearly in order.
_TILE = 1024


@numba.njit(nogil=True, cache=True)
def add_events(times, rows, pass_outputs, buckets, total):  # pragma: no cover - compiled
    """Add times @ rows to total.

    times: int32 or int64 [in]; rows: int8 [in, out]; pass_outputs: outputs visited together, at most
    buckets.shape[1]; buckets: int16 [8 * digits or more, ...], zero before and after; total: int32 or int64 [out].
    """
    num_buckets = LARGEST_DIGIT * num_digits(times)
    channels = np.empty((1 + 2 * num_buckets, _TILE), np.int32)
    length = np.empty(len(channels), np.int64)
    filled = np.zeros(num_buckets, np.int64)
    for start in range(0, total.shape[0], pass_outputs):
        block = total[start : min(start + pass_outputs, total.shape[0])]
        for tile in range(0, times.shape[0], _TILE):
            _sort(times, tile, channels, length)
            for b in range(num_buckets):
                bucket = buckets[b, : block.shape[0]]
                plus, minus = channels[1 + 2 * b, : length[1 + 2 * b]], channels[2 + 2 * b, : length[2 + 2 * b]]
                # Two calls with a constant sign: with a variable one the compiled loops take twice as long.
                filled[b] = _fill(rows, plus, 0, start, bucket, filled[b], b, block)
                filled[b] = _fill(rows, minus, -1, start, bucket, filled[b], b, block)
        for b in range(num_buckets):
            if filled[b] > 0:
                _empty(buckets[b, : block.shape[0]], b, block)
                filled[b] = 0


@numba.njit(nogil=True, cache=True)
def num_digits(times):  # pragma: no cover - compiled
    """Return the number of signed hexadecimal digits of the largest |times|."""
    largest = 0
    for channel in range(times.shape[0]):
        largest = max(largest, abs(times[channel]))
    num = 0
    while largest > 0:
        num += 1
        # What is left after taking a digit off: 8 leaves nothing, and 9 leaves 1 = (9 + 7) >> 4.
        largest = (largest + LARGEST_DIGIT - 1) >> DIGIT_BITS
    return num


@numba.njit(nogil=True, cache=True)
def _sort(times, first, channels, length):  # pragma: no cover - compiled
    """List the channels of the tile from `first` on by digit: list 1 + 2 * bucket, the next one for negative digits.

    Bucket 8 * level + |digit| - 1 is that of a digit. Silent channels go to list 0, which nobody reads: so the usual
    channel of one digit takes no branch that depends on its count, which a processor could not foretell.
    """
    length[:] = 0
    for channel in range(first, min(first + _TILE, times.shape[0])):
        rest = abs(times[channel])
        minus = 1 if times[channel] < 0 else 0
        if rest <= LARGEST_DIGIT:
            at = max(2 * rest - 1 + minus, 0)
            channels[at, length[at]] = channel
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
                channels[at, length[at]] = channel
                length[at] += 1
            level += 1


@numba.njit(nogil=True, cache=True)
def _fill(rows, channels, sign, start, bucket, filled, b, block):  # pragma: no cover - compiled
    """Add the rows to the bucket, which holds `filled` of them, and empty it into block on the way; return `filled`."""
    for first in range(0, channels.shape[0], _BATCH):
        batch = channels[first : first + _BATCH]
        if filled + batch.shape[0] > _BUCKET_ROWS:
            _empty(bucket, b, block)
            filled = 0
        _add_rows(rows, batch, sign, start, bucket)
        filled += batch.shape[0]
    return filled


@numba.njit(nogil=True, cache=True)
def _add_rows(rows, channels, sign, start, bucket):  # pragma: no cover - compiled
    """Add rows[c, start:] to the bucket for every c if sign is 0, subtract them if it is -1.

    Eight rows at a time, to load and store the bucket less often, and all in 16 bits, so that a vector register holds
    as many sums as it can. (v ^ -1) + 1 is -v.
    """
    stop = start + bucket.shape[0]
    flip = np.int16(sign)
    eights = channels.shape[0] // 8 * 8
    for e in range(0, eights, 8):
        r0, r1 = rows[channels[e], start:stop], rows[channels[e + 1], start:stop]
        r2, r3 = rows[channels[e + 2], start:stop], rows[channels[e + 3], start:stop]
        r4, r5 = rows[channels[e + 4], start:stop], rows[channels[e + 5], start:stop]
        r6, r7 = rows[channels[e + 6], start:stop], rows[channels[e + 7], start:stop]
        for i in range(bucket.shape[0]):
            four = np.int16(np.int16(r0[i]) + np.int16(r1[i])) + np.int16(np.int16(r2[i]) + np.int16(r3[i]))
            more = np.int16(np.int16(r4[i]) + np.int16(r5[i])) + np.int16(np.int16(r6[i]) + np.int16(r7[i]))
            eight = np.int16(np.int16(four) + np.int16(more))
            bucket[i] = np.int16(bucket[i] + np.int16(np.int16(eight ^ flip) - flip))
    twos = eights + (channels.shape[0] - eights) // 2 * 2
    for e in range(eights, twos, 2):
        r0, r1 = rows[channels[e], start:stop], rows[channels[e + 1], start:stop]
        for i in range(bucket.shape[0]):
            two = np.int16(np.int16(r0[i]) + np.int16(r1[i]))
            bucket[i] = np.int16(bucket[i] + np.int16(np.int16(two ^ flip) - flip))
    for e in range(twos, channels.shape[0]):
        r0 = rows[channels[e], start:stop]
        for i in range(bucket.shape[0]):
            bucket[i] = np.int16(bucket[i] + np.int16(np.int16(np.int16(r0[i]) ^ flip) - flip))


@numba.njit(nogil=True, cache=True)
def _empty(bucket, b, block):  # pragma: no cover - compiled
    """Add what a bucket's rows count for to block, by shifts: one addition for each binary digit; then clear it."""
    times = (b % LARGEST_DIGIT + 1) << (DIGIT_BITS * (b // LARGEST_DIGIT))
    bit = 0
    while times >> bit:
        if (times >> bit) & 1:
            for i in range(block.shape[0]):
                block[i] += bucket[i] << bit
        bit += 1
    bucket[:] = 0
