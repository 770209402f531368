"""Figures in words, as a reader would say them."""

from __future__ import annotations

from datetime import timedelta

# Ratios between these are called the same.
_SAME = 0.005


def cost_in_words(ratio: float | None) -> str:
    """Return what spikes cost, from the energy of a dense model divided by that of the spiking one.

    >>> [cost_in_words(r).replace("\u00a0", " ") for r in (6.42, 1.12, 1.0, 0.8, 1 / 75, None)]
    ['costs 6.4 times less', 'costs 11 % less', 'costs the same', 'costs 25 % more', 'costs 75 times more', 'no spikes']
    """
    if ratio is None or ratio <= 0:
        return "no spikes"
    if abs(ratio - 1) <= _SAME:
        return "costs the same"
    if ratio >= 2:
        return f"costs {_times(ratio)} times less"
    if ratio > 1:
        return f"costs {percent(1 - 1 / ratio)} less"
    return f"costs {percent(1 / ratio - 1)} more" if ratio > 0.5 else f"costs {_times(1 / ratio)} times more"


def change_in_words(change: float) -> str:
    """Return a relative change of a figure that should be small.

    >>> [change_in_words(c).replace("\u00a0", " ") for c in (0.0532, -0.01, 0.0)]
    ['5.3 % higher', '1.0 % lower', 'the same']
    """
    if abs(change) < 0.0005:
        return "the same"
    return f"{percent(abs(change), 1)} {'higher' if change > 0 else 'lower'}"


def percent(share: float, digits: int = 0) -> str:
    r"""Return a share in percent, with a no-break space.

    >>> percent(0.117) == "12\u00a0%"
    True
    """
    return f"{100 * share:.{digits}f}\u00a0%"


def amount(value: float, unit: str) -> str:
    r"""Return a number with a prefix of its unit.

    >>> [amount(value, "B").replace("\u00a0", " ") for value in (107_000_000, 512, 0)]
    ['107 MB', '512 B', '0 B']
    >>> amount(0.000994, "s").replace("\u00a0", " ")
    '994 µs'
    """
    size = abs(value)
    for factor, prefix in _PREFIXES:
        if size >= factor:
            return f"{_three(value / factor)}\u00a0{prefix}{unit}"
    return f"{value:.3g}\u00a0{unit}"


def duration(seconds: float) -> str:
    """Return a time as minutes and seconds.

    >>> duration(200.7), duration(7.25)
    ('3:20 min', '7.2 s')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{str(timedelta(seconds=int(seconds))).removeprefix('0:').lstrip('0')} min"


_PREFIXES = (
    (1e12, "T"),
    (1e9, "G"),
    (1e6, "M"),
    (1e3, "k"),
    (1.0, ""),
    (1e-3, "m"),
    (1e-6, "µ"),
    (1e-9, "n"),
    (1e-12, "p"),
)


def _three(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def _times(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"
