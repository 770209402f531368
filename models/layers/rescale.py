"""Integer sums become outputs: the plain rule, which kernels of grouped layers follow operation by operation."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ...backends.base import ScaleUnits
from ...errors import InputError


def rescale(
    sums: Tensor, scale: Tensor, threshold: Tensor, minimum: Tensor | None = None, group_count: Tensor | None = None
) -> Tensor:
    """Return threshold * sum over groups g of (scale[g] * S[g] + minimum[g] * C[g]), in the threshold's dtype.

    Each operation is rounded, without fused multiply-adds, in this order: S and C become floats; scale * S;
    minimum * C; the sum of both; the terms of the groups, one after the other from the first on; times the threshold.

    Args:
        sums: S, exact, integers [tokens, groups, out_features].
        scale: float32, [out_features, groups].
        threshold: float32 or float64, [tokens, 1].
        minimum: float32, [out_features, groups], or None.
        group_count: C, each group's sum of counts, int64 [tokens, groups]; only with a minimum.
    Raises:
        InputError: scale or minimum were replaced by some of another shape.
    """
    expected = (sums.shape[2], sums.shape[1])
    for name, value in (("scale", scale), ("minimum", minimum)):
        if value is not None and value.shape != expected:
            raise InputError(f"{name}: expected shape {expected}, got {tuple(value.shape)}.")
    y = threshold.new_zeros(len(sums), sums.shape[2])
    for g in range(sums.shape[1]):
        term = sums[:, g] * scale[:, g].to(threshold.dtype)
        if minimum is not None:
            assert group_count is not None
            term += group_count[:, g, None] * minimum[:, g].to(threshold.dtype)
        y = term if g == 0 else y.add_(term)
    return y * threshold


def rescale_in_units(sums: Tensor, units: ScaleUnits, threshold: Tensor, group_count: Tensor | None = None) -> Tensor:
    """Return threshold * (unit * sum over groups of steps[g] * S[g] + the same of the minima and C), in its dtype.

    Both sums over groups are exact integers. Each of these operations is rounded: the sums become floats; times their
    units; the sum of both; times the threshold.

    Args:
        sums: S, exact, integers [tokens, groups, out_features].
        units: of the layer's scales and minima.
        threshold: float32 or float64, [tokens, 1].
        group_count: C, each group's sum of counts, int64 [tokens, groups]; only with minima.
    """
    dtype = threshold.dtype
    total = sums.new_zeros(len(sums), sums.shape[2], dtype=torch.int64)
    for g in range(sums.shape[1]):
        total += sums[:, g] * units.steps[:, g].to(torch.int64)
    y = total.to(dtype) * units.unit.to(dtype)
    if units.minimum_steps is not None:
        assert units.minimum_unit is not None
        assert group_count is not None
        of_minima = (group_count[:, :, None] * units.minimum_steps.t().to(torch.int64)).sum(1)
        y += of_minima.to(dtype) * units.minimum_unit.to(dtype)
    return y * threshold


def group_counts(count: Tensor, group_size: int | None) -> Tensor:
    """Return the exact sum of counts of each group, int64 [tokens, groups].

    Args:
        count: spike counts, [tokens, in_features].
        group_size: input channels of a group; None for all.
    """
    num_in = count.shape[1]
    size = group_size or max(num_in, 1)
    num_groups = max(-(-num_in // size), 1)
    padded = F.pad(count, (0, num_groups * size - num_in))
    return padded.reshape(len(count), num_groups, size).sum(2, dtype=torch.int64)
