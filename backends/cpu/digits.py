"""Events of blocks of input channels: the signed binary digits of their counts, listed by place.

A count is a sum of powers of 2, each added or subtracted and no two of them neighbours (the signed-digit code), so it
has the fewest digits, 1.4 on average at k = 3. Each digit is an event: the channel's row is added once, or subtracted.
The sum of the rows of a place is doubled until it reaches the next lower place that has digits. Nothing is multiplied.
"""

# Type checkers do not know that numba passes an intrinsic its first argument.
# pyright: reportCallIssue=false

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ...coding.base import MAX_LOSSLESS_COUNT
from ...compiled import compiled
from .simd import lanes_with, lowest_bit, put_int32, put_uint8

_LANES = 32
_PLACES = (3 * MAX_LOSSLESS_COUNT).bit_length() - 1
# Every second place of a count has a digit at most.
_MOST_DIGITS = (_PLACES + 1) // 2


class Digits(NamedTuple):
    """The events of all blocks of an input.

    The events of a block are divided into runs, each of one place, from the highest place on.

    Attributes:
        channel: int32 [events], counted within the block.
        flip: uint8 [events]; what every byte of the row is combined with (xor) before it is added: 255 turns an
            unsigned byte b into 255 - b.
        mask: uint8 [events]; the bits of a byte of the row that are added then. Filled only if small counts read upper
            bits, and so are `masked` and `lift`.
        end: int32 [runs]: where in `channel` a run ends.
        shift: int32 [runs]: how often all that was added so far is doubled after a run.
        first: int32 [blocks + 1]: first run of a block.
        negative: int64 [blocks]: sum of the subtracted digits' values, at least 0.
        total: int64 [blocks]: sum of the counts.
        charge: int64 [blocks]: sum of the |counts|.
        masked: int64 [blocks]: what the bits that are not read add to `negative`: each channel's, times their sum.
        lift: int64 [blocks]: sum of the counts, each times the sum of the bits that it does not read.
        active: int32 [active channels]: channels whose count is not 0, in order, counted within their block.
        first_active: int32 [blocks + 1]: where in `active` a block begins.
        plus: int32 [inputs + 32]: digits of each channel that are added, as bits; scratch memory.
        minus: those that are subtracted.
    """

    channel: np.ndarray
    flip: np.ndarray
    mask: np.ndarray
    end: np.ndarray
    shift: np.ndarray
    first: np.ndarray
    negative: np.ndarray
    total: np.ndarray
    charge: np.ndarray
    masked: np.ndarray
    lift: np.ndarray
    active: np.ndarray
    first_active: np.ndarray
    plus: np.ndarray
    minus: np.ndarray


@compiled
def room_for_digits(num_inputs, smallest_block):  # pragma: no cover - compiled
    """Return memory for the events of inputs of so many channels, in blocks of at least so many."""
    blocks = num_inputs // smallest_block + 1
    events = _MOST_DIGITS * num_inputs
    runs = _PLACES * blocks + events
    return Digits(
        np.empty(events, np.int32),
        np.empty(events, np.uint8),
        np.empty(events, np.uint8),
        np.empty(runs, np.int32),
        np.empty(runs, np.int32),
        np.empty(blocks + 1, np.int32),
        np.empty(blocks, np.int64),
        np.empty(blocks, np.int64),
        np.empty(blocks, np.int64),
        np.empty(blocks, np.int64),
        np.empty(blocks, np.int64),
        np.empty(num_inputs, np.int32),
        np.empty(blocks + 1, np.int32),
        np.zeros(num_inputs + _LANES, np.int32),
        np.zeros(num_inputs + _LANES, np.int32),
    )


@compiled
def list_digits(count, block, longest_run, flip, edges, masks, in_a_byte, digits):  # pragma: no cover - compiled
    """List the events of an input.

    Args:
        count: int32 [inputs], |count| <= MAX_LOSSLESS_COUNT.
        block: channels of a block; the last block may have fewer.
        longest_run: most events of a run.
        flip: for events that are added, from 0 to 255; those that are subtracted get its complement.
        edges: two |counts|: up to the first, and beyond it up to the second, upper bits are added; 0 if there is none.
        masks: the bits of a weight that are added up to the first edge, up to the second, and beyond both.
        in_a_byte: a byte with the lowest bit of each of its weights: 1, 17 or 85 for weights of 8, 4 or 2 bits.
        digits: a `Digits`, filled.
    """
    places = _find_digits(count, digits.plus, digits.minus)
    plus, minus = digits.plus.ctypes.data, digits.minus.ctypes.data
    channels, flips, kept, ends, shifts = (
        digits.channel.ctypes.data,
        digits.flip.ctypes.data,
        digits.mask.ctypes.data,
        digits.end.ctypes.data,
        digits.shift.ctypes.data,
    )
    event, run = 0, 0
    digits.first[0] = 0
    _list_active(count.shape[0], block, digits)
    for b in range((count.shape[0] + block - 1) // block):
        low, high = b * block, min(b * block + block, count.shape[0])
        digits.negative[b] = _sum(digits.minus[low:high])
        digits.total[b] = _sum(count[low:high])
        digits.charge[b] = _sum_of_magnitudes(count[low:high])
        if edges[0] > 0:
            digits.masked[b], digits.lift[b] = _sums_of_small(count[low:high], digits.minus[low:high], edges, masks)
        latest = 0  # place of the latest run
        start = event
        for back in range(places):
            place = places - 1 - back
            for word in range(low, high, _LANES):
                wanted = (1 << min(_LANES, high - word)) - 1
                subtracted = lanes_with(minus + 4 * word, 1 << place) & wanted
                rest = lanes_with(plus + 4 * word, 1 << place) & wanted | subtracted
                while rest != 0:
                    if event > start and (latest != place or event - start == longest_run):
                        put_int32(ends + 4 * run, event)
                        put_int32(shifts + 4 * run, latest - place)
                        run += 1
                        start = event
                    latest = place
                    lane = lowest_bit(rest)
                    rest &= rest - 1
                    put_int32(channels + 4 * event, word - low + lane)
                    put_uint8(flips + event, flip ^ -((subtracted >> lane) & 1))
                    if edges[0] > 0:
                        put_uint8(kept + event, in_a_byte * _mask_of(count[word + lane], edges, masks))
                    event += 1
        if event > start:
            put_int32(ends + 4 * run, event)
            put_int32(shifts + 4 * run, latest)
            run += 1
        digits.first[b + 1] = run


@compiled
def _list_active(num_channels, block, digits):  # pragma: no cover - compiled
    """Fill `Digits.active` and `first_active`, once the digits are found."""
    plus, minus = digits.plus.ctypes.data, digits.minus.ctypes.data
    number = 0
    digits.first_active[0] = 0
    for b in range((num_channels + block - 1) // block):
        low, high = b * block, min(b * block + block, num_channels)
        for word in range(low, high, _LANES):
            rest = lanes_with(plus + 4 * word, -1) | lanes_with(minus + 4 * word, -1)
            rest &= (1 << min(_LANES, high - word)) - 1
            while rest != 0:
                digits.active[number] = word - low + lowest_bit(rest)
                rest &= rest - 1
                number += 1
        digits.first_active[b + 1] = number


@compiled
def _sum(numbers):  # pragma: no cover - compiled
    total = np.int32(0)
    for i in range(numbers.shape[0]):
        total = np.int32(total + numbers[i])
    return total


@compiled
def _mask_of(count, edges, masks):  # pragma: no cover - compiled
    magnitude = abs(count)
    return masks[0] if magnitude <= edges[0] else masks[1] if magnitude <= edges[1] else masks[2]


@compiled
def _sums_of_small(count, minus, edges, masks):  # pragma: no cover - compiled
    """Return `Digits.masked` and `Digits.lift` of a block."""
    masked, lift = np.int64(0), np.int64(0)
    for i in range(count.shape[0]):
        lost = masks[2] - _mask_of(count[i], edges, masks)
        masked += lost * minus[i]
        lift += lost * count[i]
    return masked, lift


@compiled
def _sum_of_magnitudes(numbers):  # pragma: no cover - compiled
    total = np.int32(0)
    for i in range(numbers.shape[0]):
        total = np.int32(total + np.int32(abs(numbers[i])))
    return total


@compiled
def _find_digits(count, plus, minus):  # pragma: no cover - compiled
    """Fill plus and minus with the digits of all counts, as bits; return how many places they have.

    Where 3c and c differ, c has a digit one place lower, added if 3c has the bit and subtracted if c has it.
    """
    either = np.int32(0)
    for channel in range(count.shape[0]):
        magnitude = np.int32(abs(count[channel]))
        triple = np.int32(magnitude + np.int32(magnitude + magnitude))
        added, subtracted = np.int32((triple & ~magnitude) >> 1), np.int32((magnitude & ~triple) >> 1)
        plus[channel] = added if count[channel] > 0 else subtracted
        minus[channel] = subtracted if count[channel] > 0 else added
        either = np.int32(either | np.int32(triple >> 1))
    places = 0
    while either >> places:
        places += 1
    return places
