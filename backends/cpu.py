"""Event-driven accumulation on the CPU: adds and subtracts the weight rows of the channels that spike.

A channel's spikes over all timesteps are gathered into the number of times that its row counts, and this number is
written in signed hexadecimal digits, -8 to 8. Rows with the same digit magnitude are summed in one 16-bit bucket
(added for digits > 0, subtracted for digits < 0); a bucket is shifted into the 32-bit total when it is full or the
rows end. So a row of |count| <= 8 is added once, whatever code it came in, and no weight is multiplied.
"""

from __future__ import annotations

import functools
import os
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import torch
from torch import Tensor

from .base import BACKENDS, INT32, MAX_WEIGHT, Backend

_DIGIT_BITS = 4
_LARGEST_DIGIT = 8
# Rows that a bucket holds: |sum of 255 INT8 weights| <= 255 * 128 = 32640 fits 16 bits, 256 weights of -128 would not.
# Also the number of channels visited together: a row with two digits is then read from memory once, and again from
# the cache, and an emptied bucket has room for all of them.
_TILE = 255
# Outputs per pass. Short passes keep the buckets in the first-level cache; long ones read memory in long runs, which
# is faster once the weights do not fit the caches.
_SHORT_PASS, _LONG_PASS = 2048, 16384
_CACHED_BYTES = 4 * 2**20
# Weights times tokens from which a second thread saves more than waking it costs.
_WORTH_THREADS = 2**22


@BACKENDS.register("cpu")
class Cpu(Backend):
    """Adds rows of INT8 weights, those of channels that spike and no others.

    Tokens (or the outputs, if there are fewer tokens) are divided over `torch.get_num_threads()` threads; integers
    make the result the same for any number of them.
    """

    def why_unavailable(self, device: torch.device) -> str | None:
        """Return a reason if the tensors are not in main memory."""
        return None if device.type == "cpu" else f"the tensors are on {device}; this backend works on a CPU only."

    def _accumulate(self, spikes: Tensor, timestep_weight: Tensor, weight: Tensor) -> Tensor:
        num_tokens, num_outputs = spikes.shape[1], weight.shape[0]
        rows = weight.t().contiguous().numpy()
        times = np.empty((num_tokens, rows.shape[0]), np.int64)
        charge = _gather(spikes.contiguous().numpy(), timestep_weight.numpy(), times)
        # The digits of a count weigh less than three times the count (9 = 16 - 7: 23 / 9; the limit is 2.75), so no
        # partial sum of shifted buckets exceeds three times what the rows can add up to.
        narrow = 3 * MAX_WEIGHT * charge <= INT32.max
        total = torch.empty(num_tokens, num_outputs, dtype=torch.int32 if narrow else torch.int64)
        sums = total.numpy()
        pass_outputs = _SHORT_PASS if rows.size <= _CACHED_BYTES else _LONG_PASS
        num_threads = torch.get_num_threads() if num_tokens * rows.size >= _WORTH_THREADS else 1
        by_token = num_tokens >= num_threads
        bounds = np.linspace(0, num_tokens if by_token else num_outputs, num_threads + 1).astype(int).tolist()

        def work(part: int) -> None:
            low, high = bounds[part], bounds[part + 1]
            tokens, outputs = ((low, high), (0, num_outputs)) if by_token else ((0, num_tokens), (low, high))
            _add_events(times, rows, tokens, outputs, pass_outputs, sums)

        others = [_pool(num_threads, os.getpid()).submit(work, part) for part in range(1, num_threads)]
        work(0)
        for other in others:
            other.result()
        return total


@functools.lru_cache(maxsize=1)
def _pool(num_threads: int, process: int) -> ThreadPoolExecutor:
    """Return the threads that help the calling one; new ones in a forked process, which has none of its parent's."""
    return ThreadPoolExecutor(num_threads)


@numba.njit(nogil=True, cache=True)
def _add_events(times, rows, tokens, outputs, pass_outputs, total):  # pragma: no cover - compiled
    """Fill total[tokens, outputs] with times @ rows.

    times: int64 [tokens, in]; rows: int8 [in, out]; tokens, outputs: half-open ranges; pass_outputs: outputs per pass;
    total: int32 or int64 [tokens, out].
    """
    num_tiles = (times.shape[1] + _TILE - 1) // _TILE
    num_buckets = _LARGEST_DIGIT * _num_digits(times[tokens[0] : tokens[1]])
    channels = np.empty((num_tiles, num_buckets, _TILE), np.int32)
    num_plus = np.empty((num_tiles, num_buckets), np.int64)
    num_minus = np.empty((num_tiles, num_buckets), np.int64)
    buckets = np.zeros((num_buckets, pass_outputs), np.int16)
    filled = np.zeros(num_buckets, np.int64)
    for token in range(tokens[0], tokens[1]):
        _sort(times[token], channels, num_plus, num_minus)
        for start in range(outputs[0], outputs[1], pass_outputs):
            block = total[token, start : min(start + pass_outputs, outputs[1])]
            block[:] = 0
            for tile in range(num_tiles):
                for b in range(num_buckets):
                    plus, minus = num_plus[tile, b], num_minus[tile, b]
                    if plus + minus == 0:
                        continue
                    if filled[b] + plus + minus > _TILE:
                        _empty(buckets[b], b, block)
                        filled[b] = 0
                    sums = buckets[b, : block.shape[0]]
                    _add_rows(rows, channels[tile, b, :plus], 0, start, sums)
                    _add_rows(rows, channels[tile, b, _TILE - minus :], -1, start, sums)
                    filled[b] += plus + minus
            for b in range(num_buckets):
                if filled[b] > 0:
                    _empty(buckets[b], b, block)
                    filled[b] = 0


@numba.njit(nogil=True, cache=True)
def _gather(planes, weights, times):  # pragma: no cover - compiled
    """Fill times, int64 [tokens, in], with how often each row counts; return the largest sum of |times| of a token.

    planes: int8 [T, tokens, in]; weights: int64 [T].
    """
    largest = 0
    for token in range(times.shape[0]):
        counted = times[token]
        counted[:] = 0
        for t in range(planes.shape[0]):
            plane, weight = planes[t, token], weights[t]
            for channel in range(counted.shape[0]):
                # Without branches, so that the compiler uses vector registers.
                counted[channel] += (weight if plane[channel] > 0 else 0) - (weight if plane[channel] < 0 else 0)
        charge = 0
        for channel in range(counted.shape[0]):
            charge += abs(counted[channel])
        largest = max(largest, charge)
    return largest


@numba.njit(nogil=True, cache=True)
def _num_digits(times):  # pragma: no cover - compiled
    """Return the number of signed hexadecimal digits of the largest |times|."""
    largest = 0
    for token in range(times.shape[0]):
        for channel in range(times.shape[1]):
            largest = max(largest, abs(times[token, channel]))
    num_digits = 0
    while largest > 0:
        num_digits += 1
        # What is left after taking a digit off: 8 leaves nothing, and 9 leaves 1 = (9 + 7) >> 4.
        largest = (largest + _LARGEST_DIGIT - 1) >> _DIGIT_BITS
    return num_digits


@numba.njit(nogil=True, cache=True)
def _sort(times, channels, num_plus, num_minus):  # pragma: no cover - compiled
    """List the channels of each tile by digit: bucket 8 * level + |digit| - 1.

    Channels of positive digits fill their row of `channels` from the front, those of negative ones from the back.
    """
    num_plus[:] = 0
    num_minus[:] = 0
    for channel in range(times.shape[0]):
        rest = abs(times[channel])
        tile, b = channel // _TILE, -1
        while rest > 0:
            digit = rest & (2 * _LARGEST_DIGIT - 1)
            rest >>= _DIGIT_BITS
            if digit > _LARGEST_DIGIT:
                digit -= 2 * _LARGEST_DIGIT
                rest += 1
            if digit != 0:
                at = b + abs(digit)
                if (digit > 0) == (times[channel] > 0):
                    channels[tile, at, num_plus[tile, at]] = channel
                    num_plus[tile, at] += 1
                else:
                    num_minus[tile, at] += 1
                    channels[tile, at, _TILE - num_minus[tile, at]] = channel
            b += _LARGEST_DIGIT


@numba.njit(nogil=True, cache=True)
def _add_rows(rows, channels, sign, start, bucket):  # pragma: no cover - compiled
    """Add rows[c, start:] to the bucket for every c if sign is 0, subtract them if it is -1.

    Four rows at a time, to load and store the bucket less often, and all in 16 bits, so that a vector register holds
    as many sums as it can. (v ^ -1) + 1 is -v.
    """
    stop = start + bucket.shape[0]
    flip = np.int16(sign)
    fours = channels.shape[0] // 4 * 4
    for e in range(0, fours, 4):
        r0, r1 = rows[channels[e], start:stop], rows[channels[e + 1], start:stop]
        r2, r3 = rows[channels[e + 2], start:stop], rows[channels[e + 3], start:stop]
        for i in range(bucket.shape[0]):
            four = np.int16(np.int16(r0[i]) + np.int16(r1[i])) + np.int16(np.int16(r2[i]) + np.int16(r3[i]))
            bucket[i] = np.int16(bucket[i] + np.int16(np.int16(np.int16(four) ^ flip) - flip))
    for e in range(fours, channels.shape[0]):
        r0 = rows[channels[e], start:stop]
        for i in range(bucket.shape[0]):
            bucket[i] = np.int16(bucket[i] + np.int16(np.int16(np.int16(r0[i]) ^ flip) - flip))


@numba.njit(nogil=True, cache=True)
def _empty(bucket, b, block):  # pragma: no cover - compiled
    """Add what a bucket's rows count for to block, by shifts: one addition for each binary digit; then clear it."""
    times = (b % _LARGEST_DIGIT + 1) << (_DIGIT_BITS * (b // _LARGEST_DIGIT))
    bit = 0
    while times >> bit:
        if (times >> bit) & 1:
            for i in range(block.shape[0]):
                block[i] += bucket[i] << bit
        bit += 1
    bucket[: block.shape[0]] = 0
