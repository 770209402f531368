"""Means with standard errors, and differences of two models that were given the same samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from .perplexity import exp_of_mean


class Estimate(NamedTuple):
    """A mean and its standard error, which is None for a single sample."""

    value: float
    stderr: float | None


def estimate_mean(values: Sequence[float]) -> Estimate:
    """Return the mean of samples; its error is their deviation (n - 1 in the denominator) over the root of n.

    >>> estimate_mean([1.0, 0.0, 1.0, 0.0])
    Estimate(value=0.5, stderr=0.28867513459481287)
    """
    n = len(values)
    mean = math.fsum(values) / n
    if n < 2:
        return Estimate(mean, None)
    return Estimate(mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1) / n))


def estimate_difference(values: Sequence[float], base: Sequence[float]) -> Estimate:
    """Return the mean difference of paired samples, and its error, which only samples that differ add to.

    >>> estimate_difference([1.0, 0.0, 1.0, 1.0], [1.0, 0.0, 0.0, 1.0])
    Estimate(value=0.25, stderr=0.25)
    """
    return estimate_mean([a - b for a, b in zip(values, base, strict=True)])


def estimate_perplexity(nlls: Sequence[float], num_tokens: Sequence[int]) -> Estimate:
    """Return exp of the mean negative log-likelihood per token, with an error from the spread of the samples.

    Args:
        nlls: summed negative log-likelihood of each sample, in nats.
        num_tokens: predicted tokens of each sample.
    """
    mean = estimate_ratio(nlls, num_tokens)
    value = exp_of_mean(mean.value)
    return Estimate(value, None if mean.stderr is None else value * mean.stderr)


def estimate_ratio(sums: Sequence[float], sizes: Sequence[int]) -> Estimate:
    """Return sum of sums over sum of sizes; samples of other sizes count as they weigh (the ratio estimator).

    >>> estimate_ratio([2.0, 4.0], [2, 2]).value
    1.5
    """
    n, total = len(sums), sum(sizes)
    ratio = math.fsum(sums) / total
    if n < 2:
        return Estimate(ratio, None)
    squares = math.fsum((s - ratio * size) ** 2 for s, size in zip(sums, sizes, strict=True))
    return Estimate(ratio, math.sqrt(n / (n - 1) * squares) / total)
