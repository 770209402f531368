"""What a chip did, in exact integers, and what that costs."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from .components import COMPONENTS
from .description import Description
from .mapping import Placement
from .network import ACCUMULATE, COLLECT, LINK, REDUCE, SEND, SOURCE, Network
from .outcome import Outcome
from .traffic import Traffic


@dataclass(frozen=True)
class Activity:
    """Counts of what happened in one or more layers; add them with `+`, and repeat them with `* integer`.

    `components.py` says which energy of the chip goes with which count.

    Attributes:
        num_macs: multiply-accumulates of the dense layer on the same tokens, for comparison.
        num_synops: additions of a weight.
        num_shifts: additions of a shifted weight; they are among num_synops.
        num_partial_adds: additions where partial sums meet.
        num_updates, num_register_updates: accumulators read and written, in memory and in registers.
        num_sram_blocks, num_dram_blocks: accesses to weights.
        num_east_west, num_north_south: packets on links, summed over the links.
        num_sent, num_received: packets that leave and reach cores and digital units.
        num_handshakes: packets handed from stage to stage.
        num_means: channels whose |x| was added to the mean.
        num_thresholds: tokens encoded.
        num_rounded: channels divided by the threshold and rounded.
        num_spikes: packets that encoders made; copies for several cores count once.
        num_accesses, num_updated: neurons (outputs) visited and changed in a timestep; with a barrier only.
        num_adds, num_multiplies, num_exponentials, num_divisions, num_square_roots, num_integer_macs, num_bytes:
            operations of digital units, and bytes that they read and write.
        leaking_core_ps: cores times time, of cores that are awake.
        sleeping_core_ps: the same of cores that hold weights and sleep.
        off_core_ps: the same of cores that hold no weights and are switched off.
        num_wakes: cores that were woken.
    """

    num_macs: int = 0
    num_synops: int = 0
    num_shifts: int = 0
    num_partial_adds: int = 0
    num_updates: int = 0
    num_register_updates: int = 0
    num_sram_blocks: int = 0
    num_dram_blocks: int = 0
    num_east_west: int = 0
    num_north_south: int = 0
    num_sent: int = 0
    num_received: int = 0
    num_handshakes: int = 0
    num_means: int = 0
    num_thresholds: int = 0
    num_rounded: int = 0
    num_spikes: int = 0
    num_accesses: int = 0
    num_updated: int = 0
    num_adds: int = 0
    num_multiplies: int = 0
    num_exponentials: int = 0
    num_divisions: int = 0
    num_square_roots: int = 0
    num_integer_macs: int = 0
    num_bytes: int = 0
    leaking_core_ps: int = 0
    sleeping_core_ps: int = 0
    off_core_ps: int = 0
    num_wakes: int = 0

    def __add__(self, other: Activity) -> Activity:
        return Activity(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __mul__(self, factor: int) -> Activity:
        return Activity(*(getattr(self, f.name) * factor for f in fields(self)))

    def energy_pj(self, chip: Description) -> dict[str, float]:
        """Return picojoules by component; the total is their sum."""
        return {name: component.energy_pj(self, chip) for name, component in COMPONENTS.items()}


def activity_of(
    outcome: Outcome, network: Network, traffic: Traffic, placement: Placement, chip: Description, num_tokens: int
) -> Activity:
    """Count what a simulated layer did, except for leakage.

    Args:
        outcome: of the simulation.
        network: its stations.
        traffic: its packets.
        placement: of the layer.
        chip: the chip.
        num_tokens: tokens of the layer. On a chip with a barrier, `traffic` has one token for each timestep of these.
    """
    kind = network.kind
    # With a barrier, no packet is needed to tell the end of a timestep.
    served = outcome.num_served - outcome.num_ends if network.free_ends else outcome.num_served
    links = network.of_kind(LINK)
    vertical = network.north_south[links]
    copies = 0 if chip.packet.multicast else int(served[kind == SOURCE].sum())
    sums = int(served[kind == SEND].sum()) if chip.core.sums_travel else 0
    collected = int(served[kind == COLLECT].sum())
    num_inputs, num_outputs = placement.cores[-1].inputs.stop, placement.cores[-1].outputs.stop
    by_barrier = bool(chip.barrier.tiles)
    blocks, updates = int(outcome.num_blocks.sum()), int(outcome.num_updates.sum())
    rescaled, weights = int(outcome.num_rescaled.sum()), placement.weights
    in_registers = chip.core.register_accumulators > 0
    met = int(served[kind == REDUCE].sum())
    additions = rescaled * weights.additions
    if weights.in_groups:  # what meets are floating-point numbers
        additions += met
    else:
        additions += collected * weights.additions
    if weights.has_minimum:  # the sum of counts of a group in each core, or of all at home
        spikes = kind == ACCUMULATE
        additions += int((served - outcome.num_ends)[spikes].sum()) if weights.in_groups else traffic.num_packets
    return Activity(
        num_macs=num_tokens * num_inputs * num_outputs,
        num_synops=int(outcome.num_synops.sum()),
        num_shifts=int(outcome.num_shifts.sum()),
        num_partial_adds=0 if weights.in_groups else met,
        # What was rescaled is added to a sum in memory.
        num_updates=rescaled + (0 if in_registers else updates),
        num_register_updates=updates if in_registers else 0,
        num_sram_blocks=0 if placement.streamed else blocks,
        num_dram_blocks=blocks if placement.streamed else 0,
        num_east_west=int(served[links[~vertical]].sum()),
        num_north_south=int(served[links[vertical]].sum()),
        num_sent=copies + sums,
        num_received=int(served[kind == ACCUMULATE].sum()) + (met + collected if sums else 0),
        num_handshakes=int(served[kind != SOURCE].sum()),
        num_means=0 if by_barrier else num_tokens * num_inputs,
        num_thresholds=0 if by_barrier else num_tokens,
        num_rounded=0 if by_barrier else num_tokens * num_inputs,
        num_spikes=traffic.num_packets,
        num_accesses=traffic.num_tokens * num_outputs if by_barrier else 0,
        # A sum is multiplied by the scale of its weights, unless that was done for each group, and by the threshold.
        num_multiplies=collected * (1 if weights.in_groups else 1 + weights.multiplies) + rescaled * weights.multiplies,
        num_adds=additions,
    )


def utilization(outcome: Outcome, network: Network) -> np.ndarray:
    """Return the share of the time in which each core was adding, [C]."""
    cores = network.of_kind(ACCUMULATE)
    order = np.argsort(network.unit[cores])
    return outcome.busy_ps[cores][order] / max(int(outcome.end_ps.max(initial=0)), 1)
