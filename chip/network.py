"""A placed layer as stations: each takes packets from its queue, one at a time, and hands them on.

    source -> links -> accumulate -> send -> links -> reduce -> links -> collect

Spikes, partial sums and results each have links of their own, and XY routes never turn back. So the graph of stations
has no cycle, and no station can wait for itself: there is no deadlock (DESIGN.md).

Weights in groups: packets come in the order of the channels, so a core adds up one group at a time, in integers. When
the first packet of another group comes, or the token ends, the digital unit of the core's tile takes the finished sums,
multiplies them by the group's scales and adds them to the token's floating-point sums, which is what the core sends.
Meanwhile packets add to a second set of sums; a packet of a third group waits. The core reads scales and minima from
its memory, before it reads the packet's weights. Groups without a spike cost nothing.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from .description import Description
from .mapping import Placement, Tile, is_north_south, route
from .parts import to_ps
from .weights import Weights

# Kinds of stations; `simpy_engine.py` says what each does.
SOURCE, LINK, ACCUMULATE, SEND, REDUCE, COLLECT = range(6)
KIND_NAMES = ("encode", "link", "accumulate", "send", "reduce", "collect")


@dataclass(frozen=True)
class Network:
    """Stations of one layer, as arrays: S stations, R routes, C cores.

    Attributes:
        names: of the stations. Of stations that act at the same instant, the one with the lowest number acts first.
        tiles: tile of each station, and the tile that it leads to: another one for a link, else the same.
        kind: kind of each station, int8 [S].
        depth: packets that fit its queue; one more is in service. int64 [S].
        service_ps: time in service that is the same for every packet; int64 [S].
        latency_ps: time from leaving this station to arriving at the next, int64 [S].
        unit: number of the core (accumulate, send), block of outputs (reduce) or sender (source); int64 [S].
        next_first, next_num, next_station: a packet of route r goes from station s to the `next_num[s, r]` stations
            from `next_station[next_first[s, r]]` on; int64.
        north_south: whether a link runs along a column, bool [S].
        spike_routes: for each sender and block of inputs, the routes on which one packet each carries a spike.
        end_routes: for each sender, the routes on which it says that a token is done.
        num_ends: number of senders from which a core has to hear that a token is done, int64 [C].
        core_inputs, core_outputs: first and last (exclusive) input position and output of each core, int64 [C, 2].
        num_partial: cores that share a block of outputs.
        sum_route: route of the sums of each core, int64 [C].
        result_route: route of finished sums.
        lanes, add_ps: additions that a core does in parallel, and the time of one such step.
        block_bytes, block_ps: bytes that one access to weights reads, and its time.
        group_size: input positions of a group; 0 without groups.
        parameter_bits: memory for scale and minimum of a group and output.
        rescale_ps: how long the digital unit takes for the sums of a group of each core, int64 [C].
        free_ends: True if a barrier ends a token, at no cost; False if packets do.
        keeps_sums: True if a core that has heard all ends keeps its sums; False if it sends them.
        num_banks: number of tokens that can be in progress at the same time.
    """

    names: list[str]
    tiles: list[tuple[Tile, Tile]]
    kind: np.ndarray
    depth: np.ndarray
    service_ps: np.ndarray
    latency_ps: np.ndarray
    unit: np.ndarray
    next_first: np.ndarray
    next_num: np.ndarray
    next_station: np.ndarray
    north_south: np.ndarray
    spike_routes: list[list[list[int]]]
    end_routes: list[list[int]]
    num_ends: np.ndarray
    core_inputs: np.ndarray
    core_outputs: np.ndarray
    num_partial: int
    sum_route: np.ndarray
    result_route: int
    lanes: int
    add_ps: int
    block_bytes: int
    block_ps: int
    group_size: int
    parameter_bits: int
    rescale_ps: np.ndarray
    free_ends: bool
    keeps_sums: bool
    num_banks: int

    @property
    def num_groups(self) -> int:
        """Groups of input channels with scales of their own; 0 where sums are not rescaled group by group."""
        return -(-int(self.core_inputs.max()) // self.group_size) if self.group_size else 0

    @property
    def num_stations(self) -> int:
        """S."""
        return len(self.names)

    def of_kind(self, kind: int) -> np.ndarray:
        """Return the numbers of the stations of a kind."""
        return np.flatnonzero(self.kind == kind)


def build_network(placement: Placement, chip: Description) -> Network:
    """Return the stations of a placed layer."""
    graph = _Graph()
    cores, num_in = placement.cores, placement.num_input_blocks
    collect = ("collect", placement.home)
    keeps_sums = num_in == 1 and not chip.core.sums_travel
    spike_routes, end_routes = _spread_spikes(graph, placement, chip)

    result_route = graph.new_route()
    sum_route = []
    for o in range(len(placement.output_blocks)):
        first, last, r = cores[o * num_in], ("send", o), result_route
        if num_in > 1:
            last, r = ("reduce", o), graph.new_route()
            for c in range(o * num_in, (o + 1) * num_in):
                graph.connect(("send", c), cores[c].tile, last, first.tile, "partial", r)
        sum_route += [r] * num_in
        if not keeps_sums:  # sums that do not travel are collected where they are
            start = first.tile if chip.core.sums_travel else placement.home
            graph.connect(last, start, collect, placement.home, "result", result_route)
    # A core hands the finished token to its own sender.
    for c in range(0 if keeps_sums else len(cores)):
        for r in range(graph.num_routes):
            graph.next.setdefault((("accumulate", c), r), {})[("send", c)] = None

    stations = sorted(graph.stations, key=_turn)
    number = {key: i for i, key in enumerate(stations)}
    next_first = np.zeros((len(stations), graph.num_routes), np.int64)
    next_num = np.zeros_like(next_first)
    next_station: list[int] = []
    for (key, r), targets in graph.next.items():
        next_first[number[key], r], next_num[number[key], r] = len(next_station), len(targets)
        next_station += [number[target] for target in targets]
    block_ps = to_ps(chip.core.access_ns)
    if placement.streamed:
        share = chip.dram.bandwidth_bytes_per_ns / len(cores)
        block_ps = to_ps(chip.dram.latency_ns) + math.ceil(1000 * chip.dram.block_bytes / share)
    senders = placement.senders
    return Network(
        names=[_name(key) for key in stations],
        tiles=[_tiles(key, placement) for key in stations],
        kind=np.array([_KINDS[key[0]] for key in stations], np.int8),
        depth=np.array([_depth(key[0], chip) for key in stations], np.int64),
        service_ps=np.array([_service(key, chip, placement.weights) for key in stations], np.int64),
        latency_ps=np.array([_latency(key, chip) for key in stations], np.int64),
        unit=np.array([key[1] if isinstance(key[1], int) else 0 for key in stations], np.int64),
        next_first=next_first,
        next_num=next_num,
        next_station=np.array(next_station, np.int64),
        north_south=np.array([key[0] == "link" and is_north_south(*key[2:]) for key in stations]),
        spike_routes=spike_routes,
        end_routes=end_routes,
        num_ends=np.array([sum(_overlap(c.inputs, sent) for _, sent in senders) for c in cores], np.int64),
        core_inputs=np.array([(c.inputs.start, c.inputs.stop) for c in cores], np.int64),
        core_outputs=np.array([(c.outputs.start, c.outputs.stop) for c in cores], np.int64),
        num_partial=num_in,
        sum_route=np.array(sum_route, np.int64),
        result_route=result_route,
        lanes=chip.core.lanes,
        add_ps=to_ps(chip.core.add_ns),
        block_bytes=chip.dram.block_bytes if placement.streamed else chip.core.block_bytes,
        block_ps=block_ps,
        group_size=placement.weights.group_size or 0,
        parameter_bits=placement.weights.parameter_bits,
        rescale_ps=np.array([_rescale_ps(len(c.outputs), placement.weights, chip) for c in cores], np.int64),
        free_ends=bool(chip.barrier.tiles),
        keeps_sums=keeps_sums,
        num_banks=chip.core.accumulator_banks,
    )


class _Graph:
    """Stations, named by kind and place, and where packets of each route go from them."""

    def __init__(self) -> None:
        self.stations: dict[tuple, None] = {}
        self.next: dict[tuple[tuple, int], dict[tuple, None]] = {}
        self.num_routes = 0

    def new_route(self) -> int:
        self.num_routes += 1
        return self.num_routes - 1

    def add(self, station: tuple) -> None:
        self.stations.setdefault(station)

    def connect(self, start: tuple, start_tile: Tile, end: tuple, end_tile: Tile, network: str, r: int) -> None:
        """Lead route r from a station to another, over the links between their tiles."""
        links = [("link", network, *link) for link in route(start_tile, end_tile)]
        chain = [start, *links, end]
        for station in chain:
            self.add(station)
        for a, b in itertools.pairwise(chain):
            self.next.setdefault((a, r), {})[b] = None


def _spread_spikes(graph: _Graph, placement: Placement, chip: Description) -> tuple[list, list]:
    """Lead routes from senders to cores; return Network.spike_routes and Network.end_routes."""
    cores, num_in = placement.cores, placement.num_input_blocks

    def lead(source: tuple, tile: Tile, targets: Iterable[int]) -> int:
        r = graph.new_route()
        for c in targets:
            graph.connect(source, tile, ("accumulate", c), cores[c].tile, "spike", r)
        return r

    spike_routes, end_routes = [], []
    for s, (tile, sent) in enumerate(placement.senders):
        source = ("source", s)
        graph.add(source)
        reached = [[c for c in range(i, len(cores), num_in) if _overlap(cores[c].inputs, sent)] for i in range(num_in)]
        if chip.packet.multicast:
            spike_routes.append([[lead(source, tile, targets)] if targets else [] for targets in reached])
            end_routes.append([lead(source, tile, sorted(c for targets in reached for c in targets))])
        else:
            spike_routes.append([[lead(source, tile, [c]) for c in targets] for targets in reached])
            end_routes.append([r for routes in spike_routes[-1] for r in routes])
    return spike_routes, end_routes


def _overlap(a: range, b: range) -> bool:
    return max(a.start, b.start) < min(a.stop, b.stop)


_KINDS = {"source": SOURCE, "link": LINK, "accumulate": ACCUMULATE, "send": SEND, "reduce": REDUCE, "collect": COLLECT}
_NETWORKS = ("result", "partial", "spike")


def _turn(key: tuple) -> tuple:
    """Sort stations from the last to the first, so that a station that makes room acts before one that needs it."""
    if key[0] == "link":
        return (1 + 2 * _NETWORKS.index(key[1]), *key[2:])
    return ({"collect": 0, "reduce": 2, "send": 4, "accumulate": 4.5, "source": 6}[key[0]], key[1])


def _name(key: tuple) -> str:
    if key[0] == "link":
        return f"{key[1]} link {key[2][0]},{key[2][1]}-{key[3][0]},{key[3][1]}"
    return f"{key[0]} {key[1][0]},{key[1][1]}" if key[0] == "collect" else f"{key[0]} {key[1]}"


def _tiles(key: tuple, placement: Placement) -> tuple[Tile, Tile]:
    kind, unit = key[0], key[1]
    if kind == "link":
        return key[2], key[3]
    if kind == "collect":
        return unit, unit
    if kind == "source":
        tile = placement.senders[unit][0]
    else:  # partial sums meet at the first core of their block
        tile = placement.cores[unit * placement.num_input_blocks if kind == "reduce" else unit].tile
    return tile, tile


def _depth(kind: str, chip: Description) -> int:
    if kind == "link":
        return chip.link.queue_packets
    if kind == "accumulate":
        return chip.core.queue_packets
    return 1 if kind == "send" else chip.digital.queue_packets


def _service(key: tuple, chip: Description, weights: Weights) -> int:
    """Return the part of the service time that is the same for every packet, in ps."""
    core, digital = chip.core, chip.digital
    handshake = chip.handshake.ps
    if key[0] == "link":
        payload = chip.packet.payload_bits if key[1] == "spike" else chip.packet.sum_bits
        return handshake + chip.link.occupied_ps(chip.packet.address_bits + payload)
    if key[0] == "accumulate":
        return handshake + to_ps(core.receive_ns)
    if key[0] == "send":
        return handshake + to_ps(core.send_ns) if core.sums_travel else 0
    if key[0] == "reduce":
        # The sums of groups are floating-point numbers, which the digital unit adds.
        return handshake + to_ps(core.receive_ns) + to_ps(digital.operation_ns if weights.in_groups else core.add_ns)
    if key[0] == "collect":
        # One product with scale and threshold per output; a unit of several lanes works on as many outputs at a time.
        return handshake + math.ceil(to_ps(digital.operation_ns) / digital.lanes) if core.sums_travel else 0
    return 0


def _rescale_ps(num_outputs: int, weights: Weights, chip: Description) -> int:
    """Return how long a digital unit, which the cores of its tile share, takes to rescale the sums of a group."""
    if not weights.in_groups:
        return 0
    lanes = max(chip.digital.lanes // chip.mesh.cores_per_tile, 1)
    operations = num_outputs * (weights.multiplies + weights.additions)
    return -(-operations // lanes) * to_ps(chip.digital.operation_ns)


def _latency(key: tuple, chip: Description) -> int:
    if key[0] != "link":
        return 0
    return to_ps(chip.link.north_south_ns if is_north_south(*key[2:]) else chip.link.east_west_ns)
