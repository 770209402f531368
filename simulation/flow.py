"""What lies between the layers of a model on a chip: dense work, transfers, and the tokens that wait for both."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ..chip import Activity, Description, Placement
from ..chip.mapping import Tile, is_north_south, route
from ..chip.parts import to_ps
from ..energy import OperationCounts


def arrivals(ready_ps: np.ndarray, transfer_ps: int, rest_ps: int) -> np.ndarray:
    """Return when the input of each token reaches a stage.

    The digital unit works on one token after the other: its queue is not bounded.

    Args:
        ready_ps: when the stage before ends each token, int64 [tokens].
        transfer_ps: time of a token's results on their way to the stage.
        rest_ps: time of the dense work on a token.
    """
    done = np.zeros(len(ready_ps), np.int64)
    free = 0
    for i, time in enumerate((ready_ps + transfer_ps).tolist()):
        free = max(free, time) + rest_ps
        done[i] = free
    return done


def transfer_between(flows: Iterable[tuple[Placement, Tile, int]], chip: Description) -> tuple[Activity, int]:
    """Return what it takes to send the results of some layers to the homes of others, and its time per token in ps.

    Each result goes in packets of one number from home to home, over links that nothing else uses. Results for several
    homes, or of several layers, travel at the same time.

    Args:
        flows: from which layer to which home, and the results of how many tokens.
        chip: the chip.
    """
    total, longest = Activity(), 0
    link, core = chip.link, chip.core
    hop_ps = chip.handshake.ps + link.occupied_ps(chip.packet.address_bits + chip.packet.sum_bits)
    for start, home, num_tokens in flows:
        num = start.cores[-1].outputs.stop
        links = route(start.home, home)
        vertical = sum(is_north_south(*each) for each in links)
        if not links:
            continue
        one = Activity(
            num_east_west=num * (len(links) - vertical),
            num_north_south=num * vertical,
            num_sent=num,
            num_received=num,
            num_handshakes=num * (len(links) + 1),
        )
        total += one * num_tokens
        wires = vertical * link.north_south_ns + (len(links) - vertical) * link.east_west_ns
        slowest = max(hop_ps, chip.handshake.ps + to_ps(core.send_ns))
        first = to_ps(wires) + len(links) * hop_ps
        longest = max(longest, first + num * slowest)
    return total, longest


def as_activity(counts: OperationCounts) -> Activity:
    """Return dense work as a digital unit does it: comparisons, conversions and integer additions cost one addition."""
    macs = counts.num_mac_fp16 + counts.num_mac_fp32
    adds = counts.num_add_fp32 + counts.num_compare_fp32 + counts.num_rescale_add + counts.num_rescale_convert
    adds += counts.num_add_int8 + counts.num_add_int16 + counts.num_add_int32
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
    """Return how long digital units that share some work take for it, in ps."""
    operations = (
        work.num_adds
        + work.num_multiplies
        + work.num_exponentials
        + work.num_divisions
        + work.num_square_roots
        + work.num_integer_macs
    )
    return round(1000 * chip.digital.operation_ns * -(-operations // (chip.digital.lanes * num_units)))
