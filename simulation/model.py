"""A whole model on a simulated chip: the spikes of every layer, as it runs, are replayed through its cores."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from ..chip import Activity, Description, InOrder, LayerSimulation, Placement, plan, simulate_layer
from ..chip import Mapping as ChipMapping
from ..chip.layer import check_jitter
from ..chip.mapping import Tile
from ..energy import count_operations
from ..errors import InputError
from ..models import SpikeLinear
from ..models.layers.spike_linear import Step, observing
from ..models.recording import record
from .flow import Stage, arrivals, place_rest, transfer_between

MODES = ("decode", "prefill")
# Layers that wait for a thread hold their spikes.
_MOST_WAITING = 8


@dataclass
class LayerOnChip:
    """What one layer of a model did on the chip.

    Attributes:
        name: of the layer in the model.
        placement: where it lies.
        activity: with the leakage of its own cores for its own time.
        end_ps: of each token, int64 [tokens]; when decoding, as if there were no other layers.
        latency_ps: of each token, int64 [tokens].
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
    num_spikes: int
    busy: np.ndarray
    queues: dict[str, tuple[float, int]]
    links: dict[str, int]
    tiles: dict[str, tuple[Tile, Tile]]
    num_sums: int
    num_mismatches: int
    critical_path_ps: dict[str, int]


@dataclass
class ModelOnChip:
    """A simulated model.

    Attributes:
        chip: the chip.
        mode: "decode" or "prefill".
        num_tokens: tokens that were simulated.
        layers: by name, in the order in which they ran.
        stages: in order; the last one has no layers but what comes after them.
        end_ps: when each token ended, int64 [tokens].
        activity: of everything, the leakage of the whole chip included.
        unsupported: parts of the model whose work is not counted.
        timeline: the simulation of the layer that was asked for.
    """

    chip: Description
    mode: str
    num_tokens: int
    layers: dict[str, LayerOnChip]
    stages: list[Stage]
    end_ps: np.ndarray
    activity: Activity
    unsupported: tuple[str, ...] = ()
    timeline: LayerSimulation | None = None

    @property
    def energy_pj(self) -> dict[str, float]:
        """Picojoules by component, of all tokens."""
        return self.activity.energy_pj(self.chip)

    @property
    def token_ps(self) -> np.ndarray:
        """Time of each token: from its begin when decoding, from the end of the one before in prefill. [tokens]."""
        return np.diff(self.end_ps, prepend=0)


def simulate_model(
    model: nn.Module,
    ids: Tensor,
    chip: Description,
    *,
    mapping: ChipMapping | None = None,
    stream: bool = False,
    mode: str = "decode",
    orders: Mapping[str, np.ndarray] | None = None,
    jitter: float = 0.0,
    seed: int = 0,
    trace: bool = False,
    timeline: str | None = None,
    num_threads: int = 2,
    progress: Callable[[int], None] = lambda layers: None,
) -> ModelOnChip:
    """Run a window of tokens through a spiking model, and every layer's spikes through the chip.

    Memory does not grow with the number of layers: spikes are dropped once they have been simulated.

    Args:
        model: converted to spikes.
        ids: token ids, [tokens].
        chip: the chip.
        mapping: cuts layers into cores; `InOrder()` if None.
        stream: weights stream from DRAM, so that the model need not fit.
        mode: "decode": a token begins when the one before has left the model; "prefill": tokens follow each other
            through the layers.
        orders: channels of a layer in the order in which they lie in memory, by the name of the layer.
        jitter: services last up to this share longer, at random; changes times, never sums.
        seed: of the jitter.
        trace: find what held tokens up, which takes twice as long.
        timeline: name of a layer whose simulation is kept, with a trace.
        num_threads: layers that are simulated at a time.
        progress: called with the number of layers that were simulated since the last call.
    Raises:
        InputError: the model has no spiking layers, has weight groups or layers that only some tokens reach, or does
            not fit the chip.
    """
    if mode not in MODES:
        raise InputError(f"mode: expected one of {', '.join(MODES)}, got {mode!r}.")
    if len(ids) == 0:
        raise InputError("simulate_model: expected at least one token, got none.")
    check_jitter(jitter, seed)
    spiking = spiking_layers(model)
    if not spiking:
        raise InputError("simulate_model: expected a model with spiking layers, it has none. Call convert first.")
    for name, layer in spiking.items():
        if layer.group_size is not None:
            raise InputError(f"{name}: expected group_size=None, since a core adds up all its channels.")
    for what, names in (("orders", list(orders or {})), ("timeline", [timeline] if timeline else [])):
        for name in names:
            if name not in spiking:
                raise InputError(f"{what}: expected a spiking layer such as {next(iter(spiking))!r}, got {name!r}.")
    shapes = {name: (layer.in_features, layer.out_features) for name, layer in spiking.items()}
    placements = plan(shapes, chip, mapping or InOrder(), stream=stream)
    stages, unsupported = _survey(model, spiking, ids, placements, chip)
    options = {"jitter": jitter, "seed": seed, "overlap": mode == "prefill"}
    with ThreadPoolExecutor(num_threads) as pool:
        replay = _Replay(chip, placements, stages, options, orders or {}, trace, timeline, pool, progress)
        run_observed(model, spiking, ids, lambda name, step: replay.add(spiking[name], name, step))
        return _summary(chip, mode, len(ids), replay, unsupported)


def spiking_layers(model: nn.Module) -> dict[str, SpikeLinear]:
    """Return the spiking layers of a model by their names."""
    return {name: module for name, module in model.named_modules() if isinstance(module, SpikeLinear)}


def run_observed(
    model: nn.Module, spiking: Mapping[str, SpikeLinear], ids: Tensor, see: Callable[[str, Step], None]
) -> None:
    """Run the model once; `see` gets every step with the name of its layer."""
    names = {id(layer): name for name, layer in spiking.items()}

    def observe(layer: SpikeLinear, step: Step) -> None:
        see(names[id(layer)], step)

    with observing(spiking.values(), observe), torch.inference_mode():
        model(input_ids=ids[None], use_cache=False)


def _survey(
    model: nn.Module,
    spiking: Mapping[str, SpikeLinear],
    ids: Tensor,
    placements: Mapping[str, Placement],
    chip: Description,
) -> tuple[list[Stage], tuple[str, ...]]:
    """Find the stages of a model, what they have to wait for, and what is not counted."""
    stages: list[Stage] = []
    shared: list[Tensor] = []

    def see(name: str, step: Step) -> None:
        if len(step.count) != len(ids) or step.first_token:
            raise InputError(
                f"{name}: expected all {len(ids)} tokens at once, got {len(step.count)}. Experts, sinks and texts "
                "whose spikes take more than 64 MiB a layer are not simulated; take fewer tokens or another model."
            )
        # The same input gives the same counts. Layers that have the same by chance run side by side, too.
        if shared and torch.equal(shared[0], step.count):
            stages[-1].layers.append(name)
        else:
            stages.append(Stage([name]))
            shared[:] = [step.count]

    with record(model, block_bytes=(64,)) as recording:  # only what does not spike is looked at
        run_observed(model, spiking, ids, see)
    counts = count_operations(recording)
    rest = {name: (part.kind, part.spiking) for name, part in counts.layers.items() if part.kind != "projection"}
    for before, after in pairwise(stages):
        homes = [[placements[name] for name in stage.layers] for stage in (before, after)]
        after.transfer, after.transfer_ps = transfer_between(homes[0], homes[1], chip)
    stages.append(place_rest(rest, stages, len(ids), chip))
    return stages, counts.unsupported


class _Replay:
    """Simulates layers as their spikes come: as many at a time as there are threads; in prefill, stage after stage."""

    def __init__(self, chip, placements, stages, options, orders, trace, timeline, pool, progress) -> None:
        self.chip, self.placements, self.stages, self.options = chip, placements, stages, options
        self.orders, self.trace, self.timeline, self.pool, self.progress = orders, trace, timeline, pool, progress
        self.waiting: dict[str, Future[tuple[LayerOnChip, LayerSimulation]]] = {}
        self.layers: dict[str, LayerOnChip] = {}
        self.kept: LayerSimulation | None = None
        self.stage = 0
        self.arrival_ps: np.ndarray | None = None

    def add(self, layer: SpikeLinear, name: str, step: Step) -> None:
        """Simulate a layer in a thread of the pool; in prefill, wait for the stage before."""
        if self.options["overlap"]:
            if self.arrival_ps is None:
                self.arrival_ps = arrivals(np.zeros(len(step.count), np.int64), self.stages[0])
            while name not in self.stages[self.stage].layers:
                self.end_stage()
        self.waiting[name] = self.pool.submit(self._simulate, layer, name, step, self.arrival_ps)
        if len(self.waiting) >= _MOST_WAITING:
            self._collect(next(iter(self.waiting)))

    def end_stage(self) -> None:
        """Wait for the layers of a stage; the inputs of the next one arrive when the last of them has ended."""
        self.collect_all()
        end_ps = np.max([self.layers[name].end_ps for name in self.stages[self.stage].layers], axis=0)
        self.stage += 1
        self.arrival_ps = arrivals(end_ps, self.stages[self.stage])

    def collect_all(self) -> None:
        """Wait for all layers that are under way."""
        for name in list(self.waiting):
            self._collect(name)

    def _collect(self, name: str) -> None:
        self.layers[name], simulation = self.waiting.pop(name).result()
        if name == self.timeline:
            self.kept = simulation
        self.progress(1)

    def _simulate(
        self, layer: SpikeLinear, name: str, step: Step, arrival_ps: np.ndarray | None
    ) -> tuple[LayerOnChip, LayerSimulation]:
        train, weight = step.train, layer.weight.t().contiguous().numpy()
        found = simulate_layer(
            train.spikes.numpy(),
            train.timestep_weight.numpy(),
            weight,
            self.chip,
            self.placements[name],
            order=self.orders.get(name),
            arrival_ps=arrival_ps,
            trace=self.trace or name == self.timeline,
            **self.options,
        )
        sums = found.sums - train.zero_point * weight.sum(0, dtype=np.int64)
        expected = step.accumulation[:, 0].numpy()
        row = LayerOnChip(
            name,
            self.placements[name],
            found.activity,
            found.end_ps,
            found.latency_ps,
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


def _summary(
    chip: Description, mode: str, num_tokens: int, replay: _Replay, unsupported: tuple[str, ...]
) -> ModelOnChip:
    """Put layers and what lies between them together."""
    stages = replay.stages
    if mode == "prefill":
        replay.end_stage()
        end_ps = replay.arrival_ps
        assert end_ps is not None
    else:
        replay.collect_all()
        stage_ps = [np.max([replay.layers[n].latency_ps for n in stage.layers], axis=0) for stage in stages[:-1]]
        between = sum(stage.transfer_ps + stage.rest_ps for stage in stages)
        end_ps = (np.sum(stage_ps, axis=0) + between).cumsum()
    activity = Activity()
    for stage in stages:
        activity += stage.rest
        activity += stage.transfer * num_tokens
    for layer in replay.layers.values():
        activity += replace(layer.activity, leaking_core_ps=0)
    activity += Activity(leaking_core_ps=chip.num_cores * int(end_ps[-1]))
    return ModelOnChip(chip, mode, num_tokens, replay.layers, stages, end_ps, activity, unsupported, replay.kept)
