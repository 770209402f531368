"""One loaded model, and what is asked of it with one setting after the other."""

from __future__ import annotations

import statistics
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import fields, replace
from functools import cached_property
from types import SimpleNamespace
from typing import Any, TypeVar

from torch import Tensor, nn

from ...analysis.perplexity import perplexity_of, window_nlls
from ...analysis.stats import SpikeStatistics, spike_statistics
from ...chip import Description, load_description
from ...chip.description import PARTS
from ...energy import EnergyReport, ModelCounts, PaperEnergy, PaperReport, count_operations, load_table
from ...models import SpikeSettings, to_spiking
from ...models.recording import record
from ...neuro import NEURONS, Neuron
from ...registry import describe
from ...simulation.model import ModelOnChip, simulate_model, survey_model
from ...simulation.stages import Survey
from ..energy import energy_model
from ..eval_tasks import TASKS, Documents
from ..given import SPIKES, spike_settings, usual
from .keys import KEYS, chip_values, split_key

T = TypeVar("T")
CHIP_TOKENS = 16
# Requests of a task that run together.
_BATCH = 32
# Runs whose figures are kept; they are small, without spikes and without the model.
_KEPT = 64
_ENERGY = ("reads_per", "shifts_per", "sums_in", "sram_bytes", "on_chip_bytes", "leakage_w", "token_s")

Point = Mapping[str, Any]


def settings_of(point: Point) -> SpikeSettings:
    """Return which layers spike, and how, at a point of a sweep.

    Args:
        point: values by key; what is not given is as in `SpikeSettings`.
    """
    given = {name: point.get(name) for name in SPIKES if name not in ("neuron", "k")}
    given["skip"] = tuple(given["skip"].split()) if given["skip"] else None
    found = spike_settings(SimpleNamespace(k=None, **given))
    neuron = _neuron_of(point)
    return found if neuron is None else SpikeSettings(**{**vars(found), "neuron": neuron})


def _neuron_of(point: Point) -> Neuron | dict[str, Neuron] | None:
    """Return the neuron at a point, or neurons by pattern of layers; None if nothing is said of it."""
    own = {key: value for key, value in point.items() if split_key(key)[0] in ("neuron", "k")}
    if not own:
        return None

    def made(pattern: str | None) -> Neuron:
        def value(key: str) -> Any:
            return own.get(f"{key}.{pattern}", own.get(key))

        cls, k = NEURONS.get(usual(value("neuron"), "adaptive-threshold")), value("k")
        return cls() if k is None else cls(k=k)  # pyright: ignore[reportCallIssue] - settings ask for `takes_k`

    patterns = dict.fromkeys(pattern for key in own if (pattern := split_key(key)[1]) is not None)
    if not patterns:
        return made(None)
    return {pattern: made(pattern) for pattern in patterns} | ({} if "*" in patterns else {"*": made(None)})


def energy_of(point: Point) -> Any:
    """Return the energy model at a point of a sweep."""
    options = {key: point[key] for key in _ENERGY if point.get(key) is not None}
    return energy_model(load_table(usual(point.get("table"), "horowitz_45nm")), **options)


def chip_of(point: Point) -> Description:
    """Return the chip at a point of a sweep."""
    return load_description(point.get("chip", "async-45nm")).varied(chip_values(point))


def without_prices(chip: Description) -> Description:
    """Return what of a chip decides on the events of a simulation: energies, powers and sleep do not."""
    parts = {}
    for part in PARTS:
        free = [f.name for f in fields(getattr(chip, part)) if f.name.endswith(("_pj", "_mw", "_share"))]
        parts[part] = replace(getattr(chip, part), **dict.fromkeys(free, 0.0))
    parts["core"] = replace(parts["core"], wake_ns=0.0)
    return replace(chip, name="", process="", sources={}, **parts)


class Bench:
    """A model and a text, on which runs are made; no run changes the model.

    Args:
        model: as it was loaded.
        windows: token ids, each [L].
        spikes: whether the model spikes already, so that it runs as it is.
        tasks: documents that `accuracy` is measured on.
        tokenizer: for these.
    """

    def __init__(
        self,
        model: nn.Module,
        windows: list[Tensor],
        spikes: bool,
        tasks: Sequence[Documents] = (),
        tokenizer: Any = None,
    ) -> None:
        self.model, self.windows, self.spikes = model, windows, spikes
        self.tasks, self.tokenizer = tasks, tokenizer
        self._kept: OrderedDict[Hashable, Any] = OrderedDict()
        self._on_spikes: tuple[str, nn.Module] | None = None
        self._surveyed: tuple[Hashable, Survey] | None = None

    def run(self, point: Point) -> Run:
        """Return the run with the settings of a point; it runs when it is asked for a figure."""
        return Run(self, {name: value for name, value in point.items() if value is not None})

    @cached_property
    def float_perplexity(self) -> float:
        """Perplexity of the model as it was loaded."""
        return perplexity_of(self.nlls(self.model), self.windows)

    def surveyed(self, key: Hashable, make: Callable[[], Survey]) -> Survey:
        """Return the spikes of a run for all chips; only the last ones are kept."""
        if self._surveyed is None or self._surveyed[0] != key:
            self._surveyed = None  # before there are two of them
            self._surveyed = key, make()
        return self._surveyed[1]

    def on_spikes(self, settings: SpikeSettings) -> nn.Module:
        """Return a copy of the model that spikes; the last one is kept for runs that spike in the same way."""
        key = describe(settings)
        if self._on_spikes is None or self._on_spikes[0] != key:
            self._on_spikes = None  # before there are two of them
            self._on_spikes = key, to_spiking(self.model, settings)
        return self._on_spikes[1]

    def nlls(self, model: nn.Module) -> list[float]:
        """Return the negative log-likelihood of each window."""
        return window_nlls(model, self.windows)

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return what was made for a key lately, or make it."""
        if key not in self._kept:
            self._kept[key] = make()
        self._kept.move_to_end(key)
        while len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return self._kept[key]


class Run:
    """A model with the settings of one point; each figure is made when it is asked for, and once.

    Args:
        bench: model and text.
        point: values by key.
    """

    def __init__(self, bench: Bench, point: Point) -> None:
        self._bench, self._point = bench, point

    @cached_property
    def model(self) -> nn.Module:
        """The model on spikes: a copy, which no run changes."""
        return self._bench.model if self._bench.spikes else self._bench.on_spikes(self._settings)

    @cached_property
    def _settings(self) -> SpikeSettings:
        return settings_of(self._point)

    @property
    def _key(self) -> str:
        return "" if self._bench.spikes else describe(self._settings)

    @cached_property
    def _recorded(self) -> tuple[float, SpikeStatistics, ModelCounts]:
        block_bytes, shared_tokens = self._point.get("block_bytes", 64), self._point.get("shared_tokens", 1)

        def make() -> tuple[float, SpikeStatistics, ModelCounts]:
            with record(self.model, block_bytes=(block_bytes,), shared_tokens=(shared_tokens,)) as recording:
                perplexity = perplexity_of(self._bench.nlls(self.model), self._bench.windows)
            layers = [layer for layer in recording.layers.values() if layer.num_tokens]  # an expert may be silent
            counts = count_operations(recording, block_bytes=block_bytes, shared_tokens=shared_tokens)
            return perplexity, spike_statistics(layers), counts.grouped()

        return self._bench.once(("recorded", self._key, block_bytes, shared_tokens), make)

    @property
    def perplexity(self) -> float:
        """Perplexity on the text."""
        return self._recorded[0]

    @property
    def accuracy(self) -> float:
        """The mean over tasks of each one's metric, as in `spikebrain eval`."""

        def make() -> float:
            from ..eval_scoring import Scorer  # noqa: PLC0415 - lm-eval is of an extra

            scorer = Scorer(self.model, self._bench.tokenizer, _BATCH)
            rows = {task.task: scorer.score(task.task, task.documents) for task in self._bench.tasks}
            return statistics.fmean(statistics.fmean(r[TASKS[name].metric] for r in rows[name]) for name in rows)

        return self._bench.once(("accuracy", self._key), make)

    @property
    def statistics(self) -> SpikeStatistics:
        """Statistics of all spikes."""
        return self._recorded[1]

    @property
    def known_statistics(self) -> SpikeStatistics | None:
        """Statistics of all spikes, if a figure that was asked for needed them."""
        return self._recorded[1] if "_recorded" in vars(self) else None

    @property
    def counts(self) -> ModelCounts:
        """Operations and bytes, of like layers together."""
        return self._recorded[2]

    @property
    def weight_bytes(self) -> float:
        """Bytes of weights, scales and biases that are read a token."""
        total = self.counts.total("spiking")
        spiking = getattr(total, f"weight_{self._point.get('reads_per', 'channel')}_bytes")
        return (spiking + total.weight_bytes + total.parameter_bytes) / self.counts.num_tokens

    @cached_property
    def energy(self) -> EnergyReport:
        """Energy of the run by the table and options of the point."""
        return energy_of(self._point).estimate(self.counts)

    @cached_property
    def paper(self) -> PaperReport:
        """Eq. 24 with the table of the point."""
        return PaperEnergy(energy_of({"table": self._point.get("table")}).table).estimate(self.counts)

    @cached_property
    def simulated(self) -> ModelOnChip:
        """The first tokens of the text on the chip of the point. Chips that differ only in prices share the events."""
        given = {
            n: v for n, v in self._point.items() if split_key(n)[0] != "chip" and KEYS[split_key(n)[0]].effect == "chip"
        }
        num_tokens = given.pop("chip_tokens", CHIP_TOKENS)
        chip = chip_of(self._point)

        def make() -> ModelOnChip:
            ids = self._bench.windows[0][:num_tokens]
            surveyed = self._bench.surveyed((self._key, num_tokens), lambda: survey_model(self.model, ids))
            found = simulate_model(self.model, ids, chip, surveyed=surveyed, **given)
            # What is kept of many chips is small: no objective asks for single queues, links and cores.
            layers = {
                name: replace(layer, busy=layer.busy[:0], queues={}, links={}, tiles={})
                for name, layer in found.layers.items()
            }
            return replace(found, layers=layers)

        events = self._bench.once(("simulated", self._key, num_tokens, *given.items(), without_prices(chip)), make)
        return replace(events, chip=chip)

    @property
    def known_parts(self) -> dict[str, float]:
        """Energy on the chip by component, in pJ per MAC, if a figure that was asked for needed it."""
        if "simulated" not in vars(self):
            return {}
        found = self.simulated
        return {name: pj / found.activity.num_macs for name, pj in found.energy_pj.items()}

    @cached_property
    def tokens_per_s(self) -> float:
        """Tokens a second, of whole windows, while nobody records; the first window runs once before."""
        window_nlls(self.model, self._bench.windows[:1])
        began = time.perf_counter()
        self._bench.nlls(self.model)
        return sum(len(window) for window in self._bench.windows) / (time.perf_counter() - began)
