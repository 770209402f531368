"""A whole model on a simulated chip: what it takes in time and energy."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
from torch import Tensor, nn

from ..chip import MAPPINGS, Activity, Description, InOrder, LayerSimulation, Placement, load_description, plan
from ..chip import Mapping as ChipMapping
from ..chip.layer import check_jitter
from ..energy import EnergyReport
from ..errors import InputError
from ..models import SpikeLinear
from ..module_check import check_module
from .calls import run_calls
from .layers import coarse_of, layers_of
from .leakage import leakage_of
from .replay import LayerOnChip, Replay
from .stages import Stage, Survey, stages_on, survey
from .weights import weights_of

MODES = ("decode", "prefill")
_ASSUMPTIONS = (
    "each layer has tiles of its own, which its packets never leave",
    "results go from home to home on links of their own",
    "layers that share an input each encode it; they run at the same time",
    "coarse rows are the upper bits of a layer's own, in a plane of their own; a packet's count says what it reads",
    "weights in groups: the digital unit of a core's tile rescales the sums of a group while packets add to the next",
    "an expert sees its own tokens; the experts of a layer run at the same time, and idle ones keep their weights",
    "sink tokens have run before: what they leave in states and caches is there",
    "what stays dense of a stage runs on one digital unit, the output head on those of all tiles",
    "the time of attention is its mean over the tokens",
)
_ALL_LEAK = "the whole chip leaks for the whole time"


def assumptions_of(chip: Description) -> tuple[str, ...]:
    """Return what a simulation on a chip rests on, in words."""
    sleep = "cores that hold weights never sleep"
    if chip.core.sleep_share < 1:
        sleep = (
            "cores that hold weights sleep while their layer does nothing, keep their weights, and are awake again "
            f"{chip.core.wake_ns:g} ns before it begins, which is known; their routers go on"
        )
    off = "cores without weights are " + ("switched off" if chip.core.off_share < 1 else "never switched off")
    leaks = f"{sleep}; {off}" if min(chip.core.sleep_share, chip.core.off_share) < 1 else _ALL_LEAK
    return (*_ASSUMPTIONS, leaks)


@dataclass
class ModelOnChip:
    """A simulated model.

    Attributes:
        chip: the chip.
        mode: "decode" or "prefill".
        num_tokens: tokens that were simulated.
        layers: by name, in the order in which they ran.
        idle: where the layers lie that no token reached, by name: those of experts that none was routed to.
        stages: in order; the last one has no layers but what comes after them.
        end_ps: when each token ended, int64 [tokens].
        unsupported: parts of the model whose work is not counted.
        timelines: simulations of the layers that were asked for, by name.
        run: model, neuron and code that ran.
    """

    chip: Description
    mode: str
    num_tokens: int
    layers: dict[str, LayerOnChip]
    stages: list[Stage]
    end_ps: np.ndarray
    unsupported: tuple[str, ...] = ()
    idle: Mapping[str, Placement] = field(default_factory=dict)
    timelines: Mapping[str, LayerSimulation] = field(default_factory=dict)
    run: str = ""

    def __repr__(self) -> str:
        """Return the energy by component, and the time of a token."""
        token_us = float(self.end_ps[-1]) / self.num_tokens * 1e-6
        return f"{self.energy_report()!r}\n{len(self.layers):,} layers, {token_us:,.1f} µs a token"

    @property
    def placements(self) -> dict[str, Placement]:
        """Where each layer lies, by name; also those that no token reached."""
        return {**{name: layer.placement for name, layer in self.layers.items()}, **self.idle}

    @property
    def token_ps(self) -> np.ndarray:
        """Time of each token: from its begin when decoding, from the end of the one before in prefill. [tokens]."""
        return np.diff(self.end_ps, prepend=0)

    @property
    def activities(self) -> dict[str, Activity]:
        """What was done for all tokens: by layers, by dense parts, in transfers to a stage; and what leaked."""
        rows = {name: replace(layer.activity, leaking_core_ps=0) for name, layer in self.layers.items()}
        for stage in self.stages:
            rows |= stage.rest
            if stage.transfer != Activity():
                rows[f"transfer to {stage.layers[0]}"] = stage.transfer
        rows["leakage of the chip"] = leakage_of(
            self.chip,
            self.layers.values(),
            self.stages,
            self.num_tokens,
            self.mode,
            int(self.end_ps[-1]),
            self.idle.values(),
        )
        return rows

    @property
    def activity(self) -> Activity:
        """All that was done for all tokens, with the leakage of the whole chip."""
        return sum(self.activities.values(), Activity())

    @property
    def energy_pj(self) -> dict[str, float]:
        """Picojoules by component, of all tokens."""
        return self.activity.energy_pj(self.chip)

    def energy_report(self) -> EnergyReport:
        """Return the energy of all tokens by layer and component, without dense models to compare with.

        Its rows are the spiking layers, the dense parts of the model, the transfers of results to each stage, and the
        leakage of the whole chip (see `leakage.leakage_of`). Components that took no energy are left out.
        """
        energies = {name: activity.energy_pj(self.chip) for name, activity in self.activities.items()}
        return EnergyReport(
            f"simulated chip {self.chip.name}, {self.mode}",
            {name: {part: pj for part, pj in parts.items() if pj} for name, parts in energies.items()},
            num_tokens=self.num_tokens,
            num_macs=self.activity.num_macs,
            table=self.chip.name,
            process=self.chip.process,
            source="the description of the chip names the source of each number",
            assumptions=assumptions_of(self.chip),
            left_out=self.unsupported,
            run=self.run,
        )


def simulate_model(
    model: nn.Module,
    ids: Tensor,
    chip: str | os.PathLike | Description,
    *,
    mapping: ChipMapping | str | None = None,
    stream: bool = False,
    mode: str = "decode",
    orders: Mapping[str, np.ndarray] | None = None,
    jitter: float = 0.0,
    seed: int = 0,
    trace: bool = False,
    timelines: Collection[str] = (),
    num_threads: int = 2,
    surveyed: Survey | None = None,
    progress: Callable[[int], None] = lambda layers: None,
) -> ModelOnChip:
    """Run a window of tokens through a spiking model, and the spikes of every layer through the chip.

    Memory does not grow with the number of layers: spikes are dropped once they have been simulated.

    Args:
        model: converted to spikes.
        ids: token ids, [tokens].
        chip: the chip, as `Chip.description`.
        mapping: cuts layers into cores, an object or a registered name; `InOrder()` if None.
        stream: weights stream from DRAM, so that the model need not fit.
        mode: "decode": a token begins when the one before has left the model; "prefill": tokens follow each other
            through the layers.
        orders: channels of a layer in the order in which they lie in memory, by the name of the layer.
        jitter: services last up to this share longer, at random; changes times, never sums.
        seed: of the jitter.
        trace: find what held tokens up, which takes twice as long.
        timelines: names of layers whose simulations are kept, each with a trace.
        num_threads: layers that are simulated at a time.
        surveyed: of `survey_model` with the same model and tokens, which then do not run again.
        progress: called with the number of layers that were simulated since the last call.
    Raises:
        InputError: the model has no spiking layers, has layers that do not see every token exactly once, or does not
            fit the chip; or it has weights in groups, and the chip nothing that rescales them.
    """
    check_module("simulate_model", model)
    if mode not in MODES:
        raise InputError(f"mode: expected one of {', '.join(MODES)}, got {mode!r}.")
    if len(ids) == 0:
        raise InputError("simulate_model: expected at least one token, got none.")
    chip = load_description(chip)
    cutting: ChipMapping = MAPPINGS.resolve(InOrder() if mapping is None else mapping, "simulate_model.mapping")
    check_jitter(jitter, seed)
    spiking = _spiking(model)
    for what, names in (("orders", list(orders or {})), ("timelines", timelines)):
        for name in names:
            if name not in spiking:
                raise InputError(f"{what}: expected a spiking layer such as {next(iter(spiking))!r}, got {name!r}.")
    shapes = {name: (layer.in_features, layer.out_features) for name, layer in spiking.items()}
    placements = plan(shapes, chip, cutting, stream=stream, weights=weights_of(spiking))
    found = survey(model, spiking, ids) if surveyed is None else surveyed
    stages = stages_on(found, placements, chip, len(ids))
    with ThreadPoolExecutor(num_threads) as pool:
        replay = Replay(
            chip,
            spiking,
            placements,
            stages,
            len(ids),
            pool,
            overlap=mode == "prefill",
            jitter=jitter,
            seed=seed,
            orders=orders or {},
            coarse=coarse_of(model),
            trace=trace,
            timelines=timelines,
            progress=progress,
        )
        if found.calls is None:
            run_calls(model, spiking, ids, replay.add)
        else:
            for call in found.calls:
                replay.add(call)
        end_ps = replay.end_ps()
    counts = found.counts
    run = f"{counts.model}, {counts.neuron}, {counts.encoder}"
    idle = {name: placement for name, placement in placements.items() if name not in replay.layers}
    return ModelOnChip(chip, mode, len(ids), replay.layers, stages, end_ps, counts.unsupported, idle, replay.kept, run)


def survey_model(model: nn.Module, ids: Tensor) -> Survey:
    """Run a window of tokens through a spiking model, and keep the spikes of all layers, for simulations on many chips.

    Args:
        model: converted to spikes.
        ids: token ids, [tokens].
    Raises:
        InputError: as `simulate_model`.
    """
    check_module("survey_model", model)
    return survey(model, _spiking(model), ids, keep_calls=True)


def _spiking(model: nn.Module) -> dict[str, SpikeLinear]:
    """Return the spiking layers of a model by name; raise an InputError if it has none."""
    spiking = layers_of(model)
    if not spiking:
        raise InputError("simulate_model: expected a model with spiking layers, it has none. Call to_spiking first.")
    return spiking
