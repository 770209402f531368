"""A neuron's kernel rule in the records that compiled code reads, and the counts of a token by it."""

# Type checkers do not know that numba passes an intrinsic its first argument.
# pyright: reportCallIssue=false

from __future__ import annotations

import ctypes
import functools
from ctypes import c_double, c_int64
from typing import Any

import numba
import numpy as np
from numba.np.numpy_support import carray

from ...coding.base import MAX_LOSSLESS_COUNT
from ...compiled import compiled
from ...neuro import CountTable, KernelRule
from ...neuro.rate_distortion_numba import choose_count
from ...neuro.threshold_numba import count_channels, threshold_of
from ..base import INT32, MAX_WEIGHT
from .events import DIGITS_WEIGH
from .memory import at, record_of

# Fields of a record that holds a `KernelRule`: its number, its parameters, what is quiet, the address of its table (0
# for none), and what its counts may add up to.
RULE = {
    "rule": c_int64,
    "a": c_double,
    "b": c_double,
    "c": c_double,
    "quiet": c_double,
    "table": c_int64,
    "most_charge": c_int64,  # sum of |count| up to which all sums fit 32 bits
}
# A `CountTable`, by addresses.
_TABLE, _Table = record_of(
    {
        "choices": c_int64,
        "borders": c_int64,
        "first": c_int64,
        "num_choices": c_int64,
        "num_first": c_int64,
        "cells": c_int64,
        "reach": c_int64,
        "spike_price": c_double,
    }
)
# Largest sum of |count| of a token for which no sum can leave 32 bits.
LARGEST_CHARGE = INT32.max // (DIGITS_WEIGH * MAX_WEIGHT)


def fields_of(rule: KernelRule) -> dict[str, float]:
    """Return a rule as the fields `RULE`."""
    table = 0 if rule.table is None else ctypes.addressof(_record_of(rule.table))
    return dict(zip(RULE, (rule.number, *rule.numbers, table, LARGEST_CHARGE), strict=True))


@functools.cache  # for good: records hold the address
def _record_of(table: CountTable) -> Any:
    parts = (table.choices, table.borders, table.first)
    addresses = (part.data_ptr() for part in parts)
    numbers = (len(table.choices), len(table.first), table.cells, table.reach, table.spike_price)
    return _Table(*addresses, *numbers)


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
    if record.table != 0:
        return _count_by_table(record, x, threshold, charge, count)
    fits = threshold > 0 and charge <= record.most_charge
    return fits and count_channels(x, threshold, np.float32(record.quiet), count) <= MAX_LOSSLESS_COUNT


@compiled(error_model="numpy")
def _count_by_table(record, x, threshold, charge, count):  # pragma: no cover - compiled
    """Do what `count_by` does where counts are chosen from a table."""
    table = carray(at(record.table, _TABLE), 1)[0]
    # `charge` is for rounded counts, of which a chosen one is at most so far.
    if not (threshold > 0 and charge + table.reach * x.shape[0] <= record.most_charge):
        return False
    choices = carray(at(table.choices, numba.int32), table.num_choices)
    borders = carray(at(table.borders, numba.float32), table.num_choices)
    first = carray(at(table.first, numba.int32), table.num_first)
    largest = np.int64(0)
    for channel in range(x.shape[0]):
        ratio = np.float32(x[channel] / threshold)
        chosen = choose_count(ratio, choices, borders, first, table.cells, table.reach, table.spike_price)
        count[channel] = chosen
        largest = max(largest, abs(chosen))
    return largest <= MAX_LOSSLESS_COUNT


@compiled
def count_all(record, x, count):  # pragma: no cover - compiled
    """Fill count with the spike counts of a token x by a record's rule.

    Returns:
        The threshold, NaN if the separate steps are needed.
    """
    threshold, charge = threshold_by(record, x)
    return threshold if count_by(record, x, threshold, charge, count) else np.float32(np.nan)
