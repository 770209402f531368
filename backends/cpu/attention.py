"""Softmax attention of one token: the query heads of a key head read its columns together, and each column once.

Columns are read in blocks of `BLOCK` rows, with a running maximum and total, so the memory does not grow with their
number. The rows of a block become float32 if they are not; sums run over lanes of 16 numbers, in this order whatever
the machine's registers. Products of counts and codes are whole numbers below 2^24, so float32 has them exactly, in any
order. The plain rules are `swa.float_attention` and `swa.integer_attention`.
"""

# Type checkers do not know that numba passes an intrinsic its first argument.
# pyright: reportCallIssue=false

from __future__ import annotations

import numpy as np

from ...compiled import compiled
from .decoder_parts import exp, exp_all
from .simd import (
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
        factor: float32 [heads].
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
    tile, score = np.zeros((BLOCK, width), np.float32), np.empty((heads, BLOCK), np.float32)
    highest, total = np.full(heads, np.float32(-np.inf)), np.zeros(heads, np.float32)
    stride, to_sums = 4 * width, sums.ctypes.data
    for first in range(0, num_rows, BLOCK):
        num = min(BLOCK, num_rows - first)
        rows = _rows_of(keys, key_scales != 0, first, num, dim, tile)
        for head in range(heads):
            _multiply(rows, padded.ctypes.data + head * stride, width, num, score[head])
            here = score[head, :num]
            if key_scales != 0:
                _scale(here, key_scales + 4 * first)
            highest[head], total[head] = _weigh(here, factor[head], highest[head], total[head], sums[head])
            if value_scales != 0:
                _scale(here, value_scales + 4 * first)
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
def _rows_of(columns, are_codes, first, num, dim, tile):  # pragma: no cover - compiled
    """Return the address of rows as float32, and after the last one zeros up to a multiple of `_TOGETHER` rows.

    Args:
        columns: address of all rows.
        are_codes: whether they are int8, not float32.
        first: the first row wanted.
        num: rows wanted.
        dim: channels of a row.
        tile: float32 [num or more, channels], for rows that cannot be read where they lie.
    """
    if not are_codes and dim == tile.shape[1] and num % _TOGETHER == 0:
        return columns + 4 * dim * first
    tile[num : (num + _TOGETHER - 1) // _TOGETHER * _TOGETHER] = 0
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
def _multiply(rows, query, width, num, score):  # pragma: no cover - compiled
    """Fill score, float32 [BLOCK], with the products of rows, float32 [num, width], and a query, both by address."""
    stride = 4 * width
    for row in range(0, num, _TOGETHER):
        total = no_floats_128()
        for place in range(0, stride, 4 * LANES):
            part = repeat(load(query + place, no_floats_16()), total)
            total = add_product(total, load_rows(rows + row * stride + place, stride, total), part)
        store(score.ctypes.data + 4 * row, fold(total))


@compiled(error_model="numpy")
def _weigh(score, factor, highest, total, sums):  # pragma: no cover - compiled
    """Replace products by exp(product * factor - highest), and let what was added before count as much less.

    Args:
        score: float32 [rows].
        factor: of all rows.
        highest: score of all rows before.
        total: of the weights before.
        sums: weighted rows before, float32 [channels].
    Returns:
        The highest score and the total with these rows.
    """
    for row in range(score.shape[0]):
        score[row] *= factor
    now = max(highest, _highest_of(score))
    if now > highest:
        less = exp(highest - now)
        total *= less
        sums *= less
    for row in range(score.shape[0]):
        score[row] = max(score[row], now - _DEEPEST)
    return now, np.float32(total + exp_all(score, now))


@compiled(fastmath={"nnan", "nsz", "reassoc"})
def _highest_of(score):  # pragma: no cover - compiled
    highest = score[0]
    for row in range(score.shape[0]):
        highest = max(highest, score[row])
    return highest


@compiled
def _scale(score, scales):  # pragma: no cover - compiled
    """Multiply scores, float32 [rows], by the numbers at an address."""
    here, num = score.ctypes.data, score.shape[0]
    whole = num // LANES * LANES
    for place in range(0, 4 * whole, 4 * LANES):
        store(here + place, load(here + place, no_floats_16()) * load(scales + place, no_floats_16()))
    for row in range(whole, num):
        score[row] *= float32_at(scales + 4 * row)


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
