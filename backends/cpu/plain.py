"""What the kernels of `tiles.py` compute, in plain numpy, operation by operation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def sums_of_groups(
    weight: np.ndarray, count: np.ndarray, group_size: int | None, upper: Sequence[tuple[int, int]] = ()
) -> tuple[np.ndarray, np.ndarray]:
    """Return the exact sums of count * weight and of count in each group of inputs, int64 [groups, out] and [groups].

    Args:
        weight: integers, [out, in].
        count: integers, [in].
        group_size: inputs of a group; None for all.
        upper: pairs (edge, dropped), see `tiles.reading`. Where there are any, channels that drop bits have the middle
            of the integers with the same upper bits in the place of a weight, and the sums of weights are twice what
            they would be.
    """
    starts = np.arange(0, len(count), group_size or len(count))
    integers = weight.T.astype(np.int64)
    if upper:
        twice = 2 * integers
        for edge, dropped in reversed(upper):  # the smallest counts last
            middle = 2 * (integers >> dropped << dropped) + 2**dropped - 1
            twice = np.where(np.abs(count)[:, None] <= edge, middle, twice)
        integers = twice
    products = integers * count.astype(np.int64)[:, None]
    return np.add.reduceat(products, starts, 0), np.add.reduceat(count.astype(np.int64), starts)


def rescaled(
    sums: np.ndarray,
    totals: np.ndarray,
    scale: np.ndarray,
    minimum: np.ndarray | None,
    threshold: np.float32,
    *,
    are_twice: bool = False,
) -> np.ndarray:
    """Return outputs from sums, float32 [out]; every operation is rounded to float32.

    Args:
        sums: of `sums_of_groups`.
        totals: of `sums_of_groups`.
        scale: float32, [out, groups].
        minimum: float32, [out, groups], or None.
        threshold: of the input.
        are_twice: whether the sums are twice what they would be.
    """
    if are_twice:
        scale = scale * np.float32(0.5)
    y = np.zeros(sums.shape[1], np.float32)
    for g in range(len(sums)):
        term = sums[g].astype(np.float32) * scale[:, g]
        if minimum is not None:
            term += np.float32(totals[g]) * minimum[:, g]
        y += term
    return y * threshold
