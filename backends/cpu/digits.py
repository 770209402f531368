"""Events of blocks of input channels: the signed binary digits of their counts, listed by place.

A count is a sum of powers of 2, each added or subtracted and no two of them neighbours (the signed-digit code), so it has
the fewest digits, 1.4 on average at k = 3. Each digit is an event: the channel's row is added once, or subtracted. The
sum of the rows of one place is doubled until it reaches the next lower place that has digits. Nothing is multiplied.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ...coding.base import MAX_LOSSLESS_COUNT
from ...compiled import compiled
from .simd import lanes_with_bit, lowest_bit

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
        end: int32 [runs]: where in `channel` a run ends.
        shift: int32 [runs]: how often all that was added so far is doubled after a run.
        first: int32 [blocks + 1]: first run of a block.
        active: int32 [inputs]: channels of a block that have digits, counted within it.
        active_end: int32 [blocks].
        negative: int64 [blocks]: sum of the subtracted digits' values, at least 0.
        total: int64 [blocks]: sum of the counts.
        charge: int64 [blocks]: sum of the |counts|.
        plus: int32 [inputs + 32]: digits of each channel that are added, as bits; scratch memory.
        minus: those that are subtracted.
    """

    channel: np.ndarray
    flip: np.ndarray
    end: np.ndarray
    shift: np.ndarray
    first: np.ndarray
    active: np.ndarray
    active_end: np.ndarray
    negative: np.ndarray
    total: np.ndarray
    charge: np.ndarray
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
        np.empty(runs, np.int32),
        np.empty(runs, np.int32),
        np.empty(blocks + 1, np.int32),
        np.empty(num_inputs, np.int32),
        np.empty(blocks, np.int32),
        np.empty(blocks, np.int64),
        np.empty(blocks, np.int64),
        np.empty(blocks, np.int64),
        np.zeros(num_inputs + _LANES, np.int32),
        np.zeros(num_inputs + _LANES, np.int32),
    )


@compiled
def list_digits(count, block, longest_run, flip, digits):  # pragma: no cover - compiled
    """List the events of an input.

    Args:
        count: int32 [inputs], |count| <= MAX_LOSSLESS_COUNT.
        block: channels of a block; the last block may have fewer.
        longest_run: most events of a run.
        flip: uint8 for events that are added; those that are subtracted get its complement.
        digits: a `Digits`, filled.
    """
    places = _find_digits(count, digits.plus, digits.minus)
    events, runs, actives = 0, 0, 0
    for b in range((count.shape[0] + block - 1) // block):
        low, high = b * block, min(b * block + block, count.shape[0])
        digits.first[b] = runs
        negative, total, charge = 0, 0, 0
        for channel in range(low, high):
            negative += digits.minus[channel]
            total += count[channel]
            charge += abs(count[channel])
            digits.active[actives] = channel - low
            actives += 1 if count[channel] != 0 else 0
        digits.negative[b], digits.total[b], digits.charge[b] = negative, total, charge
        digits.active_end[b] = actives
        latest = -1  # place of the latest run of this block
        for back in range(places):
            place = places - 1 - back
            run_start = events
            for start in range(low, high, _LANES):
                wanted = (1 << min(_LANES, high - start)) - 1
                minus = lanes_with_bit(digits.minus.ctypes.data + 4 * start, place) & wanted
                either = minus | (lanes_with_bit(digits.plus.ctypes.data + 4 * start, place) & wanted)
                if either != 0 and latest > place:
                    digits.shift[runs - 1] = latest - place
                    latest = place
                while either != 0:
                    if events - run_start == longest_run:
                        digits.end[runs], digits.shift[runs] = events, 0
                        runs += 1
                        run_start = events
                    lane = lowest_bit(either)
                    either &= either - 1
                    digits.channel[events] = start - low + lane
                    digits.flip[events] = flip ^ (np.uint8(255) * np.uint8((minus >> lane) & 1))
                    events += 1
            if events > run_start:
                digits.end[runs], digits.shift[runs] = events, place
                runs += 1
                latest = place
        digits.first[b + 1] = runs


@compiled
def _find_digits(count, plus, minus):  # pragma: no cover - compiled
    """Fill plus and minus with the digits of all counts, as bits; return how many places they have.

    Where 3c and c differ, c has a digit one place lower: 3c = c + 2c carries into every place that the digits of c need.
    """
    either = 0
    for channel in range(count.shape[0]):
        magnitude = abs(count[channel])
        triple = 3 * magnitude
        added, subtracted = (triple & ~magnitude) >> 1, (magnitude & ~triple) >> 1
        plus[channel] = added if count[channel] > 0 else subtracted
        minus[channel] = subtracted if count[channel] > 0 else added
        either |= triple >> 1
    places = 0
    while either >> places:
        places += 1
    return places
