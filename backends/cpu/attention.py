"""Softmax attention of one token: the query heads of a key head read its columns together, and each column once.

Columns are read in blocks of `BLOCK` rows, with a running maximum and total, so the memory does not grow with their
number. The rows of a block become float32 if they are not; sums run over lanes of 16 numbers, in this order whatever
the machine's registers. Products of counts and codes are whole numbers below 2^24, so float32 has them exactly, in any
order. The plain rules are `swa.float_attention` and `swa.integer_attention`.
"""

# Type checkers do not know that numba passes an intrinsic its first argument.
# pyright: reportCallIssue=false

from __future__ import annotations

import numba
import numpy as np
from numba.np.numpy_support import carray

from ...compiled import compiled
from .decoder_parts import exp, exp_within
from .memory import at
from .simd import (
    LINE,
    add_product,
    as_numbers,
    float32_at,
    fold,
    int8_at,
    load,
    load_rows,
    no_floats_16,
    no_floats_64,
    no_floats_128,
    no_small_16,
    prefetch,
    repeat,
    same,
    store,
    to_floats,
)

# Rows whose scores are in memory at once.
BLOCK = 64
LANES = 16
# Rows that are multiplied with a query together, and rows that are added to an output before it goes back to memory.
_TOGETHER = 8
_ADDED = 16
# How far below the highest score others count: e^-60 of a weight is lost in float32's rounding, and a weight times a
# scale must not become a denormal number, which machines multiply a hundred times slower.
_DEEPEST = np.float32(60)
# float32 has all whole numbers up to this one; a code is at most 128.
MOST_CHARGE = 2**24 // 128


@compiled(error_model="numpy")
def attend(query, factor, keys, key_scales, values, value_scales, num_rows, dim, out):  # pragma: no cover - compiled
    """Fill out with softmax(factor * query . keys) . values, of all query heads that share a key head.

    Args:
        query: float32 [heads, dim]; counts, if the columns are codes, of which no head's sum of magnitudes is above
            `MOST_CHARGE`.
        factor: float32 [heads], above 0.
        keys: address of float32 [rows, dim], or with scales of int8 codes.
        key_scales: address of float32 [rows], or 0.
        values: as keys.
        value_scales: as key_scales.
        num_rows: rows of the columns, at least 1.
        dim: channels.
        out: float32 [heads, dim].
    """
    heads, width = query.shape[0], (dim + LANES - 1) // LANES * LANES
    padded, sums = np.zeros((heads, width), np.float32), np.zeros((heads, width), np.float32)
    padded[:, :dim] = query
    tile, score = np.empty((BLOCK, width), np.float32), np.empty((heads, BLOCK), np.float32)
    tile[:, dim:] = 0
    highest, total = np.full(heads, np.float32(-np.inf)), np.zeros(heads, np.float32)
    stride, to_sums = 4 * width, sums.ctypes.data
    key_bytes, value_bytes = dim if key_scales != 0 else 4 * dim, dim if value_scales != 0 else 4 * dim
    _prefetch(keys, key_bytes, 0, num_rows)
    _prefetch(values, value_bytes, 0, num_rows)
    for first in range(0, num_rows, BLOCK):
        num = min(BLOCK, num_rows - first)
        _prefetch(keys, key_bytes, first + BLOCK, num_rows)
        _prefetch(values, value_bytes, first + BLOCK, num_rows)
        whole = num // _TOGETHER * _TOGETHER
        rows = _rows_of(keys, key_scales != 0, first, num, dim, tile)
        rest = _in_tile(rows + whole * stride, num - whole, tile, whole)
        for head in range(heads):
            here, so_far = score.ctypes.data + 4 * head * BLOCK, to_sums + head * stride
            _multiply(rows, padded.ctypes.data + head * stride, width, whole, here)
            _multiply(rest, padded.ctypes.data + head * stride, width, num - whole, here + 4 * whole)
            if key_scales != 0:
                _scale(here, key_scales + 4 * first, num)
            highest[head], total[head] = _weigh(here, num, factor[head], highest[head], total[head], so_far, width)
            if value_scales != 0:
                _scale(here, value_scales + 4 * first, num)
        rows = _rows_of(values, value_scales != 0, first, num, dim, tile)
        for begin in range(0, num, _ADDED):
            added = min(_ADDED, num - begin)
            for head in range(heads):
                weight = score.ctypes.data + 4 * (head * BLOCK + begin)
                _add_rows(rows + begin * stride, width, weight, added, to_sums + head * stride)
    for head in range(heads):
        for i in range(dim):
            out[head, i] = sums[head, i] / total[head]


@compiled
def _prefetch(columns, row_bytes, first, num_rows):  # pragma: no cover - compiled
    """Prefetch the block of rows that begins with row `first`, if there is one."""
    for place in range(first * row_bytes, min(first + BLOCK, num_rows) * row_bytes, LINE):
        prefetch(columns + place)


@compiled
def _rows_of(columns, are_codes, first, num, dim, tile):  # pragma: no cover - compiled
    """Return the address of rows as float32, each as long as those of the tile.

    Args:
        columns: address of all rows.
        are_codes: whether they are int8, not float32.
        first: the first row wanted.
        num: rows wanted.
        dim: channels of a row.
        tile: float32 [num or more, channels], for rows that cannot be read where they lie.
    """
    if not are_codes and dim == tile.shape[1]:
        return columns + 4 * dim * first
    if are_codes and dim == tile.shape[1]:
        source, target = columns + dim * first, tile.ctypes.data
        for place in range(0, num * dim, LANES):
            store(target + 4 * place, to_floats(as_numbers(load(source + place, no_small_16()))))
    else:
        for row in range(num):
            for i in range(dim):
                place = (first + row) * dim + i
                tile[row, i] = np.float32(int8_at(columns + place)) if are_codes else float32_at(columns + 4 * place)
    return tile.ctypes.data


@compiled
def _in_tile(rows, num, tile, first):  # pragma: no cover - compiled
    """Return the address of `num` rows in the tile, from row `first` on, so that `_TOGETHER` rows can be read there."""
    stride = 4 * tile.shape[1]
    here = tile.ctypes.data + first * stride
    if rows != here:
        for place in range(0, num * stride, 4 * LANES):
            store(here + place, load(rows + place, no_floats_16()))
    return here


@compiled
def _multiply(rows, query, width, num, score):  # pragma: no cover - compiled
    """Write the products of rows, float32 [num, width], and a query to `score`; all are addresses.

    Rows are read, and products written, up to a multiple of `_TOGETHER`; those beyond `num` mean nothing.
    """
    stride = 4 * width
    for row in range(0, num, _TOGETHER):
        total = no_floats_128()
        for place in range(0, stride, 4 * LANES):
            part = repeat(load(query + place, no_floats_16()), total)
            total = add_product(total, load_rows(rows + row * stride + place, stride, total), part)
        store(score + 4 * row, fold(total))


@compiled(error_model="numpy")
def _weigh(score, num, factor, highest, total, sums, width):  # pragma: no cover - compiled
    """Replace products by exp(product * factor - highest), and let what was added before count as much less.

    Args:
        score: address of float32 [num].
        num: rows.
        factor: of all rows, above 0.
        highest: product * factor of all rows before.
        total: of the weights before.
        sums: address of weighted rows before, float32 [width].
        width: channels.
    Returns:
        The highest product * factor and the total with these rows.
    """
    products = carray(at(score, numba.float32), num)
    now = max(highest, np.float32(_highest_of(products) * factor))
    if now > highest:
        less = exp(highest - now)
        total *= less
        before = carray(at(sums, numba.float32), width)
        for i in range(width):
            before[i] *= less
    return now, np.float32(total + _exp_all(products, factor, now))


@compiled(fastmath={"reassoc", "nsz"})
def _exp_all(score, factor, highest):  # pragma: no cover - compiled
    """Replace scores by exp(score * factor - highest), and return their sum."""
    total = np.float32(0)
    for row in range(score.shape[0]):
        score[row] = exp_within(max(np.float32(score[row] * factor) - highest, -_DEEPEST))
        total += score[row]
    return total


@compiled(fastmath={"nnan", "nsz", "reassoc"})
def _highest_of(score):  # pragma: no cover - compiled
    highest = score[0]
    for row in range(score.shape[0]):
        highest = max(highest, score[row])
    return highest


@compiled
def _scale(score, scales, num):  # pragma: no cover - compiled
    """Multiply scores, float32 [num], by as many numbers, all by address."""
    whole = num // LANES * LANES
    for place in range(0, 4 * whole, 4 * LANES):
        store(score + place, load(score + place, no_floats_16()) * load(scales + place, no_floats_16()))
    rest, factors = carray(at(score, numba.float32), num), carray(at(scales, numba.float32), num)
    for row in range(whole, num):
        rest[row] *= factors[row]


@compiled
def _add_rows(rows, width, weight, num, sums):  # pragma: no cover - compiled
    """Add rows, float32 [num, width], times their weights to sums, float32 [width], all by address."""
    stride, place = 4 * width, 0
    while place + 256 <= stride:
        total = load(sums + place, no_floats_64())
        for row in range(num):
            factor = same(float32_at(weight + 4 * row), total)
            total = add_product(total, load(rows + row * stride + place, total), factor)
        store(sums + place, total)
        place += 256
    while place < stride:
        rest = load(sums + place, no_floats_16())
        for row in range(num):
            factor = same(float32_at(weight + 4 * row), rest)
            rest = add_product(rest, load(rows + row * stride + place, rest), factor)
        store(sums + place, rest)
        place += 4 * LANES
