"""The choice of `RateDistortionThreshold` as a numba function: a fast copy of the plain one beside this file."""

from __future__ import annotations

import numpy as np

from ..compiled import compiled


@compiled
def choose_counts(ratio, choices, borders, first, cells, reach, spike_price, count):  # pragma: no cover - compiled
    """Fill the counts of ratios, with their signs.

    Args:
        ratio: x / threshold, float32 [N], of counts that fit 32 bits.
        choices: see `CountTable`, and so the next five.
        borders: see choices.
        first: see choices.
        cells: see choices.
        reach: see choices.
        spike_price: see choices.
        count: int32 [N].
    """
    for channel in range(ratio.shape[0]):
        count[channel] = choose_count(ratio[channel], choices, borders, first, cells, reach, spike_price)


@compiled
def choose_count(ratio, choices, borders, first, cells, reach, spike_price):  # pragma: no cover - compiled
    """Return the count of one ratio; see `choose_counts`.

    Which side of a border a ratio is on is a number and no branch, since no processor can guess it.
    """
    magnitude = abs(ratio)
    if magnitude <= (first.shape[0] - 1) // cells:
        place = np.uint32(first[np.uint32(magnitude * np.float32(cells))])
        place += np.uint32(magnitude > borders[place])
        while magnitude > borders[place]:
            place += np.uint32(1)
        chosen = np.int64(choices[place])
    else:
        chosen = _cheapest_near(np.float64(magnitude), reach, spike_price)
    return -chosen if ratio < 0 else chosen


@compiled
def _cheapest_near(magnitude, reach, spike_price):  # pragma: no cover - compiled
    """Return the best count near a magnitude, the smallest of equally good ones."""
    start = np.int64(np.rint(magnitude)) - reach
    chosen, least = start, np.inf
    for candidate in range(start, start + 2 * reach + 1):
        distance = magnitude - candidate
        cost = distance * distance + spike_price * _num_digits(candidate)
        if cost < least:
            chosen, least = candidate, cost
    return chosen


@compiled
def _num_digits(count):  # pragma: no cover - compiled
    """Return the digits of a count > 0 that are not 0 in the signed-digit code: those of c xor 3c."""
    rest, found = count ^ (3 * count), 0
    while rest != 0:
        rest &= rest - 1
        found += 1
    return found
