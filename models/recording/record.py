"""Record what the spiking layers of a model do while it runs, in memory that does not grow with the text."""

from __future__ import annotations

import fnmatch
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from ...coding import SpikeTrain
from ...errors import InputError
from ...lazy import optional
from ...module_check import check_module
from ...text_table import kind_of, text_table
from ..layers.attention_interface import query_encoder
from ..layers.choose import check_matches
from ..layers.graded_linear import GradedLinear
from ..layers.observing import QueryObserver, Step, observing, observing_queries
from ..layers.settings import check_patterns
from ..layers.spike_linear import SpikeLinear, spiking_layers
from .layer_record import LayerRecord
from .modules import UNCOUNTED, ModuleRecord, describe
from .weight_reads import WeightReads


@dataclass(frozen=True)
class LayerInput:
    """What a layer was given when it made a train, and what its neuron counted.

    Attributes:
        x: activations, [tokens, in_features].
        count: spike counts, int32, [tokens, in_features].
        threshold: activation worth of one spike, [tokens, 1], in the unit of x.
    """

    x: Tensor
    count: Tensor
    threshold: Tensor


@dataclass
class Recording:
    """Statistics of all recorded layers, and trains where they were asked for.

    Attributes:
        layers: record of each layer, by name, in the order of the model.
        trains: the trains of each layer in the order in which they ran, with `keep_trains` only.
        modules: what the rest of the model did, by name.
        unsupported: classes of modules whose work is not recorded, with the number of such modules.
        model: class of the model.
        order: names of layers and modules in the order in which they first ran; those that never ran are left out.
        inputs: what each of the trains was made from, with `keep_inputs` only.
    """

    layers: Mapping[str, LayerRecord]
    trains: dict[str, list[SpikeTrain]] = field(default_factory=dict)
    modules: Mapping[str, ModuleRecord] = field(default_factory=dict)
    unsupported: tuple[str, ...] = ()
    model: str = ""
    order: list[str] = field(default_factory=list)
    inputs: dict[str, list[LayerInput]] = field(default_factory=dict)

    def __repr__(self) -> str:
        """Return what each kind of layer did."""
        kinds: dict[str, list[LayerRecord]] = {}
        for name, layer in self.layers.items():
            kinds.setdefault(kind_of(name), []).append(layer)
        tokens = max((layer.num_tokens for layer in self.layers.values()), default=0)
        lines = [f"Recording of {self.model or 'a layer'}: {len(self.layers):,} layers, {tokens:,} tokens"]
        header = ("kind of layer", "layers", "spikes per channel", "firing rate", "timesteps")
        lines += [text_table(header, [(name, *_shown(layers)) for name, layers in kinds.items()])]
        if self.trains:
            lines += [f"Trains of {len(self.trains):,} layers are kept: spikes_of(name)."]
        return "\n".join(lines)

    def state(self) -> dict[str, Any]:
        """Return all but the trains in a form that JSON can hold."""
        layers = {name: layer.state() for name, layer in self.layers.items()}
        modules = {name: asdict(module) for name, module in self.modules.items()}
        return {"layers": layers, "modules": modules, "order": self.order}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Set everything to what `state` returned for the same model, after it was stored as JSON."""
        for name, stored in state.get("layers", {}).items():
            self.layers[name].restore(stored)
        for name, stored in state.get("modules", {}).items():
            module = self.modules[name]
            for field_name, value in stored.items():
                setattr(module, field_name, value)
        self.order = list(state.get("order", ()))

    def to_pandas(self, table: str = "layers") -> Any:
        """Return a table of the recording as a pandas DataFrame.

        Args:
            table: "layers", "histogram", "weight_reads", "trains", "weights", "spikes", "modules" or "run"; what their
                columns are stands at the top of `models/recording/tables.py` and in docs/exchange.md.
        Raises:
            InputError: there is no such table, or pandas is not installed.
        """
        from .tables import COLUMNS, tables_of  # noqa: PLC0415 - it imports this module

        if table not in COLUMNS:
            raise InputError(f"Recording.to_pandas.table: expected one of {', '.join(COLUMNS)}; got {table!r}.")
        return optional("pandas", "exchange", "Recording.to_pandas").DataFrame(tables_of(self)[table])

    def spikes_of(self, name: str) -> SpikeTrain:
        """Return the kept trains of a layer as one, tokens in order: [T, tokens, in_features].

        Calls of a model may give trains of different length, as when it writes a text. Shorter ones get timesteps
        without spikes where their code has room, which changes no value: `ran_timesteps` says which.

        Raises:
            InputError: no train of that layer was kept, or its trains differ in more than their length.
        """
        trains, starts = self._aligned(name)
        longest = max(trains, key=lambda train: train.num_timesteps)
        padded = []
        for train, start in zip(trains, starts, strict=True):
            spikes = longest.spikes.new_zeros(longest.num_timesteps, *train.spikes.shape[1:])
            spikes[start : start + train.num_timesteps] = train.spikes
            padded.append(spikes)
        return SpikeTrain(torch.cat(padded, 1), longest.timestep_weight, longest.zero_point)

    def ran_timesteps(self, name: str) -> Bool[Tensor, "timesteps tokens"]:
        """Return which timesteps of `spikes_of` ran, for each token; the others were added to make trains equally long.

        Raises:
            InputError: as `spikes_of`.
        """
        trains, starts = self._aligned(name)
        timestep = torch.arange(max(train.num_timesteps for train in trains))[:, None]
        ran = [
            ((timestep >= start) & (timestep < start + train.num_timesteps)).expand(-1, train.spikes.shape[1])
            for train, start in zip(trains, starts, strict=True)
        ]
        return torch.cat(ran, 1)

    def _aligned(self, name: str) -> tuple[list[SpikeTrain], list[int]]:
        """Return the kept trains of a layer, and at which timestep of the longest one each begins."""
        trains = self.trains.get(name)
        if not trains:
            raise InputError(f"Recording: no trains of {name!r}. Use record(model, layers=..., keep_trains=True).")
        longest = max(trains, key=lambda train: train.num_timesteps)
        starts = [
            start_in(longest.timestep_weight, train.timestep_weight) if train.zero_point == longest.zero_point else None
            for train in trains
        ]
        if None in starts:
            i = starts.index(None)
            raise InputError(
                f"Recording: the trains of {name!r} differ in more than their length: call {i} has timesteps of weight "
                f"{trains[i].timestep_weight.tolist()} and zero point {trains[i].zero_point}, another has "
                f"{longest.timestep_weight.tolist()} and {longest.zero_point}. Look at recording.trains[{name!r}] one "
                "by one."
            )
        return trains, [start for start in starts if start is not None]


def start_in(longest: Tensor, weight: Tensor) -> int | None:
    """Return where the weights of a train stand among those of a longer one: its begin or its end; None if nowhere."""
    places = (0, len(longest) - len(weight))
    return next((i for i in places if torch.equal(longest[i : i + len(weight)], weight)), None)


def _shown(layers: list[LayerRecord]) -> tuple[str, ...]:
    """Return number, spikes per channel and token, firing rate and timesteps of some layers, for a table."""
    channels = sum(layer.count_histogram.total() for layer in layers)
    slots, spikes = sum(layer.num_slots for layer in layers), sum(layer.num_spikes for layer in layers)
    rates = (f"{spikes / channels:.4f}", f"{spikes / slots:.2%}") if channels and slots else ("", "")
    return (f"{len(layers):,}", *rates, f"{max(layer.num_timesteps for layer in layers):,}")


def _join_levels(model: nn.Module, records: Mapping[str, LayerRecord]) -> None:
    """Tell the records of coarse rows what they are, and which record is that of the layer's own rows."""
    for name, module in model.named_modules():
        if isinstance(module, GradedLinear):
            *coarse, own = (f"{name}.levels.{i}".lstrip(".") for i in range(len(module.levels)))
            for level in coarse:
                if level in records:
                    records[level].be_coarse(module, records.get(own))


def _query_counter(module: nn.Module, part: ModuleRecord, lock: threading.Lock) -> QueryObserver:
    """Return what adds the queries of a module of attention on counts to its record."""

    def add(count: Tensor, seen: Tensor) -> None:
        with lock:
            part.add_queries(count, seen, query_encoder(module))

    return add


@contextmanager
def record(
    model: nn.Module,
    *,
    layers: tuple[str, ...] = ("*",),
    keep_trains: bool = False,
    keep_inputs: bool = False,
    block_bytes: tuple[int, ...] = (64, 2048),
    shared_tokens: tuple[int, ...] = (1,),
) -> Iterator[Recording]:
    """Record the spiking layers of a model inside a `with` block; afterwards the model is as it was.

    Norms, attention and dense layers are recorded for any `layers`, by the tokens that passed.

    Threads that run the model at the same time may share a recording. A layer that runs twice is recorded twice: under
    gradient checkpointing, once in the forward pass and once in the backward pass.

    Args:
        model: a converted model, or a single SpikeLinear.
        layers: patterns of layer names (with * and ?); a layer is recorded if one matches.
        keep_trains: also keep every spike train, which takes timesteps x tokens x channels bytes a layer.
        keep_inputs: also keep the activations, counts and thresholds from which the trains were made, as `raster` needs
            them to draw a membrane potential.
        block_bytes: sizes of memory blocks for which reads of weights are counted (see `WeightReads`).
        shared_tokens: numbers of consecutive tokens for which they are read once; all combinations are counted.
    Yields:
        A recording that fills while the model runs.
    Raises:
        InputError: no spiking layer matches, or a number is no integer >= 1.

    >>> layer = SpikeLinear.from_linear(nn.Linear(4, 2))
    >>> with record(layer) as recording:
    ...     _ = layer(torch.tensor([[1.0, -1.0, 4.0, 0.0]]))  # threshold 0.5: counts 2, -2, 8, 0
    >>> recording.layers[""].num_spikes
    3
    """
    check_module("record", model)
    check_patterns(layers, "record")
    spiking = spiking_layers(model)
    chosen = {n: m for n, m in spiking.items() if any(fnmatch.fnmatchcase(n, pattern) for pattern in layers)}
    if not chosen:
        check_matches("record: layers", layers, spiking)
        raise InputError(
            f"record: expected a SpikeLinear that matches {layers}; the model has {len(spiking)}."
            + ("" if spiking else " Call to_spiking first.")
        )
    reads = [(size, tokens) for size in block_bytes for tokens in shared_tokens]
    records = {n: LayerRecord.of_layer(n, m, [WeightReads(*pair) for pair in reads]) for n, m in chosen.items()}
    _join_levels(model, records)
    parts, unsupported = describe(model)
    recording = Recording(
        records,
        modules={part.name: part for _, part, _ in parts},
        unsupported=unsupported + tuple(f"SpikeLinear {n!r}, which was not recorded" for n in spiking.keys() - chosen),
        model=type(model).__name__,
    )
    names = {id(module): name for name, module in chosen.items()}
    lock = threading.Lock()

    def ran(name: str, so_far: LayerRecord | ModuleRecord) -> None:
        if so_far.num_tokens == 0 and name not in recording.order:  # the first test is the fast one
            recording.order.append(name)

    def observe(layer: SpikeLinear, step: Step) -> None:
        name = names[id(layer)]
        with lock:
            ran(name, recording.layers[name])
            recording.layers[name].add(step)
            if keep_trains:
                recording.trains.setdefault(name, []).append(step.train)
            if keep_inputs:
                of_call = step.x.detach().reshape(step.num_tokens, -1)
                x = of_call[step.first_token : step.first_token + len(step.count)].clone()  # may be changed in place
                recording.inputs.setdefault(name, []).append(LayerInput(x, step.count, step.threshold))

    def watch(part: ModuleRecord, measure: Any) -> Any:
        def hook(module: nn.Module, arguments: tuple, keywords: dict) -> None:
            try:
                num_tokens, num_pairs = measure(module, arguments, keywords)
            except (AttributeError, TypeError, ValueError, KeyError, IndexError, StopIteration):
                with lock:  # known by its name, but called in another way
                    part.kind = UNCOUNTED
                    unknown = f"{type(module).__name__} {part.name!r}, which was called in a way that is not known"
                    recording.unsupported = tuple(dict.fromkeys((*recording.unsupported, unknown)))
                return
            with lock:
                ran(part.name, part)
                part.num_tokens += num_tokens
                part.num_pairs += num_pairs

        return hook

    queries = [(m, _query_counter(m, part, lock)) for m, part, _ in parts if part.sizes.get("integer")]
    hooks = [m.register_forward_pre_hook(watch(part, measure), with_kwargs=True) for m, part, measure in parts]
    try:
        with observing(chosen.values(), observe), observing_queries(queries):
            yield recording
    finally:
        for hook in hooks:
            hook.remove()
