"""Terms that fitting and training share: a learning rate by step, and the error that layers are judged by."""

from __future__ import annotations

import math

from torch import Tensor


def rate_at(step: int, steps: int, peak: float, warmup: int) -> float:
    """Return the learning rate of a step, from 0: it rises over the warm-up, then falls to 0 along a cosine.

    Args:
        step: from 0.
        steps: number of all steps.
        peak: rate after the warm-up, without the fall.
        warmup: steps in which the rate rises from 0.

    >>> [round(rate_at(step, 4, 1.0, 1), 3) for step in range(4)]
    [0.5, 0.854, 0.5, 0.146]
    """
    return peak * min((step + 1) / (warmup + 1), 1.0) * 0.5 * (1 + math.cos(math.pi * step / steps))


def relative_error(found: Tensor, wanted: Tensor) -> Tensor:
    """Return |found - wanted|^2 / |wanted|^2 over all numbers, in float32."""
    return (found.float() - wanted.float()).square().sum() / wanted.float().square().sum().clamp(min=1e-30)
