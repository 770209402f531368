"""Chips with a global barrier: neurons that are visited in every timestep, and SANA-FE's time of a timestep."""

from __future__ import annotations

import numpy as np

from ..compiled import compiled
from .description import Description
from .network import Network
from .parts import to_ps
from .traffic import Traffic


def barrier_ps(chip: Description, num_tiles: int) -> int:
    """Return how long the barrier takes for that many mapped tiles; 0 without one."""
    if not chip.barrier.tiles:
        return 0
    reached = [ns for tiles, ns in zip(chip.barrier.tiles, chip.barrier.ns, strict=True) if tiles <= num_tiles]
    return to_ps(reached[-1] if reached else chip.barrier.ns[0])


def updated(spikes: np.ndarray, sums: np.ndarray) -> np.ndarray:
    """Return which outputs change in each timestep: all if a spike came in the one before, else those that hold a sum.

    Args:
        spikes: int8 [T, tokens, N].
        sums: what each timestep adds, int64 [tokens, T, M].
    Returns:
        bool [tokens, T, M].

    Source:
        SANA-FE's soma of Loihi, in which what arrives in a timestep is used in the next one (tests/peers).
    """
    changes = np.zeros(sums.shape, bool)
    _note_changes(spikes.any(axis=2), sums, changes)
    return changes


@compiled
def _note_changes(came, sums, changes):
    num_tokens, num_timesteps, num_outputs = sums.shape
    held = np.zeros(num_outputs, np.int64)  # what the timesteps before the last one left
    for token in range(num_tokens):
        held[:] = 0
        for t in range(1, num_timesteps):
            for o in range(num_outputs):
                changes[token, t, o] = came[t - 1, token] or held[o] != 0
                held[o] += sums[token, t - 1, o]


def simple_ps(changes: np.ndarray, traffic: Traffic, network: Network, chip: Description, num_tiles: int) -> np.ndarray:
    """Return the time of each timestep as SANA-FE's `simple` timing has it, int64 [tokens, T].

    The longest that a core takes to send or to receive, plus the barrier; neither queues nor links count. A sender
    takes `spike_ns` per spike and `send_ns` per packet; a core, `access_ns` per output and `update_ns` per output that
    changes, or `receive_ns` per packet and `add_ns` per `lanes` additions, whichever is longer.

    Args:
        changes: which outputs change, bool [tokens, T, M].
        traffic: packets of the timesteps.
        network: the stations.
        chip: with a barrier.
        num_tiles: tiles with neurons, senders included.

    Source:
        J. A. Boyle et al., SANA-FE, IEEE TCAD 2025; the equations in tests/peers/loihi_equations.py.
    """
    num_rows = traffic.num_tokens
    outputs = network.core_outputs
    num_columns, num_in = np.diff(outputs)[:, 0], network.num_partial
    copies = 1 if chip.packet.multicast else len(outputs) // num_in
    row = np.zeros(traffic.num_sent, np.int64)
    for first in traffic.first:
        row[first[0] : first[-1]] = np.repeat(np.arange(num_rows), np.diff(first))
    is_spike = traffic.num_adds >= 0

    def per_row(chosen: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
        return np.bincount(row[chosen], weights if weights is None else weights[chosen], num_rows).astype(np.int64)

    longest = np.zeros(num_rows, np.int64)
    for first in traffic.first:
        mine = is_spike & (np.arange(len(row)) >= first[0]) & (np.arange(len(row)) < first[-1])
        packets = per_row(mine)
        sending = packets // copies * to_ps(chip.encoder.spike_ns)
        if not chip.packet.multicast:
            sending += packets * to_ps(chip.core.send_ns)
        longest = np.maximum(longest, sending)
    block = np.searchsorted(network.core_inputs[:num_in, 0], traffic.position, side="right") - 1
    changing = changes.reshape(num_rows, -1)
    for c, (start, stop) in enumerate(outputs.tolist()):
        reaches = is_spike & (block == c % num_in)
        additions = per_row(reaches, traffic.num_adds) // copies * -(-int(num_columns[c]) // network.lanes)
        receiving = per_row(reaches) // copies * to_ps(chip.core.receive_ns) + additions * network.add_ps
        longest = np.maximum(longest, receiving)
        if c % num_in == 0:  # where the sums meet their neurons
            visits = (stop - start) * to_ps(chip.encoder.access_ns)
            visits = visits + changing[:, start:stop].sum(1) * to_ps(chip.encoder.update_ns)
            longest = np.maximum(longest, visits)
    return longest.reshape(changes.shape[:2]) + barrier_ps(chip, num_tiles)
