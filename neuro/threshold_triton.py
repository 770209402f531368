"""The adaptive threshold as Triton functions, in the operations and the order of `AdaptiveThreshold`."""

# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportOperatorIssue=false
# pyright: reportIndexIssue=false, reportAttributeAccessIssue=false, reportCallIssue=false

from __future__ import annotations

import triton
import triton.language as tl

# What `tiny` divides by: the exponents of float64 start 896 below those of float32.
TINY = tl.constexpr(2.0**896)


@triton.jit
def threshold_of(total, num_inputs, k, floor, ceiling):
    """Return the threshold of a token and whether its counts are sure to fit: its input is finite, no ceiling binds.

    total is the sum of |x| in float64.
    """
    ratio = tl.div_rn((total / num_inputs).to(tl.float32), k)
    return tl.minimum(tl.maximum(ratio, floor), ceiling), ratio <= ceiling


@triton.jit
def tiny(x):
    """Return |x| / TINY in float64: the bits of the float32, moved, which takes less than a conversion.

    It is exact, for subnormal numbers too. Infinity and NaN become 2^128 / TINY and more, which no ceiling admits.
    """
    bits = x.to(tl.float32).to(tl.int32, bitcast=True) & 0x7FFFFFFF
    return (bits.to(tl.int64) << 29).to(tl.float64, bitcast=True)


@triton.jit
def rounded(ratio):
    """Return the nearest integer, half to even, of |ratio| < 2^22: float32 has no fraction left at 1.5 * 2^23."""
    return (ratio + 12582912.0).to(tl.int32, bitcast=True) - 0x4B400000
