"""Figures in words, said the same way by all commands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path


def as_ratio(ratio: float) -> str:
    """Return a ratio with two places, or as many as a small one needs.

    >>> as_ratio(6.4234), as_ratio(0.00334)
    ('6.42x', '0.0033x')
    """
    return f"{ratio:.2f}x" if ratio >= 0.1 or ratio == 0 else f"{ratio:.2g}x"


def less_or_more(ratio: float | None, than: str) -> str:
    """Return how many times less, or more, something costs than what it replaces.

    Args:
        ratio: cost of what is replaced over that of the new; None if there is none.
        than: goes on from "less" and "more", such as "energy than INT8".

    >>> less_or_more(1.118, "energy than INT8"), less_or_more(1 / 75, "energy than INT8")
    ('1.12x less energy than INT8', '75 times more energy than INT8')
    """
    if ratio is None:
        return "no energy to compare, since nothing fired"
    if ratio >= 1:
        return f"{ratio:.2f}x less {than}"
    times = 1 / ratio
    return f"{times:,.0f} times more {than}" if times >= 100 else f"{times:.3g} times more {than}"


def shares_in_words(values: Mapping[str, float]) -> str:
    """Return the shares that values have of their sum, leaving out what is below a thousandth.

    >>> shares_in_words({"layers on spikes": 3.0, "norms": 1.0, "residual": 0.001})
    'layers on spikes 75.0%, norms 25.0%'
    """
    whole = sum(values.values())
    shares = {name: value / whole for name, value in values.items()} if whole else {}
    return ", ".join(f"{name} {share:.1%}" for name, share in shares.items() if share >= 1e-3) or "nothing is counted"


def unconfirmed(names: Sequence[str]) -> str:
    """Return what it means that the source of some energies was not seen, and what to do."""
    return (
        f"Not confirmed by the table's source: {', '.join(names)}. This project quotes the number without having seen "
        "it there; if you know a better one, put it into a table of your own (spikebrain energy --template)."
    )


def unused(path: Path) -> Path:
    """Return the path, or the first of path-2, path-3, ... that is not there yet."""
    names = (path if i == 1 else path.with_name(f"{path.name}-{i}") for i in range(1, 1000))
    return next((name for name in names if not name.exists()), path)
