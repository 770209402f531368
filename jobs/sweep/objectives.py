"""What a sweep can look for. An objective is a named function of a run; to add one is to add a record here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from ...errors import InputError
from ...simulation.leakage import used_cores
from .bench import Run
from .keys import unknown


@dataclass(frozen=True)
class Objective:
    """A figure of a run that is to be small, or large.

    Attributes:
        of: returns it; whatever it asks of the run is run for it.
        better: "lower" or "higher".
        effects: groups of keys (`Key.effect`) that it depends on.
        meaning: with its unit, and whether it is measured, counted, modelled or simulated.
        form: how a table shows it.
    """

    of: Callable[[Run], float]
    better: Literal["lower", "higher"]
    effects: frozenset[str]
    meaning: str
    form: str

    @property
    def on_chip(self) -> bool:
        """Whether it is simulated, so that the model has to run on the CPU."""
        return "chip" in self.effects


def _record(of: Callable[[Run], float], better: Literal["lower", "higher"], effects: str, meaning: str, form: str):
    return Objective(of, better, frozenset(effects.split()), meaning, form)


def _ratio(value: float | None) -> float:
    if value is None:
        raise InputError("energy: expected spikes to compare with, but nothing fired. Raise `k`.")
    return value


# Codes are exact, so an encoder changes a perplexity only if it is lossy: `settings.in_vain` knows.
OBJECTIVES: dict[str, Objective] = {
    "perplexity": _record(lambda run: run.perplexity, "lower", "spikes weights lossy", "measured on the text", ".3f"),
    "accuracy": _record(
        lambda run: run.accuracy,
        "higher",
        "spikes weights lossy",
        "measured, of `tasks` by lm-eval, their mean",
        ".4f",
    ),
    "spikes": _record(
        lambda run: run.statistics.mean_spikes,
        "lower",
        "spikes weights code",
        "counted, of either sign, per channel and token",
        ".4f",
    ),
    "bytes_read": _record(
        lambda run: run.weight_bytes,
        "lower",
        "spikes weights code reads",
        "counted, bytes of weights that a token reads",
        ",.0f",
    ),
    "energy_paper": _record(
        lambda run: _ratio(run.paper.ratio_vs_int8),
        "higher",
        "spikes weights code table",
        "modelled by the paper's estimate (additions only), energy of dense INT8 / on spikes",
        ".2f",
    ),
    "energy_digital": _record(
        lambda run: _ratio(run.energy.ratio_vs_int8),
        "higher",
        "spikes weights code table reads costs",
        "modelled with all costs, energy of dense INT8 / on spikes",
        ".3f",
    ),
    "energy_nj": _record(
        lambda run: run.energy.total_pj / run.energy.num_tokens / 1e3,
        "lower",
        "spikes weights code table reads costs",
        "modelled, nanojoules a token; also with tables of chips",
        ",.1f",
    ),
    "chip_latency_us": _record(
        lambda run: float(run.simulated.token_ps.mean()) / 1e6,
        "lower",
        "spikes weights code chip",
        "simulated, microseconds a token",
        ",.1f",
    ),
    "chip_energy_nj": _record(
        lambda run: sum(run.simulated.energy_pj.values()) / run.simulated.num_tokens / 1e3,
        "lower",
        "spikes weights code chip",
        "simulated, nanojoules a token",
        ",.1f",
    ),
    "chip_pj_per_mac": _record(
        lambda run: sum(run.simulated.energy_pj.values()) / run.simulated.activity.num_macs,
        "lower",
        "spikes weights code chip",
        "simulated, picojoules of everything for each MAC of the layers that spike",
        ".3f",
    ),
    "chip_cores": _record(
        lambda run: used_cores(run.simulated.placements.values()),
        "lower",
        "spikes weights chip",
        "counted, cores that hold weights",
        ",.0f",
    ),
    "tokens_per_s": _record(
        lambda run: run.tokens_per_s,
        "higher",
        "spikes weights code backend",
        "measured while nothing is recorded; workers disturb each other",
        ",.1f",
    ),
}


def objective_of(name: str) -> Objective:
    """Return the objective of that name; raise an InputError with those that are spelt alike if there is none."""
    if name not in OBJECTIVES:
        raise InputError(f"objectives: {unknown(name, OBJECTIVES, 'objective')}")
    return OBJECTIVES[name]
