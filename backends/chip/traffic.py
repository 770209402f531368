"""What senders emit: the spikes of a train as packets in order, each with the time that its encoding takes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...errors import InputError
from .description import Description, to_ps
from .mapping import Placement
from .network import Network


@dataclass(frozen=True)
class Traffic:
    """Packets of all senders, E in all; a sender's packets of a token follow each other and end with its end packets.

    Attributes:
        first: where the packets of a token begin; those of the last token end at the last entry. int64 [senders,
            tokens + 1].
        position: input position, int64 [E].
        value: what the row of weights is worth, int64 [E].
        num_adds: additions per output that this takes, int64 [E]; -1 for the end of a token.
        num_shifts: those of them of a shifted weight, int64 [E].
        route: of the packet, int64 [E].
        service_ps: from the packet before to this one, int64 [E].
        num_packets: spikes or counts that left an encoder; copies for several cores count once.
        num_sent: packets that left a sender, ends included.
    """

    first: np.ndarray
    position: np.ndarray
    value: np.ndarray
    num_adds: np.ndarray
    num_shifts: np.ndarray
    route: np.ndarray
    service_ps: np.ndarray
    num_packets: int
    num_sent: int

    @property
    def num_tokens(self) -> int:
        """Tokens, or timesteps of tokens on a chip with a barrier."""
        return self.first.shape[1] - 1


def build_traffic(
    spikes: np.ndarray, timestep_weight: np.ndarray, placement: Placement, network: Network, chip: Description
) -> Traffic:
    """Turn a spike train into packets.

    With a barrier the timesteps of a token become tokens of their own.

    Args:
        spikes: -1, 0 or 1, int8 [T, tokens, N], the channels in the order in which they are sent.
        timestep_weight: int64 [T].
        placement: where the layer lies.
        network: its stations.
        chip: says what a packet holds and what encoding takes.
    Raises:
        InputError: address or payload have too few bits.
    """
    num_timesteps, num_tokens, num_inputs = spikes.shape
    # A spike of weight 6 takes two additions of shifted rows, for the binary ones of 6.
    ones = np.array([abs(w).bit_count() for w in timestep_weight.tolist()], np.int64)
    if chip.barrier.tiles:
        rows = spikes.transpose(1, 0, 2).reshape(num_tokens * num_timesteps, num_inputs)
        row, position = rows.nonzero()
        t = row % num_timesteps
        weight = timestep_weight[t]
        value = weight * rows[row, position]
        adds = ones[t]
        shifts = adds - (weight & 1)
        num_rows = len(rows)
    elif chip.packet.payload == "spike":
        # Channel by channel: an encoder sends all spikes of a channel when it comes to it.
        row, position, t = spikes.transpose(1, 2, 0).nonzero()
        weight = timestep_weight[t]
        value = weight * spikes[t, row, position]
        adds = ones[t]
        shifts = adds - (weight & 1)
        num_rows = num_tokens
    else:
        row, position = (spikes != 0).any(axis=0).nonzero()
        fired = spikes[:, row, position].astype(np.int64)  # [T, active]
        value = timestep_weight @ fired
        adds = ones @ np.abs(fired)
        shifts = adds - (timestep_weight & 1) @ np.abs(fired)
        num_rows = num_tokens
    _check_bits(value, timestep_weight, num_inputs, chip)
    parts, first, num_sent = [], [], 0
    for s, (_, sent) in enumerate(placement.senders):
        mine = (position >= sent.start) & (position < sent.stop)
        columns = (row[mine], position[mine], value[mine], adds[mine], shifts[mine])
        part, ends = _of_sender(columns, s, sent, num_rows, placement, network, chip)
        first.append(num_sent + ends)
        num_sent += len(part[0])
        parts.append(part)
    names = ("position", "value", "num_adds", "num_shifts", "route", "service_ps")
    merged = {name: np.concatenate(arrays) for name, arrays in zip(names, zip(*parts, strict=True), strict=True)}
    return Traffic(first=np.stack(first), num_packets=len(row), num_sent=num_sent, **merged)


def _of_sender(columns, s, sent, num_rows, placement, network, chip) -> tuple[list[np.ndarray], np.ndarray]:
    """Return position, value, adds, shifts, route and service of one sender's packets, and where each row begins."""
    row, position, value, adds, shifts = (np.asarray(c, np.int64) for c in columns)
    encoder = chip.encoder
    handshake = chip.handshake.ps
    copy_ps = 0 if chip.packet.multicast else to_ps(chip.core.send_ns)

    # Time from the packet before: the channels that were looked at meanwhile, in groups of `lanes`.
    group = (position - sent.start) // encoder.lanes + 1
    new_row = np.diff(row, prepend=-1) != 0
    looked_at = group - np.where(new_row, 0, np.concatenate([[0], group[:-1]]) if len(group) else group)
    round_ps = to_ps(encoder.round_ns)
    spike_ps = to_ps(encoder.spike_ns)
    num_groups = -(-len(sent) // encoder.lanes)
    mean_ps = num_groups * to_ps(encoder.mean_ns) + to_ps(encoder.threshold_ns)
    service = looked_at * round_ps + spike_ps + np.where(new_row, mean_ps, 0)

    # One copy for each route of its block.
    starts = [block.start for block in placement.input_blocks]
    block = np.searchsorted(starts, position, side="right") - 1
    routes = network.spike_routes[s]
    copies = np.array([len(r) for r in routes], np.int64)[block]
    which = np.arange(copies.sum()) - np.repeat(copies.cumsum() - copies, copies)
    table = np.full((len(routes), max(map(len, routes))), -1, np.int64)
    for i, r in enumerate(routes):
        table[i, : len(r)] = r
    service = np.where(which == 0, np.repeat(service, copies), 0) + copy_ps + handshake
    row, position, value, adds, shifts, block = (
        np.repeat(a, copies) for a in (row, position, value, adds, shifts, block)
    )

    # Every row ends with an end packet per end route; the first of them pays for the channels after the last spike.
    last_group = np.zeros(num_rows, np.int64)
    np.maximum.at(last_group, row, (position - sent.start) // encoder.lanes + 1)
    tail = (num_groups - last_group) * round_ps + np.where(last_group == 0, mean_ps, 0)
    end_routes = np.array(network.end_routes[s], np.int64)
    num_ends = len(end_routes)
    end_service = np.zeros((num_rows, num_ends), np.int64)
    if not network.free_ends:
        end_service += copy_ps + handshake
    end_service[:, 0] += tail
    end_row = np.repeat(np.arange(num_rows), num_ends)
    zeros = np.zeros(len(end_row), np.int64)
    order = np.argsort(np.concatenate([row, end_row]), kind="stable")
    merged = [
        np.concatenate(pair)[order]
        for pair in (
            (position, zeros),
            (value, zeros),
            (adds, zeros - 1),
            (shifts, zeros),
            (table[block, which], np.tile(end_routes, num_rows)),
            (service, end_service.reshape(-1)),
        )
    ]
    per_row = np.bincount(row, minlength=num_rows) + num_ends
    return merged, np.concatenate([[0], per_row.cumsum()])


def _check_bits(value: np.ndarray, timestep_weight: np.ndarray, num_inputs: int, chip: Description) -> None:
    """Raise unless packets hold the address of every channel, and what a packet of this code says."""
    needed = max(num_inputs - 1, 0).bit_length()
    if chip.packet.address_bits < needed:
        raise InputError(
            f"{chip.name}: packet.address_bits = {chip.packet.address_bits} can't address {num_inputs:,} channels. "
            f"Set it to {needed} or more."
        )
    if chip.packet.payload == "count":
        most = int(np.abs(value).max(initial=0))
        needed, what = most.bit_length() + 1, f"a count of {most}"
    else:
        digits = len({abs(w) for w in timestep_weight.tolist()})
        needed = (digits - 1).bit_length() + bool((value < 0).any())
        what = f"sign and digit of {len(timestep_weight)} timesteps" if digits > 1 else "the sign of a spike"
    if chip.packet.payload_bits < needed:
        raise InputError(
            f"{chip.name}: packet.payload_bits = {chip.packet.payload_bits} can't hold {what}. "
            f"Set it to {needed} or more."
        )
