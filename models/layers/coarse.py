"""Coarse rows: the same weights in fewer bits."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ...errors import InputError
from .quantize import QuantizedWeight

# Pairs (bits, up_to): counts of a magnitude up to `up_to` read rows of `bits` bits.
Coarse: TypeAlias = tuple[tuple[int, int], ...]
COARSE_BITS = (2, 4)


def coarser(quantized: QuantizedWeight, bits: int) -> QuantizedWeight:
    """Return weights in fewer bits: the upper bits of each integer, which stand for the middle of all that have them.

    So coarse rows are part of the layer's own rows, and have no scales of their own to read: with d bits dropped,
    W = scale * (2^d * upper bits + (2^d - 1) / 2) + minimum. The result has that as a scale and a minimum, its upper
    bits counted from the lowest ones on.

    Args:
        quantized: the weights; the result has its integers in their dtype.
        bits: fewer than they have.
    Returns:
        Weights with minima, of the same shape.
    Raises:
        InputError: there are no fewer bits.
    """
    if bits >= quantized.weight_bits:
        raise InputError(f"coarser.bits: expected fewer than {quantized.weight_bits}, got {bits}.")
    step = 2 ** (quantized.weight_bits - bits)
    lowest = _lowest(quantized.weight_bits, quantized.minimum)
    # Not shifted: in training the integers are floats. Lifted afterwards, as int8 has no room for it before.
    upper = quantized.weight.div(step, rounding_mode="floor") - lowest // step
    minimum = quantized.scale * (lowest + (step - 1) / 2)
    if quantized.minimum is not None:
        minimum += quantized.minimum
    return QuantizedWeight(upper, quantized.scale * step, minimum, quantized.group_size, bits)


def _lowest(weight_bits: int, minimum: Tensor | None) -> int:
    """Return the least integer of so many bits."""
    return 0 if weight_bits < 8 and minimum is not None else -(2 ** (weight_bits - 1))


def twice_the_sums(
    own: Tensor, upper: Sequence[tuple[int, Tensor, Tensor]], weight_bits: int, minimum: Tensor | None
) -> Tensor:
    """Return twice the sums of a layer some of whose channels read upper bits, exactly: they are middles, in halves.

    Args:
        own: sums of the channels that read all bits, integers [tokens, groups, outputs].
        upper: of each level that reads upper bits, how many; the sums of its rows as `coarser` has them, of the same
            shape; and the sums of its counts, integers [tokens, groups].
        weight_bits: of the layer's own rows.
        minimum: of the layer's own rows, or None.
    Returns:
        int64 [tokens, groups, outputs].
    """
    twice = 2 * own.to(torch.int64)
    for bits, sums, counts in upper:
        step, lifted = _in_halves(bits, weight_bits, minimum)
        twice += step * sums.to(torch.int64) + lifted * counts.to(torch.int64)[..., None]
    return twice


def upper_rows(upper: Tensor, bits: int, weight_bits: int, minimum: Tensor | None) -> Tensor:
    """Return what upper bits stand for, in halves of the unit of the layer's own rows: int16, of the same shape.

    Args:
        upper: integers as `coarser` has them.
        bits: of these.
        weight_bits: as for `twice_the_sums`.
        minimum: as for `twice_the_sums`.
    """
    step, lifted = _in_halves(bits, weight_bits, minimum)
    return step * upper.to(torch.int16) + lifted


def _in_halves(bits: int, weight_bits: int, minimum: Tensor | None) -> tuple[int, int]:
    """Return what a unit of upper bits and their zero stand for, in halves."""
    step = 2 ** (weight_bits - bits)
    return 2 * step, 2 * _lowest(weight_bits, minimum) + step - 1


def use_upper_bits(quantized: QuantizedWeight) -> bool:
    """Return whether integers use all of their bits, which those of 5 or 6 bits in a file do not."""
    weight = quantized.weight
    if weight.is_meta or quantized.weight_bits < 8:
        return True
    largest = int(weight.to(torch.int16).abs().amax()) if weight.numel() else 0
    return largest == 0 or largest >= 64


def check_fewer_bits(coarse: Coarse, weight_bits: int, where: str) -> None:
    """Raise an InputError unless coarse rows have fewer bits than the layer's own rows."""
    if coarse and coarse[-1][0] >= weight_bits:
        raise InputError(
            f"{where}: expected fewer bits than the {weight_bits} of the layer's own rows, got {coarse[-1][0]}. Leave "
            "it out for this layer, or take fewer bits."
        )


def check_coarse(coarse: object, where: str) -> None:
    """Raise an InputError unless that is a list of pairs (bits, up_to) as `GradedLinear` takes them."""
    fits = isinstance(coarse, Sequence) and not isinstance(coarse, str) and len(coarse) > 0
    fits = fits and all(isinstance(pair, Sequence) and len(pair) == 2 for pair in coarse)  # pyright: ignore
    pairs: Any = coarse
    fits = fits and all(type(number) is int for pair in pairs for number in pair)
    fits = fits and all(bits in COARSE_BITS and up_to >= 1 for bits, up_to in pairs)
    fits = fits and all(b > a and d > c for (a, c), (b, d) in pairwise(pairs))
    if not fits:
        raise InputError(
            f"{where}: expected pairs (bits, up_to) of integers, both rising, bits 2 or 4 and up_to at least 1, such "
            f"as ((2, 4),), got {coarse!r}."
        )
