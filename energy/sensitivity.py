"""How much each energy of a table moves the result."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .counts import ModelCounts
from .digital import DigitalEnergy
from .energy_report import ratio

# A power of two, so that little is lost in rounding.
_STEP = 2.0**-8


@dataclass(frozen=True)
class Sensitivity:
    """How much one entry of a table matters.

    Attributes:
        entry: name.
        spiking_share: share of the spiking model's energy that is proportional to it.
        int8_share: the same of the dense INT8 model.
        ratio_vs_int8: of the table as it is.
        ratio_if_doubled: the same if this energy were twice as large.
        ratio_if_halved: the same if it were half as large.
    """

    entry: str
    spiking_share: float
    int8_share: float
    ratio_vs_int8: float | None
    ratio_if_doubled: float | None
    ratio_if_halved: float | None


def sensitivity(counts: ModelCounts, model: DigitalEnergy) -> tuple[Sensitivity, ...]:
    """Return how much each entry of the table matters, starting with the one that moves the ratio most.

    Energy is linear in every entry, so a step of any size gives its share.

    Args:
        counts: what ran.
        model: the estimate whose table is varied.
    """
    before = model.estimate(counts)
    found = []
    for entry in model.table.entries:
        after = replace(model, table=model.table.scaled(entry, 1 + _STEP)).estimate(counts)
        spiking = (after.total_pj - before.total_pj) / _STEP
        int8 = (after.int8_total_pj - before.int8_total_pj) / _STEP
        if not (spiking or int8):
            continue
        found.append(
            Sensitivity(
                entry,
                spiking / before.total_pj if before.total_pj else 0.0,
                int8 / before.int8_total_pj if before.int8_total_pj else 0.0,
                before.ratio_vs_int8,
                ratio(before.int8_total_pj + int8, before.total_pj + spiking),
                ratio(before.int8_total_pj - int8 / 2, before.total_pj - spiking / 2),
            )
        )
    return tuple(sorted(found, key=lambda s: -abs(s.spiking_share - s.int8_share)))
