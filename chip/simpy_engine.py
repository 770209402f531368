"""The simulation, short and readable, on SimPy: what stations are and when they act. `engine.py` is its fast copy.

A station takes the packet at the head of its queue, serves it, and hands it to the queue of each next station. Where
there is no room it waits, first come first served, and serves nothing meanwhile: back-pressure. A free place goes at
once to the station that has waited longest. Of stations whose service ends at the same picosecond, the one with the
lowest number acts first.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict, deque
from collections.abc import Generator, Iterator
from dataclasses import dataclass, fields

import numpy as np
import simpy

from .network import ACCUMULATE, LINK, REDUCE, SEND, SOURCE, Network
from .outcome import CoreCounts, Outcome, StationCounts, Trace, int64_fields, outcome_of
from .traffic import Traffic


@dataclass(frozen=True)
class _Packet:
    """A spike (number in the traffic), a finished token (its number) or a sum (token * outputs + output, and value)."""

    word: int
    token: int
    route: int
    value: int = 0


def simulate(
    network: Network,
    traffic: Traffic,
    weight: np.ndarray,
    arrival_ps: np.ndarray,
    *,
    jitter: float = 0.0,
    seed: int = 0,
    trace: bool = False,
) -> Outcome:
    """Run the tokens of a layer through its stations; arguments and result are those of `engine.simulate`."""
    simulation = _Simulation(network, traffic, weight, arrival_ps, round(jitter * 65536), seed)
    return simulation.run(trace)


class _EndOfService(simpy.Event):
    """Happens after a delay, in the turn of its station and after all that an earlier end caused at that instant."""

    def __init__(self, env: simpy.Environment, station: int, delay: int) -> None:
        super().__init__(env)
        self._ok, self._value = True, None
        env.schedule(self, priority=2 + station, delay=delay)  # pyright: ignore[reportArgumentType]


class _Simulation:
    def __init__(self, network, traffic, weight, arrival_ps, jitter, seed) -> None:
        self.network, self.traffic, self.arrival_ps = network, traffic, arrival_ps.tolist()
        self.weight = weight.astype(np.int64)
        self.jitter, self.seed = jitter, seed
        self.env = simpy.Environment(0)
        num_stations, num_cores = network.num_stations, len(network.core_inputs)
        self.num_tokens, self.num_outputs = traffic.num_tokens, weight.shape[1]
        # Queues hold packets with the times at which they are there and came in; `waiting`, senders without room.
        self.queues = [deque() for _ in range(num_stations)]
        self.waiting = [deque() for _ in range(num_stations)]
        self.pending = [0] * num_stations  # copies that a sender could not hand on yet
        self.arrived: list[simpy.Event | None] = [None] * num_stations  # what an idle station waits for
        self.room: list[simpy.Event | None] = [None] * num_stations  # what a blocked one waits for
        self.accumulator = defaultdict(lambda: np.zeros(self.num_outputs, np.int64))  # by core and token
        self.adding = np.zeros((num_cores, self.num_outputs), np.int64)  # sums of the group that a core is at
        self.at_group: list[tuple[int, int] | None] = [None] * num_cores  # that group and its token
        self.free_ps = [0] * num_cores  # when the unit that rescales is free again
        self.group_sums = np.zeros((self.num_tokens, network.num_groups, self.num_outputs), np.int64)
        self.ends_heard = Counter()  # by core and token
        self.last_block = [{} for _ in range(num_cores)]  # by plane
        self.met = defaultdict(list)  # partial sums by token * outputs + output
        self.collected = Counter()  # sums by token
        self.completed = 0
        self.sums = np.zeros((self.num_tokens, self.num_outputs), np.int64)
        self.begin_ps = np.full(self.num_tokens, np.iinfo(np.int64).max)
        self.end_ps = np.zeros(self.num_tokens, np.int64)
        self.counts = np.zeros(num_stations, int64_fields(*(f.name for f in fields(StationCounts))))
        self.changed = [0] * num_stations  # when the length of a queue changed last
        self.core_counts = np.zeros(num_cores, int64_fields(*(f.name for f in fields(CoreCounts))))
        self.records = []

    def run(self, trace: bool) -> Outcome:
        for s in range(self.network.num_stations):
            self.env.process(self._station(s))
        self.env.run()
        assert self.completed == self.num_tokens, f"{self.num_tokens - self.completed} tokens never ended"
        found = None
        if trace:
            columns = np.array(self.records, np.int64).reshape(-1, 6).T
            found = Trace(*columns, cause=np.full(len(self.records), -1), last=-1)
        return outcome_of(self.sums, self.group_sums, self.begin_ps, self.end_ps, self.counts, self.core_counts, found)

    @property
    def now(self) -> int:
        """Time in whole picoseconds."""
        return int(self.env.now)

    def _station(self, s: int) -> Generator:
        """Take, serve, hand on, for ever."""
        token = 0
        while True:
            entered_ps = None
            if self.network.kind[s] == SOURCE:
                packet, there_ps = yield from self._next_token(s, token)
                token += 1
            else:
                packet, there_ps, entered_ps = yield from self._take(s)
            for step in self._steps(s, packet):
                begin = max(self.now, there_ps)
                duration = self._duration(s, step, begin)
                self._note_service(s, step, begin, duration, self.now if entered_ps is None else entered_ps)
                entered_ps = None
                yield _EndOfService(self.env, s, begin + duration - self.now)
                result = self._result(s, step)
                if result is not None:
                    yield from self._hand_on(s, result)

    def _next_token(self, s: int, token: int) -> Generator[simpy.Event, None, tuple[_Packet, int]]:
        """Wait until few enough tokens are under way; return the next one and when its input is there."""
        while token >= self.num_tokens or token - self.completed >= self.network.num_banks:
            event = self.arrived[s] = self.env.event()
            yield event
            self.arrived[s] = None
        begin = max(self.now, self.arrival_ps[token])
        self.begin_ps[token] = min(self.begin_ps[token], begin)
        return _Packet(token, token, -1), begin

    def _take(self, s: int) -> Generator[simpy.Event, None, tuple[_Packet, int, int]]:
        """Wait for a packet and take it; its place goes to the sender that has waited longest."""
        if not self.queues[s]:
            event = self.arrived[s] = self.env.event()
            yield event
            self.arrived[s] = None
        self._note_length(s)
        item = self.queues[s].popleft()
        if self.waiting[s]:
            sender, packet = self.waiting[s].popleft()
            self._push(sender, s, packet)
            self.pending[sender] -= 1
            if self.pending[sender] == 0:
                self.room[sender].succeed()
        return item

    def _hand_on(self, s: int, packet: _Packet) -> Generator:
        """Put a packet into the queue of each next station, or wait for room there."""
        network = self.network
        first, num = network.next_first[s, packet.route], network.next_num[s, packet.route]
        for d in network.next_station[first : first + num].tolist():
            if len(self.queues[d]) < network.depth[d]:
                self._push(s, d, packet)
                if self.arrived[d] is not None and not self.arrived[d].triggered:
                    self.arrived[d].succeed()
            else:
                self.waiting[d].append((s, packet))
                self.pending[s] += 1
        if self.pending[s]:
            since = self.now
            self.room[s] = self.env.event()
            yield self.room[s]
            self.counts["blocked_ps"][s] += self.now - since

    def _push(self, sender: int, s: int, packet: _Packet) -> None:
        self._note_length(s)
        self.queues[s].append((packet, int(self.now + self.network.latency_ps[sender]), self.now))
        most = self.counts["queue_most"]
        most[s] = max(most[s], len(self.queues[s]))

    def _steps(self, s: int, packet: _Packet) -> Iterator[_Packet]:
        """Yield what a station serves for a packet: the packet, or one after the other what a sender emits."""
        kind, unit = self.network.kind[s], self.network.unit[s]
        if kind == SOURCE:
            for e in range(*self.traffic.first[unit, packet.token : packet.token + 2].tolist()):
                yield _Packet(e, packet.token, int(self.traffic.route[e]))
        elif kind == SEND:
            for o in range(*self.network.core_outputs[unit].tolist()):
                word = packet.token * self.num_outputs + o
                yield _Packet(word, packet.token, int(self.network.sum_route[unit]))
        else:
            yield packet

    def _duration(self, s: int, packet: _Packet, begin: int) -> int:
        """Return how long a station serves a packet from a time on, in ps; an access to memory happens now."""
        network, traffic = self.network, self.traffic
        kind, c = network.kind[s], int(network.unit[s])
        duration = int(network.service_ps[s])
        if kind == SOURCE:
            duration = int(traffic.service_ps[packet.word])
        elif self._carries_spike(s, packet) and traffic.num_adds[packet.word] < 0:
            duration = 0 if network.free_ends else duration
            if kind == ACCUMULATE and network.group_size:
                duration += self._end_groups(c, packet, begin)
        elif kind == ACCUMULATE:
            columns = int(network.core_outputs[c, 1] - network.core_outputs[c, 0])
            num_blocks, wait_ps = self._turn_to_group(c, packet, columns, begin) if network.group_size else (0, 0)
            place = int(traffic.position[packet.word] - network.core_inputs[c, 0])
            for plane, (start, stop) in enumerate(itertools.pairwise(traffic.planes.tolist())):
                if start < traffic.read_bits[packet.word]:
                    row_bits = columns * (stop - start)
                    touched = self._blocks(place * row_bits, row_bits)
                    # The block of a plane that was read last is still there.
                    num_blocks += len(touched) - (touched[0] == self.last_block[c].get(plane))
                    self.last_block[c][plane] = touched[-1]
            self.core_counts["num_blocks"][c] += num_blocks
            adding = int(traffic.num_adds[packet.word]) * -(-columns // network.lanes) * network.add_ps
            duration += wait_ps + max(num_blocks * network.block_ps, adding)
        if self.jitter:
            random = _mix(self.seed, s, int(self.counts["num_served"][s]))
            duration += (((duration * self.jitter) >> 16) * random) >> 16
        return duration

    def _blocks(self, first: int, num: int) -> range:
        """Return the blocks of memory that hold that many bits from the first one on."""
        block_bits = 8 * self.network.block_bytes
        return range(first // block_bits, (first + num - 1) // block_bits + 1)

    def _turn_to_group(self, c: int, packet: _Packet, columns: int, begin: int) -> tuple[int, int]:
        """Finish the group before that of a spike; return the blocks of its parameters and how long the core waits."""
        group = int(self.traffic.position[packet.word]) // self.network.group_size, packet.token
        found = self._finish_group(c, columns, begin) if self.at_group[c] not in (None, group) else (0, 0)
        self.at_group[c] = group
        return found

    def _end_groups(self, c: int, packet: _Packet, begin: int) -> int:
        """Finish the last group of a token that ends; return how long the core takes for it."""
        columns = int(self.network.core_outputs[c, 1] - self.network.core_outputs[c, 0])
        is_last = self.ends_heard[c, packet.token] + 1 == self.network.num_ends[c]
        at, num_blocks, wait_ps = self.at_group[c], 0, 0
        if at is not None and (is_last or at[1] != packet.token):
            num_blocks, wait_ps = self._finish_group(c, columns, begin)
        self.core_counts["num_blocks"][c] += num_blocks
        reading = num_blocks * self.network.block_ps
        return max(reading, self.free_ps[c] - begin) if is_last else wait_ps + reading

    def _finish_group(self, c: int, columns: int, begin: int) -> tuple[int, int]:
        """Hand the sums of a group to the unit that rescales; return the blocks read and how long it is busy before."""
        at, outputs = self.at_group[c], slice(*self.network.core_outputs[c])
        assert at is not None
        group, token = at
        self.at_group[c] = None
        self.accumulator[c, token][outputs] += self.adding[c, outputs]
        self.group_sums[token, group, outputs] += self.adding[c, outputs]
        self.adding[c] = 0
        first = (group - int(self.network.core_inputs[c, 0]) // self.network.group_size) * columns
        self.last_block[c].clear()
        self.core_counts["num_updates"][c] += columns
        self.core_counts["num_rescaled"][c] += columns
        wait_ps = max(self.free_ps[c] - begin, 0)
        self.free_ps[c] = begin + wait_ps + int(self.network.rescale_ps[c])
        bits = self.network.parameter_bits
        return len(self._blocks(first * bits, columns * bits)) if bits else 0, wait_ps

    def _result(self, s: int, packet: _Packet) -> _Packet | None:  # noqa: PLR0911 - a return for each kind
        """Do what the end of a service does; return the packet to hand on, if there is one."""
        network, traffic = self.network, self.traffic
        kind, unit = network.kind[s], int(network.unit[s])
        if kind in (SOURCE, LINK):
            return packet
        if kind == ACCUMULATE:
            if traffic.num_adds[packet.word] >= 0:
                outputs = slice(*network.core_outputs[unit])
                row = self.weight[traffic.row[packet.word], outputs]
                into = self.adding[unit] if network.group_size else self.accumulator[unit, packet.token]
                into[outputs] += traffic.value[packet.word] * row
                self.core_counts["num_synops"][unit] += traffic.num_adds[packet.word] * len(row)
                self.core_counts["num_shifts"][unit] += traffic.num_shifts[packet.word] * len(row)
                self.core_counts["num_updates"][unit] += len(row)
                return None
            self.ends_heard[unit, packet.token] += 1
            if self.ends_heard[unit, packet.token] < network.num_ends[unit]:
                return None
            if not network.keeps_sums:
                return packet
            outputs = slice(*network.core_outputs[unit])
            self.sums[packet.token, outputs] = self.accumulator[unit, packet.token][outputs]
            self._collect(packet.token, int(outputs.stop - outputs.start))
            return None
        if kind == SEND:
            value = self.accumulator[unit, packet.token][packet.word % self.num_outputs]
            return _Packet(packet.word, packet.token, packet.route, int(value))
        if kind == REDUCE:
            self.met[packet.word].append(packet.value)
            if len(self.met[packet.word]) < network.num_partial:
                return None
            return _Packet(packet.word, packet.token, network.result_route, sum(self.met.pop(packet.word)))
        self.sums[packet.token, packet.word % self.num_outputs] = packet.value
        self._collect(packet.token, 1)
        return None

    def _collect(self, token: int, num_sums: int) -> None:
        """Note that sums are where they should be; after the last of a token, sources may go on."""
        self.collected[token] += num_sums
        if self.collected[token] == self.num_outputs:
            self.end_ps[token] = self.now
            self.completed += 1
            for source in self.network.of_kind(SOURCE).tolist():
                if self.arrived[source] is not None and not self.arrived[source].triggered:
                    self.arrived[source].succeed()

    def _carries_spike(self, s: int, packet: _Packet) -> bool:
        return self.network.kind[s] in (LINK, ACCUMULATE) and packet.route < self.network.result_route

    def _note_service(self, s: int, packet: _Packet, begin: int, duration: int, entered: int) -> None:
        spike = self.network.kind[s] == SOURCE or self._carries_spike(s, packet)
        counts = self.counts[s : s + 1]
        counts["num_served"] += 1
        counts["num_ends"] += bool(spike and self.traffic.num_adds[packet.word] < 0)
        counts["busy_ps"] += duration
        word = packet.token if self.network.kind[s] == SEND else packet.word
        self.records.append((s, word, begin, begin + duration, entered, self.now))

    def _note_length(self, s: int) -> None:
        self.counts["queue_ps"][s] += len(self.queues[s]) * (self.now - self.changed[s])
        self.changed[s] = self.now


def _mix(seed: int, station: int, serial: int) -> int:
    """Return 16 random bits for a service: splitmix64 of seed, station and the number of the service there."""
    mask = 2**64 - 1
    x = (seed * 0x9E3779B97F4A7C15 + station * 0xD1342543DE82EF95 + serial) & mask
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return (x ^ (x >> 31)) >> 48
