"""What must hold for a table of energies."""

from __future__ import annotations

import math
import os
from dataclasses import replace

import torch

from ..energy import DigitalEnergy, EnergyReport, EnergyTable, ModelCounts, SynopEnergy, count_operations, load_table
from ..errors import InputError
from ..models import SpikeLinear, record
from .laws import random_tensor


def check_energy_table(table: EnergyTable | str | os.PathLike) -> None:
    """Check a table of energies: every number with its unit and source, and a model of energy that works with it.

    A table with "int8_add" must serve `DigitalEnergy`, any other `SynopEnergy`. Twice the energies give twice the
    energy, and nothing costs nothing.

    Args:
        table: an object, a name or the path of a .toml file.
    Raises:
        InputError: something is missing or wrong; the message names the table. All faults of its entries are listed.
    """
    found = load_table(table)
    doubled = replace(found, entries={name: replace(e, pj=2 * e.pj) for name, e in found.entries.items()})
    counts = _counts()
    report, twice = _estimate(found, counts), _estimate(doubled, counts)
    for what, got, expected in (
        ("twice the energy of twice the energies", twice.total_pj, 2 * report.total_pj),
        ("no energy of nothing", _estimate(found, ModelCounts({})).total_pj, 0.0),
    ):
        if not math.isclose(got, expected, rel_tol=1e-9):
            raise InputError(f"energy table {found.name!r}: expected {what}, {expected:g} pJ; got {got:g} pJ.")


def _counts() -> ModelCounts:
    """Return the operations of one small layer."""
    layer = SpikeLinear(random_tensor("weights", (7, 12), 0), torch.ones(7, 1), name="layer")
    model = torch.nn.Sequential(layer)
    with torch.no_grad(), record(model) as recording:
        model(random_tensor("activations", (5, 12), 1))
    return count_operations(recording)


def _estimate(table: EnergyTable, counts: ModelCounts) -> EnergyReport:
    return DigitalEnergy(table).estimate(counts) if "int8_add" in table else SynopEnergy(table).estimate(counts)
