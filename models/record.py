"""Record what the spiking layers of a model do while it runs, in memory that does not grow with the text."""

from __future__ import annotations

import fnmatch
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn

from ..coding import SpikeTrain
from ..errors import InputError
from .convert import check_patterns
from .spike_linear import SpikeLinear, Step

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
    """

    name: str
    in_features: int
    out_features: int
    num_tokens: int = 0
    count_histogram: Counter[int] = field(default_factory=Counter)
    num_spikes: int = 0
    num_slots: int = 0
    num_timesteps: int = 0

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
        self.num_tokens += len(step.count)
        self.num_spikes += step.train.num_spikes
        self.num_slots += step.train.spikes.numel()
        self.num_timesteps = max(self.num_timesteps, step.train.num_timesteps)


@dataclass
class Recording:
    """Statistics of all recorded layers, and trains where they were asked for.

    Attributes:
        layers: record of each layer, by name, in the order of the model.
        trains: the trains of each layer in the order in which they ran, with `keep_trains` only.
    """

    layers: Mapping[str, LayerRecord]
    trains: dict[str, list[SpikeTrain]] = field(default_factory=dict)

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
def record(model: nn.Module, *, layers: tuple[str, ...] = ("*",), keep_trains: bool = False) -> Iterator[Recording]:
    """Record the spiking layers of a model inside a `with` block; afterwards the model is as it was.

    Threads that run the model at the same time may share a recording. What runs twice is recorded twice: under
    gradient checkpointing, once forward and once on the way back.

    Args:
        model: a converted model, or a single SpikeLinear.
        layers: patterns of layer names (with * and ?); a layer is recorded if one matches.
        keep_trains: also keep every spike train, which takes timesteps x tokens x channels bytes a layer.
    Yields:
        A recording that fills while the model runs.
    Raises:
        InputError: no spiking layer matches.

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
    recording = Recording({n: LayerRecord(n, m.in_features, m.out_features) for n, m in chosen.items()})
    names = {id(module): name for name, module in chosen.items()}
    lock = threading.Lock()

    def observe(layer: SpikeLinear, step: Step) -> None:
        name = names[id(layer)]
        with lock:
            recording.layers[name].add(step)
            if keep_trains:
                recording.trains.setdefault(name, []).append(step.train)

    for module in chosen.values():
        module.observers.append(observe)
    try:
        yield recording
    finally:
        for module in chosen.values():
            module.observers.remove(observe)
