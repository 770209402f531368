"""Find the neuron and the coarse rows of each layer that keep a budget at the least loss, and save that model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...analysis import measure_perplexity
from ...coding import ENCODERS, BidirectionalBitwise, Encoder
from ...energy import DigitalEnergy, count_operations
from ...energy.counts import ModelCounts
from ...errors import InputError
from ...files import read_json, remove, write_json
from ...models import Recording, SpikeSettings, record, save, spiking_layers, to_spiking
from ...models.conversion.divergence import divergence_from, predictions
from ...models.io import load
from ...models.io.checksums import of_text
from ...neuro import DeadZoneThreshold, Neuron
from ..given import usual
from ..inputs import alone, is_spiking, positions_of, read_text, require_new, require_tokenizer, token_ids
from ..progress import SILENT, Progress
from ..resume import describe_source, digest, store_state, stored_state
from .choice import Option, Prices, Table, choose, dense_cost, error_of, predicted, table_of
from .units import PRICED, ROUNDED, Rule, Unit, summing, units_of

FILES = ("calibration.json", "unfinished-calibration.json")
COUNTS = ("read", "spikes", "energy")
# Tokens of a row, at most; tokens that sensitivities are measured on; rows that results are measured on.
_CONTEXT, _SENSITIVE, _HELD_OUT = 512, 256, 2
# The setting at which the sensitivity to a unit's error is measured: |x| below 0.19 of the mean is silent, and below
# 0.8 reads coarse rows.
_PROBE = Option(Rule(8.0), 1, 6)
# A budget counts as kept from here on; the target is corrected at most so often.
_NEAR, _CORRECTIONS = 0.005, 4
# What else than a higher budget helps.
_REMEDIES = {
    "read": ", or take `weights` int4 with `compact_scales`",
    "spikes": "",
    "energy": ", or leave fewer layers dense",
}
_PAPER = (2.0, 3.0, 4.0, 8.0)
# Raised when an older unfinished calibration could not go on.
_FORMAT = 1


class Budget(NamedTuple):
    """What may be spent.

    Attributes:
        counts: "read": bytes of weights, scales and minima that are read, divided by those of dense INT8 layers;
            "spikes": spikes per channel and token; "energy": of the whole model in `DigitalEnergy`, divided by that of
            the dense INT8 model.
        value: at most.
    """

    counts: str
    value: float


def check_budget(budget: Budget, known: Sequence[str] = COUNTS) -> None:
    """Raise an InputError unless a budget counts something known, and its value is a number above 0."""
    if budget.counts not in known:
        raise InputError(f"budget: expected {' or '.join(known)}, got {budget.counts!r}.")
    if not 0 < budget.value < float("inf"):
        raise InputError(f"budget: expected a finite number above 0 for {budget.counts}, got {budget.value:g}.")


@dataclass(frozen=True)
class CalibrateSettings:
    """What is calibrated, on what, and under which budget.

    Attributes:
        model: a causal language model, as `load` takes it, that does not spike.
        budget: what may be spent.
        text: a UTF-8 text; None for the text of the standard library's pydoc_data.topics. Do not take one that results
            are later measured on.
        num_tokens: tokens from its start over which errors are summed; None for 4096. Two more windows of 512 tokens
            (fewer, if the model has fewer positions) are used to measure the result.
        encoder: spike code; None for `BidirectionalBitwise`.
        weights: "int8", "int4" or "stored"; None for "int8".
        compact_scales: keep scales and minima of groups in few bits, which costs less to read; see `SpikeSettings`.
        skip: patterns of the names of layers that stay dense; None for none.
        include_head: put the output head on spikes, too.
        attention: how softmax attention spikes, as in `SpikeSettings`; None leaves it in floating point.
    Raises:
        InputError: a value that cannot be.
    """

    model: str
    budget: Budget
    text: Path | None = None
    num_tokens: int | None = None
    encoder: Encoder | str | None = None
    weights: str | None = None
    compact_scales: bool = False
    skip: tuple[str, ...] | None = None
    include_head: bool = False
    attention: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "encoder", ENCODERS.resolve(self.encoder, "encoder", None))
        check_budget(self.budget)
        if usual(self.num_tokens, _CONTEXT) < _CONTEXT:
            raise InputError(f"num_tokens: expected {_CONTEXT} or more, got {self.num_tokens}.")
        self.spike_settings()

    @property
    def code(self) -> Encoder:
        """The spike code."""
        found = usual(self.encoder, BidirectionalBitwise())
        assert isinstance(found, Encoder)
        return found

    def spike_settings(self, **more: Any) -> SpikeSettings:
        """Return settings of the layers that spike, with the neuron of the paper's rule if none is given."""
        chosen: dict[str, Any] = {"weights": usual(self.weights, "int8"), "skip": usual(self.skip, ())}
        chosen |= {"include_head": self.include_head, "compact_scales": self.compact_scales}
        chosen |= {"attention": self.attention}
        return SpikeSettings(encoder=self.code, **chosen, **more)


class Point(NamedTuple):
    """A setting of the whole model, as measured on the held-out rows.

    Attributes:
        name: what it is.
        perplexity: of the model.
        read: as in `Budget`.
        spikes: as in `Budget`.
        energy: as in `Budget`.
    """

    name: str
    perplexity: float
    read: float
    spikes: float
    energy: float


@dataclass(frozen=True)
class Calibrated:
    """What `calibrate` found.

    Attributes:
        settings: of the spiking model, with a neuron and coarse rows for each layer.
        float_perplexity: of the float model on the held-out rows.
        found: the calibrated model there.
        paper: the paper's rule there, for several k.
        num_tokens: that all are measured on.
        text: where they are from.
        options: the setting of each unit, by the name of its first layer.
        frontier: what budgets are expected to cost, pairs of a budget's value and the loss in nats.
    """

    settings: SpikeSettings
    float_perplexity: float
    found: Point
    paper: list[Point]
    num_tokens: int
    text: str
    options: dict[str, Option] = field(repr=False)
    frontier: list[tuple[float, float]] = field(repr=False)


@alone
def calibrate(
    settings: CalibrateSettings, out: Path, progress: Progress = SILENT, *, force: bool = False
) -> Calibrated:
    """Find the setting of each layer, save the model on spikes with it, and compare it with the paper's rule.

    Errors of all settings are summed over one pass of the float model (`units.py`). How much the predictions suffer
    from a unit's error is measured, with that unit alone on spikes (KL of the next token). The budget is then shared
    out (`choice.py`), the model made, and what it really spends measured; the target is corrected until the budget is
    kept. An interrupted run goes on when it is started again with the same settings.

    Args:
        settings: what is calibrated.
        out: folder for the model and calibration.json.
        progress: told what happens.
        force: write over what is in the folder.
    Raises:
        SpikebrainError: bad input; the message says which and what to do.
    """
    require_new(out, sources=(settings.model,), known=FILES[1:], force=force)
    text, source = read_text(settings.text)
    loaded = load(settings.model, say=progress.say, bar=progress.bar)
    model: Any = loaded.model
    if is_spiking(model):
        raise InputError(f"{loaded.source}: spikes already. Calibrate the float model that it was made from.")
    ids = token_ids(text, require_tokenizer(loaded.tokenizer, loaded.source), loaded.source)
    context = min(_CONTEXT, usual(positions_of(model), _CONTEXT))
    num_rows = usual(settings.num_tokens, 8 * _CONTEXT) // context
    _check_length(source, len(ids), context, num_rows)
    rows = ids[: context * (num_rows + _HELD_OUT)].view(-1, context)
    fitted, held_out = rows[:num_rows], rows[num_rows:]

    job = {"format": _FORMAT, **describe_source(loaded, FILES, FILES[1]), "ids": of_text(str(rows.tolist()))}
    job |= {"settings": str(settings.spike_settings())}
    kept = _Kept(out / FILES[1], digest(job), progress)
    spiking: Any = to_spiking(model, settings.spike_settings())
    units = units_of(model, spiking, spiking.conversion.converted, fitted[:1, :8])
    code = settings.code
    done = progress.bar("Errors of all settings", fitted.numel(), "tokens")
    rules = (*ROUNDED, *PRICED) if settings.budget.counts == "spikes" else ROUNDED
    with summing(model, units, code, [rules] * len(units)), torch.no_grad():
        for row in fitted:
            model(input_ids=row[None], use_cache=False)
            done(row.numel())
    sensitivity = _sensitivities(model, units, settings, fitted[:1, :_SENSITIVE], kept, progress)

    energy = DigitalEnergy()
    tables = [table_of(unit, settings.budget.counts, energy, code) for unit in units]
    measure = _Measure(model, units, settings, held_out, energy)
    progress.say("Measuring the paper's rule beside it")
    paper = [measure(f"paper's rule, k = {k:g}", [Option(Rule(k))] * len(units)) for k in _PAPER]
    share = fitted.numel() / held_out.numel()
    base, rest = (one[settings.budget.counts] * share for one in (measure.base, measure.rest))
    found, chosen = _keep_budget(settings.budget, tables, sensitivity, (base, rest), measure, progress)
    spike_settings = settings.spike_settings(**_patterns(units, chosen))
    options = {unit.names[0]: option for unit, option in zip(units, chosen, strict=True)}
    frontier = _frontier(tables, sensitivity, base, rest)
    result = Calibrated(spike_settings, measure.perplexity, found, paper, held_out.numel(), source, options, frontier)
    save(to_spiking(model, spike_settings), out, loaded.tokenizer)
    write_json(out / FILES[0], _as_json(result, settings, units, sensitivity))
    kept.remove()
    return result


def calibration_of(model: str) -> dict[str, Any] | None:
    """Return what calibration.json in a model's folder says, but for single layers; None if there is none of ours.

    Raises:
        InputError: the file cannot be read.
    """
    path = Path(model) / FILES[0]
    content = read_json(path) if path.is_file() else None
    if not isinstance(content, dict) or content.get("kind") != "calibration":
        return None
    return {name: value for name, value in content.items() if name not in ("kind", "format", "units")}


def _check_length(text: str, num_tokens: int, context: int, num_rows: int) -> None:
    """Raise an InputError unless a text has the rows that errors are summed over and those held out behind them."""
    behind = context * _HELD_OUT
    if num_tokens < context * num_rows + behind:
        most = (num_tokens - behind) // context * context
        remedy = f", or at most `num_tokens` {most:,}" if most >= _CONTEXT else ""
        raise InputError(
            f"text: expected at least {context * num_rows:,} tokens to calibrate on and {behind:,} behind them to "
            f"measure the result on, got {num_tokens:,} in all ({text}). Give a longer text{remedy}."
        )


def _keep_budget(
    budget: Budget,
    tables: Sequence[Table],
    sensitivity: Sequence[float],
    costs: tuple[float, float],
    measure: _Measure,
    progress: Progress,
) -> tuple[Point, list[Option]]:
    """Return what was measured of the best settings that keep the budget, and these."""
    base, rest = costs
    target, spent = budget.value, float("inf")
    cheapest = choose(tables, sensitivity, 0.0)
    for i in range(_CORRECTIONS + 1):
        chosen = choose(tables, sensitivity, target * base - rest) if i < _CORRECTIONS else cheapest
        options = [table.options[i] for table, i in zip(tables, chosen, strict=True)]
        found = measure("calibrated", options)
        spent = getattr(found, budget.counts)
        if spent <= budget.value * (1 + _NEAR):
            return found, options
        if chosen == cheapest:
            break
        progress.say(f"It spends {spent:.4g} and not {budget.value:g}: choosing again.")
        target *= budget.value / spent
    raise InputError(
        f"budget: expected {budget.counts}={budget.value:g} to be possible, got {spent:.4g} at the least. Raise the "
        f"budget{_REMEDIES[budget.counts]}."
    )


def _patterns(units: Sequence[Unit], options: Sequence[Option]) -> dict[str, Any]:
    """Return the fields of `SpikeSettings` that give each layer its setting."""
    neurons: dict[str, Neuron] = {}
    coarse: dict[str, tuple[tuple[int, int], ...]] = {}
    for unit, option in zip(units, options, strict=True):
        neuron, k = option.rule.neuron(), option.rule.k
        if option.silent:  # |x| of half a step above the largest silent count is where the next one begins
            neuron = DeadZoneThreshold(k, dead_zone=(option.silent + 0.5) / k)
        for name, layer in unit.layers.items():
            neurons[name] = neuron
            if option.small > option.silent:
                coarse[name] = ((layer.own.weight_bits // 2, option.small),)
    return {"neuron": neurons, "coarse": coarse or ()}


def _sensitivities(
    model: Any, units: Sequence[Unit], settings: CalibrateSettings, rows: Tensor, kept: _Kept, progress: Progress
) -> list[float]:
    """Return KL(float || unit alone on spikes) over the squared error of that unit, at a probing setting."""
    probe: Any = to_spiking(model, settings.spike_settings(**_patterns(units, [_PROBE] * len(units))))
    done = progress.bar("Sensitivity of the predictions", len(units), "inputs")
    found = []
    with torch.no_grad():
        wanted = None
        for unit in units:
            name = unit.names[0]
            if name not in kept.values:
                wanted = predictions(model, rows) if wanted is None else wanted
                with _swapped(model, probe, unit.names):
                    kept.add(name, float(divergence_from(wanted, model, rows)))
            found.append(max(kept.values[name], 0.0) / max(error_of(unit, _PROBE), torch.finfo(torch.float64).tiny))
            done(1)
    return found


@contextmanager
def _swapped(model: nn.Module, other: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """Let some layers of a model be those of another inside a `with` block."""
    kept = {name: model.get_submodule(name) for name in names}
    try:
        for name in names:
            model.set_submodule(name, other.get_submodule(name))
        yield
    finally:
        for name, layer in kept.items():
            model.set_submodule(name, layer)


class _Measure:
    """Measures settings of all units on some rows.

    Attributes:
        perplexity: of the float model.
        base: by what a budget counts, what its value is a share of, for all tokens of the rows.
        rest: what the last settings spent outside of the layers that spike, in the same units.
    """

    def __init__(
        self, model: Any, units: Sequence[Unit], settings: CalibrateSettings, rows: Tensor, energy: DigitalEnergy
    ) -> None:
        self._model, self._units, self._settings, self._rows, self._energy = model, units, settings, rows, energy
        self.perplexity = measure_perplexity(model, list(rows))
        self.base: dict[str, float] = {}
        self.rest: dict[str, float] = {}

    def __call__(self, name: str, options: Sequence[Option]) -> Point:
        spiking = to_spiking(self._model, self._settings.spike_settings(**_patterns(self._units, options)))
        units, code = [unit.afresh() for unit in self._units], self._settings.code
        one = next(iter(spiking_layers(spiking)))  # recorded layers run step by step: all others need not
        with summing(spiking, units, code, [(o.rule,) for o in options]), record(spiking, layers=(one,)) as recording:
            perplexity = measure_perplexity(spiking, list(self._rows))
        self._note_rest(units, recording)
        spent = []
        for counts in COUNTS:
            prices = (
                Prices.of(unit, o.rule, counts, self._energy, code) for unit, o in zip(units, options, strict=True)
            )
            cost = sum(p.of_option(unit, o) for p, unit, o in zip(prices, units, options, strict=True))
            spent.append((cost + self.rest[counts]) / self.base[counts])
        return Point(name, perplexity, *spent)

    def _note_rest(self, units: Sequence[Unit], recording: Recording) -> None:
        counts = count_operations(recording)
        stays = {name: layer for name, layer in counts.layers.items() if layer.kind != "projection"}
        rest = self._energy.estimate(ModelCounts(stays))
        self.rest = {"read": 0.0, "spikes": 0.0, "energy": rest.total_pj}
        if not self.base:
            dense = {"read": 0.0, "spikes": 0.0, "energy": rest.int8_total_pj}
            for name, more in dense.items():
                self.base[name] = more + sum(dense_cost(u, name, self._energy, self._settings.code) for u in units)


def _frontier(
    tables: Sequence[Table], sensitivity: Sequence[float], base: float, rest: float
) -> list[tuple[float, float]]:
    """Return budgets from the cheapest to the dearest that makes a difference, with the loss expected at each."""
    least = sum(float(table.cost.min()) for table in tables)
    dearest = sum(float(table.cost[table.error.argmin()]) for table in tables)
    found = []
    for i in range(13):
        budget = least + (dearest - least) * i / 12
        chosen = choose(tables, sensitivity, budget)
        found.append(((budget + rest) / base, predicted(tables, sensitivity, chosen)))
    return found


def _as_json(
    result: Calibrated, settings: CalibrateSettings, units: Sequence[Unit], sensitivity: Sequence[float]
) -> dict[str, Any]:
    return {
        "kind": "calibration",
        "format": _FORMAT,
        "model": settings.model,
        "budget": settings.budget._asdict(),
        "text": result.text,
        "num_measured_tokens": result.num_tokens,
        "float_perplexity": result.float_perplexity,
        "calibrated": result.found._asdict(),
        "paper": [point._asdict() for point in result.paper],
        "frontier": [{"value": value, "expected_loss": loss} for value, loss in result.frontier],
        "units": [
            {"layers": unit.names, **result.options[unit.names[0]].to_dict(), "sensitivity": s}
            for unit, s in zip(units, sensitivity, strict=True)
        ],
    }


class _Kept:
    """Numbers that an interrupted run has measured.

    Attributes:
        values: by name.
    """

    def __init__(self, path: Path, key: str, progress: Progress) -> None:
        self._path, self._key = path, key
        self.values: dict[str, float] = stored_state(path, key) or {}
        if self.values:
            progress.say(f"Going on with the run that was interrupted: {len(self.values)} inputs were measured.")

    def add(self, name: str, value: float) -> None:
        """Keep a number."""
        self.values[name] = value
        store_state(self._path, self._key, self.values)

    def remove(self) -> None:
        """Delete the file: the job is done."""
        remove(self._path)
