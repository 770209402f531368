"""The stages of a model on a chip: which layers run at the same time, and what has to be done before they can begin.

Layers share a stage if and only if they were handed the same tensor, such as Q, K and V. Stages follow each other in
the order in which they first ran. The dense work between them (norms, attention, gates, residual additions) is that of
the parts that `record` finds, and each part says where its work is done (`ModuleRecord.before`).
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from torch import Tensor, nn

from ..chip import Activity, Description, Placement
from ..energy import ModelCounts, count_operations
from ..energy.count import scores_of
from ..models import Recording, SpikeLinear
from ..models.layers.observing import Step
from ..models.recording import ModuleRecord, record
from ..models.recording.modules import UNCOUNTED
from .calls import Call, check_step, joining, run_steps
from .flow import as_activity, digital_ps, transfer_between


@dataclass
class Stage:
    """Layers with the same input, which run at the same time, and what has to be done before they can begin.

    Attributes:
        layers: their names.
        rest: dense work before they begin, of all tokens, by the name of the part of the model.
        rest_ps: time of the digital units for it, per token.
        spread_ps: the part of it in which the digital units of all tiles work.
        transfer: of the results of the stage before to the homes of these layers, per token.
        transfer_ps: its time, per token.
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
        calls: what each layer was given and computed, in the order in which they ran; None if they were not kept.
    """

    layers: list[list[str]]
    recording: Recording
    counts: ModelCounts
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
    # Weak references, so that the inputs of a whole model need not be kept: what is gone cannot be handed to a layer
    # again, and another tensor in its memory is another object.
    inputs: list[weakref.ref[Tensor]] = []
    done: set[str] = set()
    calls: list[Call] = []
    joined = joining(calls.append)

    def see(name: str, step: Step) -> None:
        check_step(name, step, len(ids), ran_before=name in done)
        if keep_calls:
            joined(name, step)
        if step.first_token + len(step.count) == step.num_tokens:
            done.add(name)
        if step.first_token:
            return
        shared = next((layers for layers, x in zip(stages, inputs, strict=True) if x() is step.x), None)
        if shared is None:
            stages.append([name])
            inputs.append(weakref.ref(step.x))
        else:
            shared.append(name)

    with record(model, block_bytes=(64,)) as recording:  # only what does not spike is looked at
        run_steps(model, spiking, ids, see)
    return Survey(stages, recording, count_operations(recording), calls if keep_calls else None)


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
        homes = [[placements[name] for name in stage.layers] for stage in (before, after)]
        after.transfer, after.transfer_ps = transfer_between(homes[0], homes[1], chip)
    stages.append(Stage([]))
    place_rest(found.recording, found.counts, stages, num_tokens, chip)
    return stages


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
    place = {name: i for i, name in enumerate(order)}
    for s, stage in enumerate(stages):
        if part.before in stage.layers:
            return s
    ran = place.get(part.before, place[part.name])
    begins = (min(place[name] for name in stage.layers) for stage in stages)
    return next((s for s, begin in enumerate(begins) if begin > ran), len(stages))
