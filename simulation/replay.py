"""The spikes of every layer of a model, replayed through its cores as the model runs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from ..chip import Activity, Description, LayerSimulation, Placement, simulate_layer
from ..chip.mapping import Tile
from ..models import SpikeLinear
from .calls import Call
from .flow import arrivals
from .layers import coarse_rows, rows_read
from .stages import Stage

# Layers that wait for a thread hold their spikes.
_MOST_WAITING = 8


@dataclass
class LayerOnChip:
    """What one layer of a model did on the chip.

    Attributes:
        name: of the layer in the model.
        placement: where it lies.
        activity: with the leakage of its own cores for its own time.
        end_ps: of each token, int64 [tokens]; when decoding, as if there were no other layers. Tokens that an expert
            does not see end when they come.
        latency_ps: of each token, int64 [tokens]; 0 of tokens that an expert does not see.
        num_tokens: that it saw.
        num_spikes: spikes that its encoder unrolled.
        busy: share of the time in which each core was adding, [cores].
        queues: mean and greatest length of the queue at each station, by its name.
        links: packets that crossed each link, by its name.
        tiles: where each station is, and where it leads to, by its name.
        num_sums, num_mismatches: sums, and those that differ from what the layer computed in the model.
        critical_path_ps: what held up its tokens, by kind of station; empty without a trace.
    """

    name: str
    placement: Placement
    activity: Activity
    end_ps: np.ndarray
    latency_ps: np.ndarray
    num_tokens: int
    num_spikes: int
    busy: np.ndarray
    queues: dict[str, tuple[float, int]]
    links: dict[str, int]
    tiles: dict[str, tuple[Tile, Tile]]
    num_sums: int
    num_mismatches: int
    critical_path_ps: dict[str, int]


@dataclass
class Replay:
    """Simulates layers as their spikes come, and finds when each token leaves the model.

    When decoding, layers do not depend on each other's times, and each is simulated as soon as a thread is free. In
    prefill a layer needs the times at which its tokens arrive, so that stages are simulated one after the other.

    Attributes:
        chip: the chip.
        spiking: spiking layers of the model, by name.
        placements: where each of them lies.
        stages: in order; the last one has no layers.
        num_tokens: tokens of the run.
        pool: threads that simulate.
        overlap: whether tokens follow each other through the layers, as in prefill.
        jitter: services last up to this share longer, at random.
        seed: of the jitter.
        orders: channels of a layer in the order in which they lie in memory, by the name of the layer.
        coarse: levels with coarse rows of layers that have them, by the name of the layer.
        trace: find what held tokens up.
        timelines: names of layers whose simulations are kept, each with a trace.
        progress: called with the number of layers that were simulated since the last call.
        layers: what was found, by the name of the layer.
        kept: simulations of the layers `timelines`, by name.
    """

    chip: Description
    spiking: Mapping[str, SpikeLinear]
    placements: Mapping[str, Placement]
    stages: Sequence[Stage]
    num_tokens: int
    pool: ThreadPoolExecutor
    overlap: bool = False
    jitter: float = 0.0
    seed: int = 0
    orders: Mapping[str, np.ndarray] = field(default_factory=dict)
    coarse: Mapping[str, Sequence[SpikeLinear]] = field(default_factory=dict)
    trace: bool = False
    timelines: Collection[str] = ()
    progress: Callable[[int], None] = lambda layers: None
    layers: dict[str, LayerOnChip] = field(default_factory=dict, init=False)
    kept: dict[str, LayerSimulation] = field(default_factory=dict, init=False)
    _held: dict[str, Call] = field(default_factory=dict, init=False)
    _waiting: dict[str, Future[tuple[LayerOnChip, LayerSimulation]]] = field(default_factory=dict, init=False)
    _stage: int = field(default=0, init=False)
    _arrival_ps: np.ndarray | None = field(default=None, init=False)

    def add(self, call: Call) -> None:
        """Simulate a layer in a thread of the pool; in prefill, once all stages before its own have been simulated."""
        if not self.overlap:
            self._start(call)
            return
        if self._arrival_ps is None:
            first = self.stages[0]
            self._arrival_ps = arrivals(np.zeros(self.num_tokens, np.int64), first.transfer_ps, first.rest_ps)
        self._held[call.name] = call
        # Usually the layers of a stage run in a row. A layer that is handed an earlier input again comes later, and
        # then the calls of the stages between are held until it has come.
        while self._held:
            names = self.stages[self._stage].layers
            for name in [name for name in names if name in self._held]:
                self._start(self._held.pop(name))
            if not self._held or any(name not in self._waiting and name not in self.layers for name in names):
                return
            self._end_stage()

    def end_ps(self) -> np.ndarray:
        """Return when each token has left the model, int64 [tokens], once all layers were added."""
        if self.overlap:
            self._end_stage()
            assert self._arrival_ps is not None
            return self._arrival_ps
        self._collect_all()
        slowest = [
            np.max([self.layers[name].latency_ps for name in stage.layers], axis=0) for stage in self.stages[:-1]
        ]
        between = sum(stage.transfer_ps + stage.rest_ps for stage in self.stages)
        return (np.sum(slowest, axis=0) + between).cumsum()

    def _end_stage(self) -> None:
        """Wait for the layers of a stage; the inputs of the next one are ready when the last of them has ended."""
        self._collect_all()
        ready_ps = np.max([self.layers[name].end_ps for name in self.stages[self._stage].layers], axis=0)
        self._stage += 1
        following = self.stages[self._stage]
        self._arrival_ps = arrivals(ready_ps, following.transfer_ps, following.rest_ps)

    def _start(self, call: Call) -> None:
        self._waiting[call.name] = self.pool.submit(self._simulate, call, self._arrival_ps)
        if len(self._waiting) >= _MOST_WAITING:
            self._collect(next(iter(self._waiting)))

    def _collect_all(self) -> None:
        for name in list(self._waiting):
            self._collect(name)

    def _collect(self, name: str) -> None:
        """Wait for a layer."""
        self.layers[name], simulation = self._waiting.pop(name).result()
        if name in self.timelines:
            self.kept[name] = simulation
        self.progress(1)

    def _simulate(self, call: Call, arrival_ps: np.ndarray | None) -> tuple[LayerOnChip, LayerSimulation]:
        """Simulate a layer, and compare its sums with those that it computed in the model."""
        train, placement, tokens = call.train, self.placements[call.name], call.tokens
        own = self.spiking[call.name]
        weight = own.weight.t().contiguous().numpy()
        coarse = coarse_rows(own, self.coarse.get(call.name, ()), call.count)
        found = simulate_layer(
            train.spikes.numpy(),
            train.timestep_weight.numpy(),
            weight,
            self.chip,
            placement,
            order=self.orders.get(call.name),
            coarse=coarse,
            overlap=self.overlap,
            arrival_ps=arrival_ps if arrival_ps is None or tokens is None else arrival_ps[tokens],
            jitter=self.jitter,
            seed=self.seed,
            trace=self.trace or call.name in self.timelines,
        )
        group_size = placement.weights.group_size or max(len(weight), 1)
        sums = found.sums[:, None] if found.group_sums is None else found.group_sums
        if train.zero_point:
            sums = sums - train.zero_point * rows_read(weight, coarse, group_size)
        expected = call.accumulation.numpy()
        row = LayerOnChip(
            call.name,
            placement,
            found.activity,
            self._of_all(found.end_ps, tokens, 0 if arrival_ps is None else arrival_ps),
            self._of_all(found.latency_ps, tokens, 0),
            len(found.end_ps),
            train.num_spikes,
            found.utilization,
            found.queues(),
            found.packets_on_links(),
            dict(zip(found.network.names, found.network.tiles, strict=True)),
            sums.size,
            int((sums != expected).sum()),
            found.critical_path_ps() if found.outcome.trace is not None else {},
        )
        return row, found

    def _of_all(self, times_ps: np.ndarray, tokens: np.ndarray | None, others: np.ndarray | int) -> np.ndarray:
        """Return times of all tokens, given those of some and what others have."""
        if tokens is None:
            return times_ps
        all_ps = np.zeros(self.num_tokens, np.int64)
        all_ps[:] = others
        all_ps[tokens] = times_ps
        return all_ps
