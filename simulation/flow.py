"""How tokens flow through the layers of a model on a chip: stages, what lies between them, and when each token ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..chip import Activity, Description, Placement
from ..chip.mapping import is_north_south, route
from ..chip.parts import to_ps
from ..energy import OperationCounts


@dataclass
class Stage:
    """Layers with the same input, which run at the same time, and what has to be done before they can begin.

    Attributes:
        layers: their names.
        rest: dense work of the digital unit before they begin, of all tokens.
        rest_ps: its time, per token.
        transfer: of the results of the stage before to the homes of these layers, per token.
        transfer_ps: its time, per token.
    """

    layers: list[str]
    rest: Activity = field(default_factory=Activity)
    rest_ps: int = 0
    transfer: Activity = field(default_factory=Activity)
    transfer_ps: int = 0


def arrivals(ready_ps: np.ndarray, stage: Stage) -> np.ndarray:
    """Return when each token's input is there, if the stage before ends it at `ready_ps`.

    The digital unit works on one token after the other: its queue is not bounded.
    """
    there = ready_ps + stage.transfer_ps
    done = np.zeros(len(there), np.int64)
    free = 0
    for i, time in enumerate(there.tolist()):
        free = max(free, time) + stage.rest_ps
        done[i] = free
    return done


def transfer_between(
    before: Sequence[Placement], after: Sequence[Placement], chip: Description
) -> tuple[Activity, int]:
    """Return what it takes to send the results of some layers to the homes of others, per token, and its time in ps.

    Each result goes in packets of one number from home to home, over links that nothing else uses. Results for several
    homes, or of several layers, travel at the same time.
    """
    total, longest = Activity(), 0
    link, core = chip.link, chip.core
    hop_ps = chip.handshake.ps + link.occupied_ps(chip.packet.address_bits + chip.packet.sum_bits)
    for start in before:
        num = start.cores[-1].outputs.stop
        for home in dict.fromkeys(placement.home for placement in after):
            links = route(start.home, home)
            vertical = sum(is_north_south(*each) for each in links)
            if not links:
                continue
            total += Activity(
                num_east_west=num * (len(links) - vertical),
                num_north_south=num * vertical,
                num_sent=num,
                num_received=num,
                num_handshakes=num * (len(links) + 1),
            )
            wires = vertical * link.north_south_ns + (len(links) - vertical) * link.east_west_ns
            slowest = max(hop_ps, chip.handshake.ps + to_ps(core.send_ns))
            first = to_ps(wires) + len(links) * hop_ps
            longest = max(longest, first + num * slowest)
    return total, longest


def as_activity(counts: OperationCounts) -> Activity:
    """Return dense work as a digital unit does it: comparisons and conversions cost as much as additions."""
    macs = counts.num_mac_fp16 + counts.num_mac_fp32
    adds = counts.num_add_fp32 + counts.num_compare_fp32 + counts.num_rescale_add + counts.num_rescale_convert
    encoding = counts.num_encode_abs + counts.num_encode_add + counts.num_encode_compare + counts.num_encode_round
    moved = counts.weight_bytes + counts.parameter_bytes + counts.activation_bytes + counts.accumulator_bytes
    return Activity(
        num_adds=macs + adds + encoding,
        num_multiplies=macs + counts.num_mul_fp32 + counts.num_rescale_mul,
        num_exponentials=counts.num_exp_fp32,
        num_divisions=counts.num_div_fp32 + counts.num_encode_div,
        num_square_roots=counts.num_sqrt_fp32,
        num_integer_macs=counts.num_mac_int8,
        num_bytes=moved + counts.state_bytes + counts.kv_bytes,
    )


def digital_ps(work: Activity, chip: Description, num_units: int) -> int:
    """Return how long digital units take for some work that they share, in ps."""
    operations = (
        work.num_adds
        + work.num_multiplies
        + work.num_exponentials
        + work.num_divisions
        + work.num_square_roots
        + work.num_integer_macs
    )
    return round(1000 * chip.digital.operation_ns * -(-operations // (chip.digital.lanes * num_units)))


def stage_of_part(name: str, kind: str, stages: Sequence[Stage]) -> int:
    """Return before which stage a dense part of the model runs; len(stages) for after the last one.

    What contains spiking layers runs before the last of them (attention before the output projection, a gate before the
    down projection); what contains none, before the first layer of the block that it is part of. Of what belongs to no
    block, the embedding comes first and the rest last.
    """
    inside = [s for s, stage in enumerate(stages) if any(layer.startswith(f"{name}.") for layer in stage.layers)]
    if inside and len(inside) < len(stages):
        return inside[-1]
    block = name.rpartition(".")[0]
    beside = [s for s, stage in enumerate(stages) if any(layer.startswith(f"{block}.") for layer in stage.layers)]
    if beside and len(beside) < len(stages):
        return beside[0]
    return 0 if kind == "embedding" else len(stages)


def place_rest(
    parts: Mapping[str, tuple[str, OperationCounts]], stages: list[Stage], num_tokens: int, chip: Description
) -> Stage:
    """Enter the dense parts of a model into its stages; return what comes after them, as a stage without layers.

    Dense projections (the output head) are spread over the digital units of all tiles; everything else of a stage runs
    on one. Times are means over the tokens: attention takes less of them for the first tokens, and more for the last.
    """
    last = Stage([])
    num_units = chip.mesh.columns * chip.mesh.rows
    for name, (kind, counts) in parts.items():
        at = stage_of_part(name, kind, stages)
        stage = stages[at] if at < len(stages) else last
        work = as_activity(counts)
        stage.rest += work
        stage.rest_ps += digital_ps(work, chip, num_units if kind == "linear" else 1) // num_tokens
    return last
