"""Which of many runs no other run beats: the Pareto front."""

from __future__ import annotations

from collections.abc import Sequence


def pareto_front(costs: Sequence[Sequence[float]]) -> list[bool]:
    """Return for each point whether no other one is at least as low in all costs and lower in one.

    Args:
        costs: of each point, in any number of objectives.

    >>> pareto_front([(1.0, 3.0), (2.0, 2.0), (2.0, 3.0), (3.0, 1.0)])
    [True, True, False, True]
    """
    return [not any(_beats(other, one) for other in costs) for one in costs]


def _beats(other: Sequence[float], one: Sequence[float]) -> bool:
    pairs = list(zip(other, one, strict=True))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)
