"""Coarse rows: the same weights in fewer bits."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from ...errors import InputError
from .quantize import QuantizedWeight, dequantize

# Pairs (bits, up_to): counts of a magnitude up to `up_to` read rows of `bits` bits.
Coarse: TypeAlias = tuple[tuple[int, int], ...]
COARSE_BITS = (2, 4)
# Input channels that share a scale in coarse rows of weights that have none in groups.
GROUP = 32
# Shares of a group's range that are tried; what lies beyond is cut off.
_RANGES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)
# Below this variance, upper bits of at most 15 are equal but for the rounding of float64.
_NO_SPREAD = 1e-12


def coarser(quantized: QuantizedWeight, bits: int) -> QuantizedWeight:
    """Return weights in fewer bits.

    4-bit weights with a minimum, as files have them: the upper bits h of each integer, W = scale * (slope * h + offset)
    + minimum, with the slope and the offset of the whole matrix that leave the smallest squared error. So coarse rows
    are part of the layer's own rows, and have no scales of their own to read.

    Others: integers and minima in groups of 32 channels, with that share of each group's range that leaves the smallest
    squared error.

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
    if not are_upper_bits(quantized.weight_bits, quantized.minimum):
        return _rounded(quantized, bits)
    assert quantized.minimum is not None
    # Not shifted: in training the integers are floats.
    upper = quantized.weight.div(2 ** (quantized.weight_bits - bits), rounding_mode="floor")
    slope, offset = _line(quantized, upper)
    scale, minimum = quantized.scale * slope, quantized.minimum + quantized.scale * offset
    return QuantizedWeight(upper, scale, minimum, quantized.group_size, bits)


def check_fewer_bits(coarse: Coarse, weight_bits: int, where: str) -> None:
    """Raise an InputError unless coarse rows have fewer bits than the layer's own rows."""
    if coarse and coarse[-1][0] >= weight_bits:
        raise InputError(
            f"{where}: expected fewer bits than the {weight_bits} of the layer's own rows, got {coarse[-1][0]}. Leave "
            "it out for this layer, or take fewer bits."
        )


def are_upper_bits(weight_bits: int, minimum: Tensor | None) -> bool:
    """Return whether coarse rows are upper bits of a layer's own rows, from whose scales theirs follow.

    Integers of 8 bits need not use all of them: those of Q5_1 files end at 31.
    """
    return weight_bits < 8 and minimum is not None


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


def _line(quantized: QuantizedWeight, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Return slope and offset with the least sum of (scale * (integer - slope * upper - offset))^2, as float32."""
    num_out, num_in = upper.shape
    num_groups = quantized.scale.shape[1]
    size = quantized.group_size or max(num_in, 1)
    x, y = (F.pad(one.float(), (0, num_groups * size - num_in)) for one in (upper, quantized.weight))
    # Sums over a group are whole numbers that float32 has exactly; all else are a few numbers a group.
    parts = (x, y, x * x, x * y)
    sums = torch.stack([part.reshape(num_out, num_groups, size).sum(2) for part in parts]).double()
    weight = quantized.scale.double().square()
    sizes = torch.full((num_groups,), size, dtype=torch.float64, device=weight.device)
    sizes[-1] -= num_groups * size - num_in
    total = (weight * sizes).sum().clamp(min=torch.finfo(torch.float64).tiny)
    mean_x, mean_y, mean_xx, mean_xy = (weight * sums).sum((1, 2)) / total
    spread = mean_xx - mean_x.square()
    # Where all upper bits are equal, the spread is rounding noise, and the offset is all there is.
    slope = torch.where(spread > _NO_SPREAD, (mean_xy - mean_x * mean_y) / spread, 0.0)
    return slope.float(), (mean_y - slope * mean_x).float()


def _rounded(quantized: QuantizedWeight, bits: int) -> QuantizedWeight:
    """Round weights to integers of some bits with minima, in groups of `GROUP` channels."""
    floats = dequantize(quantized.weight, quantized.scale, quantized.minimum, quantized.group_size)
    num_out, num_in = floats.shape
    num_groups = max(-(-num_in // GROUP), 1)
    padded = F.pad(floats, (0, num_groups * GROUP - num_in)).reshape(num_out, num_groups, GROUP)
    there = F.pad(torch.ones_like(floats, dtype=torch.bool), (0, num_groups * GROUP - num_in))
    there = there.reshape(num_out, num_groups, GROUP)
    low = padded.masked_fill(~there, torch.inf).amin(2, keepdim=True)
    high = padded.masked_fill(~there, -torch.inf).amax(2, keepdim=True)
    most = 2**bits - 1
    best: tuple[Tensor, ...] | None = None
    for share in _RANGES:
        minimum = (low + high) / 2 - (high - low) / 2 * share
        scale = torch.where(high > low, (high - low) * share / most, torch.ones_like(high))
        scale = scale.clamp(min=torch.finfo(torch.float32).tiny)
        integers = ((padded - minimum) / scale).round_().clamp_(0, most)
        error = ((integers * scale + minimum - padded) * there).square().sum(2, keepdim=True)
        if best is None:
            best = integers, scale, minimum, error
        else:
            better = error < best[3]
            pairs = zip((integers, scale, minimum, error), best, strict=True)
            best = tuple(torch.where(better, new, old) for new, old in pairs)
    assert best is not None
    weight = (best[0] * there).reshape(num_out, -1)[:, :num_in].to(quantized.weight.dtype)
    return QuantizedWeight(weight, best[1].squeeze(2), best[2].squeeze(2), GROUP, bits)
