"""A neuron's kernel rule in the records that compiled code reads, and the counts of a token by it."""

from __future__ import annotations

from ctypes import c_double, c_int64

import numpy as np

from ...coding.base import MAX_LOSSLESS_COUNT
from ...compiled import compiled
from ...neuro import KernelRule
from ...neuro.threshold_numba import count_channels, threshold_of
from ..base import INT32, MAX_WEIGHT
from .events import DIGITS_WEIGH

# Fields of a record that holds a `KernelRule`: its number, its parameters and what is quiet.
RULE = {"rule": c_int64, "a": c_double, "b": c_double, "c": c_double, "quiet": c_double}
# Largest sum of |count| of a token for which no sum can leave 32 bits.
LARGEST_CHARGE = INT32.max // (DIGITS_WEIGH * MAX_WEIGHT)


def fields_of(rule: KernelRule) -> dict[str, float]:
    """Return a rule as the fields `RULE`."""
    return dict(zip(RULE, (rule.number, *rule.numbers), strict=True))


@compiled
def threshold_by(record, x):  # pragma: no cover - compiled
    """Return the threshold of a token by a record's rule, and the bound of its |count|; see `threshold_of`."""
    return threshold_of(x, record.rule, np.float32(record.a), np.float32(record.b), np.float32(record.c))


@compiled
def count_by(record, x, threshold, charge, count):  # pragma: no cover - compiled
    """Fill count with the spike counts of channels by a record's rule; return whether all can be added exactly.

    Args:
        record: has the fields `RULE`.
        x: channels of a token, float32 [N].
        threshold: of the token, from `threshold_by`.
        charge: see threshold.
        count: int32 [N].
    """
    # Not so for NaN, infinity, and sums that might not fit 32 bits; with these, no count can leave 32 bits either.
    fits = threshold > 0 and charge <= LARGEST_CHARGE
    return fits and count_channels(x, threshold, np.float32(record.quiet), count) <= MAX_LOSSLESS_COUNT


@compiled
def count_all(record, x, count):  # pragma: no cover - compiled
    """Fill count with the spike counts of a token x by a record's rule.

    Returns:
        The threshold, NaN if the separate steps are needed.
    """
    threshold, charge = threshold_by(record, x)
    return threshold if count_by(record, x, threshold, charge, count) else np.float32(np.nan)
