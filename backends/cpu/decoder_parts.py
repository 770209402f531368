"""What a decoder does between its projections, for one token, in float32: norm, rotary embedding, attention, SiLU."""

# Type checkers do not know that numba passes an intrinsic its first argument.
# pyright: reportCallIssue=false

from __future__ import annotations

import math

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ...compiled import compiled
from .simd import (
    add_product,
    as_numbers,
    float32_at,
    load,
    no_floats,
    no_small_integers,
    same,
    sum_of,
    to_floats,
)

_PER_LN2 = np.float32(1 / math.log(2))
# ln 2 in two numbers: the products of the first with small integers are exact.
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
# Adding and subtracting 1.5 * 2^23 rounds a float32 to an integer.
_TO_INTEGER = np.float32(1.5 * 2**23)
_LOWEST, _HIGHEST = np.float32(-87), np.float32(88)
# exp(r) for |r| <= ln(2) / 2 by its Taylor series; the first term left out is below 4e-9.
_SERIES = [np.float32(1 / math.factorial(n)) for n in range(8)]
_C2, _C3, _C4, _C5, _C6, _C7 = _SERIES[2:]


@intrinsic
def _power_of_two(typing_context, exponent):  # pragma: no cover - compiled
    """Return 2^exponent as float32, for an int32 from -126 to 127."""

    def generate(context, builder, signature, arguments):
        number = ir.IntType(32)
        biased = builder.add(arguments[0], ir.Constant(number, 127))
        return builder.bitcast(builder.shl(biased, ir.Constant(number, 23)), ir.FloatType())

    return types.float32(types.int32), generate


@compiled(error_model="numpy")
def exp(x):  # pragma: no cover - compiled
    """Return e to the power of x, float32, from -87 on within 2 units in the last place; it compiles to vectors."""
    return exp_within(min(max(x, _LOWEST), _HIGHEST))


@compiled(error_model="numpy")
def exp_within(x):  # pragma: no cover - compiled
    """Return `exp` of an x from -87 to 88."""
    whole = np.float32(np.float32(x * _PER_LN2 + _TO_INTEGER) - _TO_INTEGER)
    r = np.float32(np.float32(x - whole * _LN2_HIGH) - whole * _LN2_LOW)
    tail = _C2 + r * (_C3 + r * (_C4 + r * (_C5 + r * (_C6 + r * _C7))))
    return np.float32(np.float32(np.float32(1) + (r + r * r * tail)) * _power_of_two(np.int32(whole)))


@compiled(error_model="numpy")
def rms_norm(x, weight, eps, out):  # pragma: no cover - compiled
    """Fill out with x / sqrt(mean(x^2) + eps) * weight, all float32 [N]."""
    factor = np.float32(1) / np.sqrt(np.float32(_sum_of_squares(x) / np.float32(x.shape[0])) + eps)
    for i in range(x.shape[0]):
        out[i] = weight[i] * np.float32(x[i] * factor)


@compiled(fastmath={"reassoc", "nsz", "contract"})
def _sum_of_squares(x):  # pragma: no cover - compiled
    total = np.float32(0)
    for i in range(x.shape[0]):
        total += x[i] * x[i]
    return total


@compiled(fastmath={"reassoc", "nsz", "contract"})
def dot(x, y):  # pragma: no cover - compiled
    """Return the inner product of two float32 [N], added in any order."""
    total = np.float32(0)
    for i in range(x.shape[0]):
        total += x[i] * y[i]
    return total


@compiled
def dot_integers(integers, scale, group_size, x):  # pragma: no cover - compiled
    """Return the inner product of a row of integers times their scales with x, float32 [N].

    Args:
        integers: address of int8 [N], N a multiple of 32.
        scale: address of float32 [N / group_size].
        group_size: integers that share a scale, a multiple of 32.
        x: float32 [N].
    """
    total, source = no_floats(), x.ctypes.data
    for group in range(x.shape[0] // group_size):
        first, of_group = group * group_size, no_floats()
        for i in range(first, first + group_size, 32):
            row = to_floats(as_numbers(load(integers + i, no_small_integers())))
            of_group = add_product(of_group, row, load(source + 4 * i, no_floats()))
        total = add_product(total, of_group, same(float32_at(scale + 4 * group), no_floats()))
    return sum_of(total)


@compiled
def rotate(x, cos, sin):  # pragma: no cover - compiled
    """Turn the pairs (x[i], x[i + N/2]) of a head by the angles of a position, in place; all float32 [N]."""
    half = x.shape[0] // 2
    for i in range(half):
        first, second = x[i], x[half + i]
        x[i] = first * cos[i] - second * sin[i]
        x[half + i] = second * cos[half + i] + first * sin[half + i]


@compiled(fastmath={"reassoc", "nsz"})
def exp_all(score, highest):  # pragma: no cover - compiled
    """Replace scores by exp(score - highest), and return their sum."""
    total = np.float32(0)
    for row in range(score.shape[0]):
        score[row] = exp(score[row] - highest)
        total += score[row]
    return total


@compiled(error_model="numpy")
def silu_product(gate, up, out):  # pragma: no cover - compiled
    """Fill out with gate * sigmoid(gate) * up, float32 [N]."""
    for i in range(gate.shape[0]):
        out[i] = np.float32(gate[i] / (np.float32(1) + exp(-gate[i]))) * up[i]
