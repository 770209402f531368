"""The stages of a model on a chip: which layers run at the same time, and what has to be done before they can begin.

Layers share a stage if and only if they were handed the same tensor, such as Q, K and V. The experts of a layer run at
the same time, each on its own tokens: their first projections are one stage and their last ones another. Stages follow
each other in the order in which they first ran. The dense work between them (norms, attention, gates, residual
additions) is that of the parts that `record` finds, and each part says where its work is done (`ModuleRecord.before`).
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from torch import Tensor, nn

from ..chip import Activity, Description, Placement
from ..chip.mapping import Tile
from ..energy import ModelCounts, count_operations
from ..energy.count import scores_of
from ..models import Recording, SpikeLinear
from ..models.layers.graded_linear import owner_of
from ..models.layers.observing import Step
from ..models.recording import ModuleRecord, record
from ..models.recording.modules import UNCOUNTED
from .calls import Call, begin, check_step, joining, run_steps
from .experts import Place, Routing
from .flow import as_activity, digital_ps, transfer_between


@dataclass
class Stage:
    """Layers with the same input, which run at the same time, and what has to be done before they can begin.

    Attributes:
        layers: their names.
        rest: dense work before they begin, of all tokens, by the name of the part of the model.
        rest_ps: time of the digital units for it, per token.
        spread_ps: the part of it in which the digital units of all tiles work.
        transfer: of the results of the stage before to the homes of these layers, of all tokens. An expert gets those
            of its own tokens.
        transfer_ps: its time, per token; of experts, to the farthest.
    """

    layers: list[str]
    rest: dict[str, Activity] = field(default_factory=dict)
    rest_ps: int = 0
    spread_ps: int = 0
    transfer: Activity = field(default_factory=Activity)
    transfer_ps: int = 0


@dataclass(frozen=True)
class Survey:
    """What a run of a model tells that no chip decides on.

    Attributes:
        layers: names of the layers of each stage, in order.
        recording: of the run.
        counts: operations of the run.
        places: where layers stand that belong to experts, by name.
        tokens: which tokens an expert's layers saw, by the name of the layer; others saw all.
        calls: what each layer was given and computed, in the order in which they ran; None if they were not kept.
    """

    layers: list[list[str]]
    recording: Recording
    counts: ModelCounts
    places: Mapping[str, Place]
    tokens: Mapping[str, np.ndarray]
    calls: list[Call] | None


def survey(model: nn.Module, spiking: Mapping[str, SpikeLinear], ids: Tensor, *, keep_calls: bool = False) -> Survey:
    """Run a model and find its stages.

    Args:
        model: converted to spikes.
        spiking: its spiking layers by name.
        ids: token ids, [tokens].
        keep_calls: keep the spikes of all layers, to simulate them on several chips.
    Raises:
        InputError: a layer does not see every token exactly once.
    """
    stages: list[list[str]] = []
    of_experts: dict[tuple[str, bool], list[str]] = {}
    routing, tokens = Routing(model, spiking), {}
    # Weak references, so that the inputs of a whole model need not be kept: what is gone cannot be handed to a layer
    # again, and another tensor in its memory is another object.
    inputs: list[tuple[weakref.ref[Tensor], list[str]]] = []
    done: set[str] = set()
    calls: list[Call] = []
    joined = joining(calls.append, routing, len(ids))

    def see(name: str, step: Step) -> None:
        some = routing.tokens_of(name, step.x, len(ids))
        check_step(name, step, len(ids), some, ran_before=name in done)
        if some is not None:
            tokens[name] = some.numpy()
        if keep_calls:
            joined(name, step)
        if step.first_token + len(step.count) == step.num_tokens:
            done.add(name)
        if step.first_token:
            return
        place = routing.places.get(name)
        if place is None:
            shared = next((layers for x, layers in inputs if x() is step.x), None)
        else:
            shared = of_experts.get((place.mixture, place.is_last))
        if shared is None:
            stages.append(shared := [])
            if place is None:
                inputs.append((weakref.ref(step.x), shared))
            else:
                of_experts[place.mixture, place.is_last] = shared
        shared.append(name)

    begun = begin(model, ids)
    with record(model, block_bytes=(64,)) as recording:  # only what does not spike is looked at
        run_steps(model, spiking, ids, see, begun)
    counts = count_operations(recording)
    return Survey(stages, recording, counts, routing.places, tokens, calls if keep_calls else None)


def stages_on(found: Survey, placements: Mapping[str, Placement], chip: Description, num_tokens: int) -> list[Stage]:
    """Return the stages of a model on a chip, in order; the last one has no layers, but the dense work after them all.

    Args:
        found: of a run.
        placements: where each layer lies on the chip.
        chip: the chip.
        num_tokens: tokens of the run.
    """
    stages = [Stage(list(layers)) for layers in found.layers]
    for before, after in pairwise(stages):
        flows = _flows(before.layers, after.layers, placements, found, num_tokens)
        after.transfer, after.transfer_ps = transfer_between(flows, chip)
    stages.append(Stage([]))
    place_rest(found.recording, found.counts, stages, num_tokens, chip)
    return stages


def _flows(
    before: Sequence[str],
    after: Sequence[str],
    placements: Mapping[str, Placement],
    found: Survey,
    num_tokens: int,
) -> list[tuple[Placement, Tile, int]]:
    """Return from which layer to which home results go, and of how many tokens: what an expert got, or is to get."""

    def seen_by(name: str) -> np.ndarray:
        seen = np.zeros(num_tokens, bool)
        seen[found.tokens.get(name, slice(None))] = True
        return seen

    flows = []
    for name in before:
        reached: dict[Tile, np.ndarray] = {}
        for other in after:
            one, two = found.places.get(name), found.places.get(other)
            if one is not None and two is not None and one.mixture == two.mixture and one.expert != two.expert:
                continue
            home = placements[other].home
            reached[home] = reached.get(home, np.zeros(num_tokens, bool)) | (seen_by(name) & seen_by(other))
        flows += [(placements[name], home, int(some.sum())) for home, some in reached.items() if some.any()]
    return flows


def place_rest(
    recording: Recording, counts: ModelCounts, stages: Sequence[Stage], num_tokens: int, chip: Description
) -> None:
    """Enter the dense parts of a model into its stages.

    Dense projections (the output head) are spread over the digital units of all tiles; everything else of a stage runs
    on one. Times are means over the tokens: attention takes less time for the first tokens and more for the last.

    Args:
        recording: of the run, with the order in which layers and parts ran.
        counts: operations of the run.
        stages: in order; the last one has no layers.
        num_tokens: tokens of the run.
        chip: the chip.
    """
    num_units = chip.mesh.columns * chip.mesh.rows
    for name, part in recording.modules.items():
        if part.num_tokens == 0 or part.kind == UNCOUNTED:
            continue
        stage = stages[stage_of_part(part, stages[:-1], recording.order)]
        scores = counts.layers.get(scores_of(name))
        own = counts.layers[name].spiking
        work = as_activity(own if scores is None else own + scores.spiking)
        stage.rest[name] = work
        spread = part.kind == "linear"
        rest_ps = digital_ps(work, chip, num_units if spread else 1) // num_tokens
        stage.rest_ps += rest_ps
        stage.spread_ps += rest_ps if spread else 0


def stage_of_part(part: ModuleRecord, stages: Sequence[Stage], order: Sequence[str]) -> int:
    """Return before which stage the work of a dense part is done; len(stages) if it is done after the last one.

    That is the stage of the layer `part.before`. If this layer does not spike, or the part does not name one, it is the
    first stage that begins after that layer (or the part itself) ran.

    Args:
        part: a part that ran.
        stages: with layers, in order.
        order: names of layers and parts in the order in which they first ran.
    """
    place: dict[str, int] = {}
    for i, name in enumerate(order):
        place.setdefault(owner_of(name), i)
    for s, stage in enumerate(stages):
        if part.before in stage.layers:
            return s
    ran = place.get(part.before, place[part.name])
    begins = (min(place[name] for name in stage.layers) for stage in stages)
    return next((s for s, begin in enumerate(begins) if begin > ran), len(stages))
