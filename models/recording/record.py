"""Record what the spiking layers of a model do while it runs, in memory that does not grow with the text."""

from __future__ import annotations

import fnmatch
import functools
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from ...coding import SpikeTrain
from ...errors import InputError
from ..layers.convert import check_patterns
from ..layers.spike_linear import SpikeLinear, Step, observing
from .modules import ModuleRecord, describe
from .weight_reads import FetchRecord

# Counting into bins is ten times faster than sorting, as long as the bins fit the cache.
_MAX_BINS = 2**20


@dataclass
class LayerRecord:
    """What one layer did: exact integers, from which every statistic follows.

    Attributes:
        name: of the layer in the model.
        in_features: channels whose activations are counted and spike, per token.
        out_features: outputs that each spike reaches.
        num_tokens: tokens that passed.
        count_histogram: how many channels (over all tokens) had each signed spike count.
        num_spikes: spikes of either sign in the trains as they ran.
        num_slots: places for a spike in those trains, the sum of timesteps x channels x tokens.
        num_timesteps: length of the longest train.
        num_weighted_spikes: spikes of timesteps whose weight is not 1 or -1: those that a shift goes with.
        num_active_channels: channels with a spike in their train, over all tokens: rows of weights that were needed.
        zero_point: the largest of the trains.
        fetches: which weights were needed, in blocks of memory and by several tokens at a time.
        num_scales: groups of input channels with a weight scale of their own.
        has_bias: whether the layer has a bias.
        mean_count_bound: what the mean |count| of a token cannot exceed (see `CountBounds`); None if that is unknown.
        neuron: of the layer.
        encoder: of the layer.
    """

    name: str
    in_features: int
    out_features: int
    num_tokens: int = 0
    count_histogram: Counter[int] = field(default_factory=Counter)
    num_spikes: int = 0
    num_slots: int = 0
    num_timesteps: int = 0
    num_weighted_spikes: int = 0
    num_active_channels: int = 0
    zero_point: int = 0
    fetches: list[FetchRecord] = field(default_factory=list)
    num_scales: int = 1
    has_bias: bool = False
    mean_count_bound: float | None = None
    neuron: str = ""
    encoder: str = ""

    @classmethod
    def of_layer(cls, name: str, layer: SpikeLinear, fetches: list[FetchRecord]) -> LayerRecord:
        """Return an empty record of a layer."""
        bounds = layer.neuron.count_bounds(layer.in_features)
        return cls(
            name,
            layer.in_features,
            layer.out_features,
            fetches=fetches,
            num_scales=len(layer.groups),
            has_bias=layer.bias is not None,
            mean_count_bound=None if bounds is None else bounds.mean,
            neuron=repr(layer.neuron),
            encoder=repr(layer.encoder),
        )

    def add(self, step: Step) -> None:
        """Add what the layer computed for some tokens."""
        low, high = (int(v) for v in step.count.aminmax())
        if high - low < _MAX_BINS:
            frequencies = torch.bincount((step.count - low).flatten())
            values = frequencies.nonzero().flatten()
            values, frequencies = values + low, frequencies[values]
        else:
            values, frequencies = torch.unique(step.count, return_counts=True)
        self.count_histogram.update(dict(zip(values.tolist(), frequencies.tolist(), strict=True)))
        train = step.train
        num_spikes, is_unit = train.num_spikes, train.timestep_weight.abs() == 1
        self.num_tokens += len(step.count)
        self.num_spikes += num_spikes
        self.num_weighted_spikes += num_spikes - int(train.spikes[is_unit.to(train.spikes.device)].count_nonzero())
        self.num_slots += train.spikes.numel()
        self.num_timesteps = max(self.num_timesteps, train.num_timesteps)
        self.zero_point = max(self.zero_point, train.zero_point)
        # Spikes of both signs, so that none cancels another. Many times faster than `any` over the time axis.
        active = functools.reduce(torch.bitwise_or, train.spikes.unbind(0)) != 0
        self.num_active_channels += int(active.count_nonzero())
        for fetch in self.fetches:
            fetch.add(active, self.out_features)

    def state(self) -> dict[str, Any]:
        """Return everything as JSON can hold it."""
        return {**vars(self), "fetches": [asdict(fetch) for fetch in self.fetches]}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` gave, after a way through JSON."""
        for attribute, value in state.items():
            setattr(self, attribute, value)
        self.count_histogram = Counter({int(c): n for c, n in state["count_histogram"].items()})
        self.fetches = [FetchRecord(**fetch) for fetch in state["fetches"]]


@dataclass
class Recording:
    """Statistics of all recorded layers, and trains where they were asked for.

    Attributes:
        layers: record of each layer, by name, in the order of the model.
        trains: the trains of each layer in the order in which they ran, with `keep_trains` only.
        modules: what the rest of the model did, by name.
        unsupported: kinds of modules whose work is not recorded, with how many there are.
        model: class of the model.
    """

    layers: Mapping[str, LayerRecord]
    trains: dict[str, list[SpikeTrain]] = field(default_factory=dict)
    modules: Mapping[str, ModuleRecord] = field(default_factory=dict)
    unsupported: tuple[str, ...] = ()
    model: str = ""

    def state(self) -> dict[str, Any]:
        """Return all but the trains as JSON can hold it."""
        layers = {name: layer.state() for name, layer in self.layers.items()}
        return {"layers": layers, "modules": {name: asdict(module) for name, module in self.modules.items()}}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` gave for the same model, after a way through JSON."""
        for name, stored in state.get("layers", {}).items():
            self.layers[name].restore(stored)
        for name, stored in state.get("modules", {}).items():
            module = self.modules[name]
            module.num_tokens, module.num_pairs = stored["num_tokens"], stored["num_pairs"]

    def spikes_of(self, name: str) -> SpikeTrain:
        """Return the kept trains of a layer as one, tokens in order: [T, tokens, in_features].

        Raises:
            InputError: no train of that layer was kept, or its trains differ in length or zero point.
        """
        trains = self.trains.get(name)
        if not trains:
            raise InputError(f"Recording: no trains of {name!r}. Use record(model, layers=..., keep_trains=True).")
        first = trains[0]
        if any(not _same_code(train, first) for train in trains):
            raise InputError(f"Recording: the trains of {name!r} differ in length or code. Look at them one by one.")
        return SpikeTrain(torch.cat([t.spikes for t in trains], 1), first.timestep_weight, first.zero_point)


def _same_code(a: SpikeTrain, b: SpikeTrain) -> bool:
    return a.zero_point == b.zero_point and torch.equal(a.timestep_weight, b.timestep_weight)


@contextmanager
def record(
    model: nn.Module,
    *,
    layers: tuple[str, ...] = ("*",),
    keep_trains: bool = False,
    block_bytes: tuple[int, ...] = (64, 2048),
    shared_tokens: tuple[int, ...] = (1,),
) -> Iterator[Recording]:
    """Record the spiking layers of a model inside a `with` block; afterwards the model is as it was.

    Norms, attention and dense layers are recorded whatever `layers` says, by the tokens that passed.

    Threads that run the model at the same time may share a recording. What runs twice is recorded twice: under
    gradient checkpointing, once forward and once on the way back.

    Args:
        model: a converted model, or a single SpikeLinear.
        layers: patterns of layer names (with * and ?); a layer is recorded if one matches.
        keep_trains: also keep every spike train, which takes timesteps x tokens x channels bytes a layer.
        block_bytes: sizes of memory blocks for which reads of weights are counted (see `FetchRecord`).
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
    check_patterns(layers, "record")
    spiking = {name: module for name, module in model.named_modules() if isinstance(module, SpikeLinear)}
    chosen = {n: m for n, m in spiking.items() if any(fnmatch.fnmatchcase(n, pattern) for pattern in layers)}
    if not chosen:
        raise InputError(
            f"record: expected a SpikeLinear that matches {layers}; the model has {len(spiking)}. "
            + (f"One is {next(iter(spiking))!r}." if spiking else "Call convert first.")
        )
    fetches = [(size, tokens) for size in block_bytes for tokens in shared_tokens]
    records = {n: LayerRecord.of_layer(n, m, [FetchRecord(*pair) for pair in fetches]) for n, m in chosen.items()}
    parts, unsupported = describe(model)
    recording = Recording(
        records,
        modules={part.name: part for _, part, _ in parts},
        unsupported=unsupported + tuple(f"SpikeLinear {n!r}, which was not recorded" for n in spiking.keys() - chosen),
        model=type(model).__name__,
    )
    names = {id(module): name for name, module in chosen.items()}
    lock = threading.Lock()

    def observe(layer: SpikeLinear, step: Step) -> None:
        name = names[id(layer)]
        with lock:
            recording.layers[name].add(step)
            if keep_trains:
                recording.trains.setdefault(name, []).append(step.train)

    def watch(part: ModuleRecord, measure: Any) -> Any:
        def hook(module: nn.Module, arguments: tuple, keywords: dict) -> None:
            num_tokens, num_pairs = measure(module, arguments, keywords)
            with lock:
                part.num_tokens += num_tokens
                part.num_pairs += num_pairs

        return hook

    hooks = [m.register_forward_pre_hook(watch(part, measure), with_kwargs=True) for m, part, measure in parts]
    try:
        with observing(chosen.values(), observe):
            yield recording
    finally:
        for hook in hooks:
            hook.remove()
