"""Units in which figures are readable."""

from __future__ import annotations

_ENERGY_UNITS = ((1e9, "mJ"), (1e6, "µJ"), (1e3, "nJ"), (1.0, "pJ"))


def energy_unit(most_pj: float) -> tuple[float, str]:
    """Return what picojoules are divided by so that the largest of some is readable, and the unit.

    >>> energy_unit(485e6)
    (1000000.0, 'µJ')
    """
    return next((unit for unit in _ENERGY_UNITS if most_pj >= unit[0]), _ENERGY_UNITS[-1])
