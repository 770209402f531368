"""The neurons' thresholds and rounding as Triton functions: fast copies of the plain rules beside this file.

The threshold of a token follows from a statistic of its |x|, for example their sum, which kernels collect block by
block in float64. RULE is a constant of the compiler, so the choice of a rule costs nothing. To add one, extend
`block_statistic`, `merged`, `add_lanes`, `lanes_statistic` and `threshold_of`, in the operations and the order of the
neuron's `step`.
"""

# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportOperatorIssue=false
# pyright: reportIndexIssue=false, reportAttributeAccessIssue=false, reportCallIssue=false

from __future__ import annotations

import triton
import triton.language as tl

from . import adaptive_threshold, base, largest_magnitude

# RULE where the input of a kernel holds counts already.
COUNTED = tl.constexpr(base.NO_RULE.number)
_ADAPTIVE_THRESHOLD = tl.constexpr(adaptive_threshold.RULE)
_LARGEST_MAGNITUDE = tl.constexpr(largest_magnitude.RULE)
# `_scaled_magnitude` divides by this: the exponents of float64 start 896 below those of float32.
_SCALE = tl.constexpr(2.0**896)


@triton.jit
def block_statistic(x, RULE: tl.constexpr, AXIS: tl.constexpr):
    """Return the statistic of a block of activations, float64; those that are 0 do not change it."""
    if RULE == _LARGEST_MAGNITUDE:
        # As integers, where NaN and infinity are largest.
        bits = x.to(tl.float32).to(tl.int32, bitcast=True) & 0x7FFFFFFF
        found = tl.max(bits, AXIS).to(tl.float32, bitcast=True).to(tl.float64)
    else:
        tl.static_assert(RULE == _ADAPTIVE_THRESHOLD, "unknown rule")
        found = tl.sum(tl.abs(x.to(tl.float32)).to(tl.float64), AXIS)
    return found


@triton.jit
def merged(statistic, more, RULE: tl.constexpr):
    """Return the statistic of two blocks from those of each."""
    if RULE == _LARGEST_MAGNITUDE:
        found = tl.maximum(statistic, more, propagate_nan=tl.PropagateNan.ALL)
    else:
        tl.static_assert(RULE == _ADAPTIVE_THRESHOLD, "unknown rule")
        found = statistic + more
    return found


@triton.jit
def add_lanes(lanes, x, RULE: tl.constexpr):
    """Add a block of activations to statistics that are kept lane by lane, float64; they start with 0."""
    if RULE == _LARGEST_MAGNITUDE:
        found = tl.maximum(lanes, _scaled_magnitude(x))
    else:
        tl.static_assert(RULE == _ADAPTIVE_THRESHOLD, "unknown rule")
        found = lanes + _scaled_magnitude(x)
    return found


@triton.jit
def lanes_statistic(lanes, RULE: tl.constexpr):
    """Return the statistic of all lanes; it may be finite, but above every ceiling, where x is not."""
    if RULE == _LARGEST_MAGNITUDE:
        found = tl.max(lanes, 0) * _SCALE
    else:
        tl.static_assert(RULE == _ADAPTIVE_THRESHOLD, "unknown rule")
        found = tl.sum(lanes, 0) * _SCALE
    return found


@triton.jit
def _scaled_magnitude(x):
    """Return |x| / _SCALE in float64: the bits of the float32, moved, which takes less than a conversion.

    It is exact, for subnormal numbers too. Infinity and NaN become 2^128 / _SCALE and more, so that no threshold below
    1e30 with counts below 2^19 can follow from them.
    """
    bits = x.to(tl.float32).to(tl.int32, bitcast=True) & 0x7FFFFFFF
    return (bits.to(tl.int64) << 29).to(tl.float64, bitcast=True)


@triton.jit
def threshold_of(statistic, num_inputs, a, b, c, RULE: tl.constexpr):
    """Return the threshold of a token, and what is known about its input.

    Args:
        statistic: of the token, float64.
        num_inputs: channels of the token.
        a: the rule's first parameter (see `KernelRule`).
        b: its second.
        c: its third.
        RULE: number of the rule.
    Returns:
        The threshold; whether the neuron's `count_bounds` hold, that is, the input is finite and no upper limit of the
        threshold binds; and 0, or NaN if the input is not finite.
    """
    steps, floor, ceiling = a, b, c  # k, or levels
    if RULE == _LARGEST_MAGNITUDE:
        size = statistic.to(tl.float32)
    else:
        tl.static_assert(RULE == _ADAPTIVE_THRESHOLD, "unknown rule")
        size = (statistic / num_inputs).to(tl.float32)
    ratio = tl.div_rn(size, steps)
    return tl.minimum(tl.maximum(ratio, floor), ceiling), ratio <= ceiling, size * 0.0


@triton.jit
def heard(ratio, quiet):
    """Return x / threshold, or 0 where its magnitude is below `quiet` (see `KernelRule`)."""
    return tl.where(tl.abs(ratio) < quiet, 0.0, ratio)


@triton.jit
def count_of(x, threshold, quiet, SMALL: tl.constexpr, FMA: tl.constexpr):
    """Return round(x / threshold), half to even, as int32: the rounding of `rounded`.

    Args:
        x: activations.
        threshold: float32.
        quiet: of the rule: the count is 0 where |x / threshold| is below it.
        SMALL: all |count| are below 2^22 (if not, the result is any number); otherwise they are below 2^31.
        FMA: divide by fused multiply-adds; the threshold is between 1e-30 and 1e30, and |count| is below 2^22.
    """
    x = x.to(tl.float32)
    if FMA:
        # Correctly rounded x / threshold in five instructions: with the correctly rounded reciprocal, each step adds
        # the exact remainder's share, and the second is exact (Markstein 1990). The division that the compiler makes
        # checks every element for exponents that cannot come here.
        reciprocal = tl.div_rn(1.0, threshold)
        ratio = x * reciprocal
        ratio = tl.fma(tl.fma(-ratio, threshold, x), reciprocal, ratio)
        ratio = tl.fma(tl.fma(-ratio, threshold, x), reciprocal, ratio)
    else:
        ratio = tl.div_rn(x, threshold)
    ratio = heard(ratio, quiet)
    if SMALL:
        # float32 has no fraction left at 1.5 * 2^23, so the addition rounds; the count is in the last bits.
        return (ratio + 12582912.0).to(tl.int32, bitcast=True) - 0x4B400000
    else:
        # What is cut off is exact, so no case is special.
        whole = ratio.to(tl.int32)
        rest = ratio - whole.to(tl.float32)
        away = (tl.abs(rest) > 0.5) | ((tl.abs(rest) == 0.5) & ((whole & 1) == 1))
        return whole + tl.where(away, tl.where(ratio > 0, 1, -1), 0)
