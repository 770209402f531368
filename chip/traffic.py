"""What senders emit: the spikes of a train as packets in order, each with the time it takes to encode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..compiled import compiled
from ..errors import InputError
from .description import Description
from .mapping import Placement
from .network import Network
from .parts import to_ps
from .weights import OWN_ROWS


@dataclass(frozen=True)
class Traffic:
    """The E packets of all senders. A sender's packets of a token follow each other; its end packets come last.

    Attributes:
        first: index of the first packet of each sender and token; the last entry is where the last token ends. int64
            [senders, tokens + 1].
        position: position of the input channel, int64 [E].
        row: row of weights that it adds, int64 [E]: its position among the rows of its kind, which follow one another.
        read_bits: bits of a weight that it reads, the upper ones first, int64 [E].
        value: factor of the row of weights, int64 [E].
        num_adds: additions per output that this factor takes, int64 [E]; -1 for the end of a token.
        num_shifts: additions of a shifted weight among these, int64 [E].
        route: of the packet, int64 [E].
        service_ps: time from the packet before to this one, int64 [E].
        num_packets: spikes or counts that left an encoder; copies for several cores count once.
        num_sent: packets that left a sender, with end packets.
        planes: where the planes of a weight begin and end, in bits from the uppermost on: rising from 0 to the width.
    """

    first: np.ndarray
    position: np.ndarray
    row: np.ndarray
    read_bits: np.ndarray
    value: np.ndarray
    num_adds: np.ndarray
    num_shifts: np.ndarray
    route: np.ndarray
    service_ps: np.ndarray
    num_packets: int
    num_sent: int
    planes: np.ndarray

    @property
    def num_tokens(self) -> int:
        """Tokens, or timesteps of tokens on a chip with a barrier."""
        return self.first.shape[1] - 1


def build_traffic(
    spikes: np.ndarray,
    timestep_weight: np.ndarray,
    placement: Placement,
    network: Network,
    chip: Description,
    kind: np.ndarray = OWN_ROWS,
    kind_bits: Sequence[int] = (),
) -> Traffic:
    """Turn a spike train into packets.

    On a chip with a barrier, each timestep of a token becomes a token of its own.

    Args:
        spikes: -1, 0 or 1, int8 [T, tokens, N], the channels in the order in which they are sent.
        timestep_weight: int64 [T].
        placement: of the layer.
        network: its stations.
        chip: gives the content of a packet and the times of encoding.
        kind: which rows each channel of a token reads, as of `with_coarse`.
        kind_bits: bits of a weight of each kind of coarse rows.
    Raises:
        InputError: address or payload have too few bits.
    """
    num_timesteps, num_tokens, num_inputs = spikes.shape
    # A spike of weight 6 takes two additions of shifted rows, for the binary ones of 6.
    ones = np.array([abs(w).bit_count() for w in timestep_weight.tolist()], np.int64)
    rows_per_token = num_timesteps if chip.barrier.tiles else 1
    merges = chip.packet.payload == "count" and not chip.barrier.tiles
    num_rows = num_tokens * rows_per_token
    spike_routes, end_routes = _padded(network.spike_routes), _padded([network.end_routes])[0]
    encoder, handshake = chip.encoder, chip.handshake.ps
    copy_ps = handshake + (0 if chip.packet.multicast else to_ps(chip.core.send_ns))
    senders = np.array([(sent.start, sent.stop) for _, sent in placement.senders], np.int64)
    num_groups = -(-np.diff(senders)[:, 0] // encoder.lanes)
    most = int(np.count_nonzero(spikes))
    if merges:
        most = min(most, num_tokens * num_inputs)
    most = most * spike_routes.shape[2] + num_rows * end_routes.size
    packets = np.empty((8, most), np.int64)
    first = np.empty((len(senders), num_rows + 1), np.int64)
    num_packets, num_sent = _fill(
        np.ascontiguousarray(spikes),
        timestep_weight,
        ones,
        rows_per_token,
        merges,
        senders,
        np.array([block.start for block in placement.input_blocks], np.int64),
        spike_routes,
        end_routes,
        encoder.lanes,
        to_ps(encoder.round_ns),
        to_ps(encoder.spike_ns),
        num_groups * to_ps(encoder.mean_ns) + to_ps(encoder.threshold_ns),
        copy_ps,
        0 if network.free_ends else copy_ps,
        kind,
        np.array([placement.weights.bits, *kind_bits], np.int64),
        first,
        packets,
    )
    planes = np.array([0, *sorted({*kind_bits, placement.weights.bits})], np.int64)
    traffic = Traffic(first, *packets[:, :num_sent], num_packets=num_packets, num_sent=num_sent, planes=planes)
    _check_bits(traffic.value, timestep_weight, num_inputs, 1 + len(kind_bits), chip)
    return traffic


def _padded(lists: list[list[list[int]]]) -> np.ndarray:
    """Return lists of lists of routes as an array, with -1 after the last route of each."""
    shape = len(lists), max(map(len, lists)), max(len(routes) for part in lists for routes in part)
    table = np.full(shape, -1, np.int64)
    for i, part in enumerate(lists):
        for j, routes in enumerate(part):
            table[i, j, : len(routes)] = routes
    return table


@compiled
def _add_up(spikes, timestep_weight, ones, start, stop, channels):
    """Write value, additions and shifts of each channel's spikes [T, N] to `channels` [3, N]."""
    channels[:, start:stop] = 0
    for t in range(len(spikes)):
        odd = timestep_weight[t] & 1
        for n in range(start, stop):
            spike = spikes[t, n]
            if spike:
                channels[0, n] += timestep_weight[t] * spike
                channels[1, n] += ones[t]
                channels[2, n] += ones[t] - odd


@compiled
def _fill(
    spikes,
    timestep_weight,
    ones,
    rows_per_token,
    merges,
    senders,
    block_start,
    spike_routes,
    end_routes,
    lanes,
    round_ps,
    spike_ps,
    mean_ps,
    copy_ps,
    end_ps,
    kind,
    kind_bits,
    first,
    packets,
):
    """Write the packets, field by field; return how many left encoders, and how many were sent with copies and ends."""
    position, rows, read_bits, value, num_adds, num_shifts, route, service_ps = packets
    num_inputs = spikes.shape[2]
    channels = np.zeros((3, num_inputs), np.int64)
    total, adds, shifts = channels
    row_timesteps = spikes.shape[0] // rows_per_token
    num_packets, e = 0, 0
    for s in range(len(senders)):
        start, stop = senders[s]
        num_groups = -(-(stop - start) // lanes)
        first[s, 0] = e
        for row in range(first.shape[1] - 1):
            token, from_t = row // rows_per_token, row % rows_per_token
            to_t = from_t + row_timesteps
            _add_up(spikes[from_t:to_t, token], timestep_weight[from_t:to_t], ones[from_t:to_t], start, stop, channels)
            # A packet pays for the channels that were looked at since the one before, in groups of `lanes`.
            looked_at, unpaid_ps = 0, mean_ps[s]
            block = 0
            for n in range(start, stop):
                if adds[n] == 0:
                    continue
                while block + 1 < len(block_start) and block_start[block + 1] <= n:
                    block += 1
                of_kind = kind[token, n] if len(kind_bits) > 1 else 0
                # An encoder sends all spikes of a channel when it comes to it.
                for t in range(from_t, from_t + 1 if merges else to_t):
                    v, a, h = total[n], adds[n], shifts[n]
                    if not merges:
                        spike = spikes[t, token, n]
                        if spike == 0:
                            continue
                        v, a, h = timestep_weight[t] * spike, ones[t], ones[t] - (timestep_weight[t] & 1)
                    group = (n - start) // lanes + 1
                    unpaid_ps += (group - looked_at) * round_ps + spike_ps
                    looked_at = group
                    num_packets += 1
                    for r in spike_routes[s, block]:
                        if r < 0:
                            break
                        position[e], value[e], num_adds[e], num_shifts[e], route[e] = n, v, a, h, r
                        rows[e], read_bits[e] = of_kind * num_inputs + n, kind_bits[of_kind]
                        service_ps[e] = unpaid_ps + copy_ps
                        unpaid_ps = 0
                        e += 1
            # The first packet that says that the token is done pays for the channels after the last spike.
            unpaid_ps += (num_groups - looked_at) * round_ps
            for r in end_routes[s]:
                if r < 0:
                    break
                position[e], value[e], num_adds[e], num_shifts[e], route[e] = 0, 0, -1, 0, r
                rows[e], read_bits[e] = 0, 0
                service_ps[e] = unpaid_ps + end_ps
                unpaid_ps = 0
                e += 1
            first[s, row + 1] = e
    return num_packets, e


def _check_bits(
    value: np.ndarray, timestep_weight: np.ndarray, num_inputs: int, num_kinds: int, chip: Description
) -> None:
    """Raise unless a packet has enough bits for the address of every channel and for its payload in this code."""
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
        if num_kinds > 1:  # a core cannot tell from one spike how large the count is
            needed, what = needed + (num_kinds - 1).bit_length(), f"{what}, and which of {num_kinds} kinds of rows"
    if chip.packet.payload_bits < needed:
        raise InputError(
            f"{chip.name}: packet.payload_bits = {chip.packet.payload_bits} can't hold {what}. "
            f"Set it to {needed} or more."
        )
