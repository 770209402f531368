"""The parts of a chip. Each field is a key of its section of a chip's TOML file; the ending of its name is its unit."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any


def to_ps(ns: float) -> int:
    """Return nanoseconds as whole picoseconds. Descriptions give times in multiples of 0.001 ns, so this is exact."""
    return round(1000 * ns)


def _optional(value: Any, source: str) -> Any:
    """Return a field that a file may leave out: it then has this value, and says so by this source."""
    return field(default=value, metadata={"source": f"not in the file: {source}"})


@dataclass(frozen=True)
class Mesh:
    """A rectangle of tiles. Each tile has a router, some cores and one digital unit.

    Attributes:
        columns, rows: number of tiles from west to east, and from north to south.
        cores_per_tile: number of cores at each router.
    """

    columns: int
    rows: int
    cores_per_tile: int


@dataclass(frozen=True)
class Packet:
    """What travels over the mesh: an address and a payload.

    Attributes:
        address_bits: width of the address.
        payload_bits: width of the payload of a spike or count; 0 only for codes whose spikes all weigh 1.
        sum_bits: width of the payload of a sum.
        payload: "spike" sends one packet per spike, with sign and digit; "count" sends one per active channel.
        multicast: True if routers copy packets; False if the sender sends one packet to every core that holds weights
            of the channel.
    """

    address_bits: int
    payload_bits: int
    sum_bits: int
    payload: str
    multicast: bool


@dataclass(frozen=True)
class Link:
    """A connection in one direction between neighbouring routers, with its queue.

    Attributes:
        east_west_ns, north_south_ns: time from one router to the next, along a row and along a column.
        east_west_pj, north_south_pj: energy of a packet on such a link.
        bandwidth_bits_per_ns: a packet occupies the link for its bits / bandwidth; 0 means unlimited.
        queue_packets: packets that fit the queue.
    """

    east_west_ns: float
    north_south_ns: float
    east_west_pj: float
    north_south_pj: float
    bandwidth_bits_per_ns: float
    queue_packets: int

    def occupied_ps(self, num_bits: int) -> int:
        """Return how long a packet of `num_bits` occupies the link, in picoseconds."""
        return math.ceil(1000 * num_bits / self.bandwidth_bits_per_ns) if self.bandwidth_bits_per_ns else 0


@dataclass(frozen=True)
class Handshake:
    """How a packet passes from stage to stage without a clock.

    Attributes:
        phases: transitions of request and acknowledge for each packet, 2 or 4.
        transition_pj, transition_ns: energy and time of one transition.
    """

    phases: int
    transition_pj: float
    transition_ns: float

    @property
    def ps(self) -> int:
        """Time of one handshake, in picoseconds."""
        return self.phases * to_ps(self.transition_ns)


@dataclass(frozen=True)
class Core:
    """Memory for INT8 weights and accumulators, adders, and a queue of packets.

    Attributes:
        sram_bytes: size of the memory; the weights of a core have to fit, and its accumulators if they are not in
            registers.
        block_bytes: bytes that one access reads.
        access_pj, access_ns: energy and time of an access.
        lanes: additions that run in parallel.
        accumulator_bits: width of an accumulator and of its adder, 32 or 64.
        accumulator_banks: tokens of a layer that can be in progress at the same time.
        add_pj, shift_pj: energy of one addition, and of one shift, of a weight.
        add_ns: time of one step of all lanes.
        partial_add_pj: energy of an addition where partial sums of several cores meet.
        accumulator_pj: energy to read and write one accumulator; the additions of one packet to it share this.
        register_accumulators: accumulators that fit the core's registers, one for each output and token in progress;
            0 if they are in its memory.
        register_pj: energy to read and write one accumulator in registers, in the place of accumulator_pj.
        receive_pj, receive_ns: energy and time of a packet that arrives.
        send_pj, send_ns: energy and time of a packet that leaves: a sum, or a spike if routers do not copy.
        queue_packets: packets that fit the queue.
        sums_travel: True if sums go to the digital unit of the layer; False if they stay where their neurons are.
        leakage_mw: power of an idle core.
        sleep_share: share of its leakage that a core keeps which holds weights, while its layer does nothing; 1 if
            cores never sleep.
        off_share: share of its leakage that a core keeps which holds no weights; 1 if no core is switched off.
        wake_pj: energy to wake a core that sleeps.
        wake_ns: a core is awake that long before its layer begins. The order of layers is fixed, so nobody waits.
    """

    sram_bytes: int
    block_bytes: int
    access_pj: float
    access_ns: float
    lanes: int
    accumulator_bits: int
    accumulator_banks: int
    add_pj: float
    add_ns: float
    shift_pj: float
    partial_add_pj: float
    accumulator_pj: float
    receive_pj: float
    receive_ns: float
    send_pj: float
    send_ns: float
    queue_packets: int
    sums_travel: bool
    leakage_mw: float
    register_accumulators: int = _optional(0, "accumulators are in memory")
    register_pj: float = _optional(0.0, "accumulators are in memory")
    sleep_share: float = _optional(1.0, "cores never sleep")
    off_share: float = _optional(1.0, "no core is switched off")
    wake_pj: float = _optional(0.0, "cores never sleep")
    wake_ns: float = _optional(0.0, "cores never sleep")


@dataclass(frozen=True)
class EncoderUnit:
    """Turns the activations of a token into packets, channel by channel.

    Attributes:
        lanes: channels that are processed in parallel.
        mean_pj, mean_ns: add |x| to the sum: energy per channel, time per group of `lanes` channels.
        threshold_pj, threshold_ns: divide the mean by k, once per token.
        round_pj, round_ns: divide by the threshold and round: energy per channel, time per group of `lanes` channels.
        spike_pj, spike_ns: send one spike or count.
        access_pj, access_ns: visit an output in a timestep; only on a chip with a barrier, else 0.
        update_pj, update_ns: update an output that changes in a timestep; only on a chip with a barrier, else 0.
    """

    lanes: int
    mean_pj: float
    mean_ns: float
    threshold_pj: float
    threshold_ns: float
    round_pj: float
    round_ns: float
    spike_pj: float
    spike_ns: float
    access_pj: float
    access_ns: float
    update_pj: float
    update_ns: float


@dataclass(frozen=True)
class DigitalUnit:
    """The unit of a tile that computes what stays dense: rescaling, norms, softmax, gates, attention.

    Attributes:
        lanes: operations that run in parallel.
        operation_ns: time of one step of all lanes, the same for every operation.
        add_pj, multiply_pj, exponential_pj, divide_pj, square_root_pj: energy of a floating-point operation.
        integer_mac_pj: energy of an INT8 product and its addition in INT32 (query times cached key).
        byte_pj: energy of a byte of state or cache, read or written.
        queue_packets: sums that fit the queue, here and where partial sums meet.
    """

    lanes: int
    operation_ns: float
    add_pj: float
    multiply_pj: float
    exponential_pj: float
    divide_pj: float
    square_root_pj: float
    integer_mac_pj: float
    byte_pj: float
    queue_packets: int


@dataclass(frozen=True)
class Dram:
    """Memory beside the chip. Weights are read from it if a layer is streamed.

    Attributes:
        block_bytes: bytes that one access reads.
        block_pj: energy of an access.
        bandwidth_bytes_per_ns: bandwidth of the chip; the cores of a layer share it in equal parts.
        latency_ns: latency of an access.
    """

    block_bytes: int
    block_pj: float
    bandwidth_bytes_per_ns: float
    latency_ns: float


@dataclass(frozen=True)
class Barrier:
    """A global barrier at the end of each timestep.

    Attributes:
        tiles: numbers of tiles in use, rising; empty for a chip without a barrier.
        ns: time of the barrier from that number of tiles on.
    """

    tiles: tuple[int, ...]
    ns: tuple[float, ...]
