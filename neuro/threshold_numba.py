"""The neurons' thresholds and rounding as numba functions: fast copies of the plain rules beside this file.

A rule is a function from the activations of a token to its threshold. To add one, write it in the operations and the
order of the neuron's `step`, and call it from `threshold_of` under its number.
"""

# Compiled code calls an intrinsic without its first parameter.
# pyright: reportCallIssue=false

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ..compiled import compiled
from .adaptive_threshold import RULE as _ADAPTIVE_THRESHOLD
from .largest_magnitude import RULE as _LARGEST_MAGNITUDE


@compiled(error_model="numpy")
def threshold_of(x, rule, a, b, c):  # pragma: no cover - compiled
    """Return the threshold of a token, and a bound of the sum of its |count|.

    Args:
        x: activations of the token, float32 [N], N >= 1.
        rule: number of the rule (see `KernelRule`).
        a: the rule's first parameter, float32.
        b: its second.
        c: its third.
    Returns:
        Threshold, float32, NaN where x is not finite or the rule is unknown; and the bound, float64.
    """
    if rule == _ADAPTIVE_THRESHOLD:
        return _adaptive_threshold(x, a, b, c)
    if rule == _LARGEST_MAGNITUDE:
        return _largest_magnitude(x, a, b, c)
    return np.float32(np.nan), np.inf


@compiled(error_model="numpy")
def _adaptive_threshold(x, k, floor, ceiling):  # pragma: no cover - compiled
    """Do what `AdaptiveThreshold.step` does."""
    total = _sum_of_magnitudes(x)
    mean = np.float32(total / x.shape[0])
    if not np.isfinite(mean):
        return np.float32(np.nan), np.inf
    threshold = min(max(np.float32(mean / k), floor), ceiling)
    # Rounding adds 1/2 to a |count| at most.
    return threshold, total / threshold + x.shape[0]


@compiled(error_model="numpy")
def _largest_magnitude(x, levels, floor, ceiling):  # pragma: no cover - compiled
    """Do what `LargestMagnitude.step` does. Magnitudes are compared as integers, where NaN and infinity are largest."""
    bits = x.view(np.int32)
    most = np.empty(1, np.int32)
    most[0] = 0
    for channel in range(bits.shape[0]):
        most[0] = max(most[0], bits[channel] & np.int32(0x7FFFFFFF))
    largest = most.view(np.float32)[0]
    if not np.isfinite(largest):
        return np.float32(np.nan), np.inf
    threshold = min(max(np.float32(largest / levels), floor), ceiling)
    # No |count| is above largest / threshold by more than 1.
    return threshold, x.shape[0] * (np.float64(largest) / threshold + 1.0)


@compiled(fastmath={"reassoc", "nsz"})
def _sum_of_magnitudes(x):  # pragma: no cover - compiled
    """Return sum |x| in float64, added in any order: so the compiler may use vector registers."""
    total = 0.0
    for channel in range(x.shape[0]):
        total += abs(np.float64(x[channel]))
    return total


def build_rounded_ratio(builder, x, threshold, quiet):
    """Emit round(x / threshold), half to even, and 0 where |x / threshold| < quiet: the rounding of `rounded`.

    Args:
        builder: of LLVM.
        x: a float32 value of LLVM, or a vector of them, and so the rest.
        threshold: see x.
        quiet: see `KernelRule`.
    Returns:
        Whole numbers as float32.
    """
    ratio = builder.fdiv(x, threshold)
    name = f"v{ratio.type.count}f32" if isinstance(ratio.type, ir.VectorType) else "f32"
    kind = ir.FunctionType(ratio.type, [ratio.type])
    rounded, magnitude = (
        builder.call(builder.module.declare_intrinsic(f"llvm.{what}.{name}", (), kind), [ratio])
        for what in ("roundeven", "fabs")
    )
    return builder.select(builder.fcmp_ordered("<", magnitude, quiet), ir.Constant(ratio.type, None), rounded)


@intrinsic
def _rounded_ratio(typingctx, x, threshold, quiet):  # pragma: no cover - compiled
    """Return what `build_rounded_ratio` does for three float32, as float32."""

    def generate(context, builder, signature, arguments):
        return build_rounded_ratio(builder, *arguments)

    return types.float32(types.float32, types.float32, types.float32), generate


@compiled
def count_channels(x, threshold, quiet, count):  # pragma: no cover - compiled
    """Fill the counts of a token's channels, all of which fit 32 bits; return the largest |count|, int32.

    The largest is found among integers, which compiles to vectors; among floats it does not.

    Args:
        x: float32, [N].
        threshold: float32.
        quiet: see `KernelRule`, float32.
        count: int32 [N], filled with round(x / threshold), and with 0 where |x / threshold| < quiet.
    """
    largest = np.int32(0)
    for channel in range(x.shape[0]):
        count[channel] = np.int32(_rounded_ratio(x[channel], threshold, quiet))
        largest = max(largest, np.int32(abs(count[channel])))
    return largest


@compiled(error_model="numpy")
def measure_tokens(x, rule, a, b, c, quiet, threshold):  # pragma: no cover - compiled
    """Fill the thresholds of tokens; return the smallest and largest x / threshold of all, not yet rounded.

    What is quiet counts as 0. Division, that and rounding keep the order of numbers, so the two give the range of all
    counts.

    Args:
        x: float32, [tokens, N].
        rule: as in `threshold_of`, and so a, b and c.
        a: see rule.
        b: see rule.
        c: see rule.
        quiet: see `KernelRule`, float32.
        threshold: float32, [tokens].
    Returns:
        Two float32; NaN where x is not finite or the rule is unknown.
    """
    low, high = np.float32(np.inf), np.float32(-np.inf)
    for token in range(x.shape[0]):
        threshold[token] = threshold_of(x[token], rule, a, b, c)[0]
        if np.isnan(threshold[token]):
            return np.float32(np.nan), np.float32(np.nan)
        smallest, largest = _extremes(x[token])
        low = min(low, _heard(np.float32(smallest / threshold[token]), quiet))
        high = max(high, _heard(np.float32(largest / threshold[token]), quiet))
    return low, high


@compiled
def _heard(ratio, quiet):  # pragma: no cover - compiled
    """Return a ratio, or 0 where it is quiet."""
    return np.float32(0) if abs(ratio) < quiet else ratio


@compiled
def _ordered(bits):  # pragma: no cover - compiled
    """Turn the bits of a finite float32 into an int32 of the same order, and back."""
    return bits ^ ((bits >> 31) & np.int32(0x7FFFFFFF))


@compiled
def _extremes(x):  # pragma: no cover - compiled
    """Return the smallest and the largest of finite numbers, compared as integers, which compiles to vectors."""
    bits = x.view(np.int32)
    low, high = np.int32(_ordered(bits[0])), np.int32(_ordered(bits[0]))
    for channel in range(bits.shape[0]):
        key = np.int32(_ordered(bits[channel]))
        low = min(low, key)
        high = max(high, key)
    ends = np.empty(2, np.int32)
    ends[0], ends[1] = _ordered(low), _ordered(high)
    values = ends.view(np.float32)
    return values[0], values[1]
