"""The simulation for large layers: `reference.py` in compiled loops, event for event."""

from __future__ import annotations

import numba
import numpy as np

from .network import ACCUMULATE, LINK, REDUCE, SEND, SOURCE, Network
from .outcome import Outcome, Trace
from .traffic import Traffic

_NEVER = np.iinfo(np.int64).max
# Columns of the state of a station: its queue, the packet in service, the packet on its way out, who waits, statistics.
_LEN, _HEAD, _WORD, _VALUE, _OUT_WORD, _OUT_VALUE, _OUT_ROUTE, _PENDING, _IDLE, _SERIAL = range(10)
_WAIT_LEN, _WAIT_HEAD, _CURSOR, _STOP, _TOKEN, _SINCE, _CHANGED, _RECORD, _ROUTE = range(10, 19)
_SERVED, _ENDS, _BUSY, _BLOCKED, _QUEUE, _MOST = range(19, 25)
_NUM_COLUMNS = 25
_Q_WORD, _Q_VALUE, _Q_ROUTE, _Q_THERE, _Q_RECORD = range(5)


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
    """Run the tokens of a layer through its stations.

    Args:
        network: the stations.
        traffic: packets of L tokens.
        weight: int8, [N, M], rows in the order of the positions.
        arrival_ps: when each token's input is there, not falling; int64 [L].
        jitter: services last up to this share longer, at random.
        seed: of the jitter.
        trace: also return every service.
    """
    outcome, records = _run(network, traffic, weight, arrival_ps, jitter, seed, 0)
    if not trace:
        return outcome
    # The first run tells how many there are; the second is the same.
    outcome, records = _run(network, traffic, weight, arrival_ps, jitter, seed, int(outcome.num_served.sum()))
    columns = np.ascontiguousarray(records[:-1].T)
    found = Trace(*columns, last=int(records[-1, 0]))
    return Outcome(**{**vars(outcome), "trace": found})


def _run(network, traffic, weight, arrival_ps, jitter, seed, num_records) -> tuple[Outcome, np.ndarray]:
    num_stations, num_tokens, num_outputs = network.num_stations, traffic.num_tokens, weight.shape[1]
    num_cores = len(network.core_inputs)
    upstream = np.zeros(num_stations, np.int64)
    np.add.at(upstream, network.next_station, 1)
    queue_at = np.concatenate([[0], network.depth.cumsum()])
    wait_at = np.concatenate([[0], upstream.cumsum()])
    state = np.zeros((num_stations, _NUM_COLUMNS), np.int64)
    sums = np.zeros((num_tokens, num_outputs), np.int64)
    times = np.zeros((2, num_tokens), np.int64)
    counters = np.zeros((num_cores, 4), np.int64)
    records = np.empty((num_records + 1, 5), np.int64)
    # A sum never exceeds what all additions of its token make at most.
    charge = int(np.abs(traffic.value).sum(initial=0)) * 128
    wide = np.int32 if charge < 2**31 else np.int64
    completed = _loop(
        network.kind,
        network.depth,
        network.service_ps,
        network.latency_ps,
        network.unit,
        network.next_first,
        network.next_num,
        network.next_station,
        network.num_ends,
        network.core_inputs,
        network.core_outputs,
        network.sum_route,
        network.result_route,
        network.num_partial,
        network.lanes,
        network.add_ps,
        network.block_bytes,
        network.block_ps,
        network.free_ends,
        network.num_banks,
        traffic.first,
        traffic.position,
        traffic.value,
        traffic.num_adds,
        traffic.num_shifts,
        traffic.route,
        traffic.service_ps,
        np.ascontiguousarray(weight),
        arrival_ps.astype(np.int64),
        round(jitter * 65536),
        np.uint64(seed),
        state,
        np.zeros((int(queue_at[-1]), 5), np.int64),
        queue_at,
        np.zeros(int(wait_at[-1]), np.int64),
        wait_at,
        np.zeros((num_cores, network.num_banks, int(np.diff(network.core_outputs).max())), wide),
        sums,
        times,
        counters,
        records,
    )
    assert completed == num_tokens, f"{num_tokens - completed} tokens never ended"
    return Outcome(
        sums,
        *times,
        *np.ascontiguousarray(state[:, _SERVED:].T),
        *np.ascontiguousarray(counters.T),
    ), records


@numba.njit(cache=True)
def _mix(seed, station, serial):
    """Return 16 random bits for a service: splitmix64 of seed, station and the number of the service there."""
    x = seed * np.uint64(0x9E3779B97F4A7C15) + np.uint64(station) * np.uint64(0xD1342543DE82EF95) + np.uint64(serial)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.int64((x ^ (x >> np.uint64(31))) >> np.uint64(48))


@numba.njit(cache=True)
def _set_time(s, time, when, winner, size):
    """Let station s act at that time; the winner of the tree is the earliest, and of those the lowest number."""
    when[s] = time
    node = (s + size) >> 1
    while node >= 1:
        a, b = winner[2 * node], winner[2 * node + 1]
        winner[node] = a if when[a] <= when[b] else b
        node >>= 1


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _loop(
    kind,
    depth,
    service_ps,
    latency_ps,
    unit,
    next_first,
    next_num,
    next_station,
    num_ends,
    core_inputs,
    core_outputs,
    sum_route,
    result_route,
    num_partial,
    lanes,
    add_ps,
    block_bytes,
    block_ps,
    free_ends,
    num_banks,
    first,
    position,
    packet_value,
    num_adds,
    num_shifts,
    packet_route,
    packet_ps,
    weight,
    arrival_ps,
    jitter,
    seed,
    state,
    queue,
    queue_at,
    waiting,
    wait_at,
    accumulator,
    sums,
    times,
    counters,
    records,
):
    """Run until no station has anything to do; return the number of completed tokens."""
    num_stations, num_tokens, num_outputs = len(kind), len(arrival_ps), weight.shape[1]
    num_records, recorded = len(records) - 1, 0
    size = 1
    while size < num_stations:
        size *= 2
    when = np.full(size, _NEVER, np.int64)
    winner = np.empty(2 * size, np.int64)
    for s in range(size):
        winner[size + s] = s
    for node in range(size - 1, 0, -1):
        winner[node] = winner[2 * node]
    ends_heard = np.zeros((len(num_ends), num_banks), np.int64)
    last_block = np.full(len(num_ends), -1, np.int64)
    met = np.zeros((num_banks, num_outputs if num_partial > 1 else 0), np.int64)
    met_sum = np.zeros_like(met)
    left = np.full(num_tokens, num_outputs, np.int64)
    times[0, :] = _NEVER
    completed = 0
    sources = np.flatnonzero(kind == SOURCE)
    for s in range(num_stations):
        state[s, _IDLE] = 1
    # A station acts when its service ends. `going` lists those that may go on with their next packet at this instant.
    going = np.empty(num_stations + 1, np.int64)
    num_going = 0
    for s in sources:
        going[num_going] = s
        num_going += 1
    now = 0
    cause = -1
    while True:
        # Stations that are free take their next packet; room in their queue may free the station before them.
        i = 0
        while i < num_going:
            s = going[i]
            i += 1
            while s >= 0:
                here = state[s]
                k = kind[s]
                begin = now
                began_by = cause
                freed = False
                if k == SOURCE and here[_CURSOR] >= here[_STOP]:
                    token = here[_TOKEN]
                    if token >= num_tokens or token - completed >= num_banks:
                        here[_IDLE] = 1
                        break
                    here[_TOKEN] = token + 1
                    here[_CURSOR] = first[unit[s], token]
                    here[_STOP] = first[unit[s], token + 1]
                    if arrival_ps[token] > begin:
                        begin = arrival_ps[token]
                        began_by = -1
                    times[0, token] = min(times[0, token], begin)
                elif k != SOURCE and (k != SEND or here[_CURSOR] >= here[_STOP]):
                    if here[_LEN] == 0:
                        here[_IDLE] = 1
                        break
                    slot = queue_at[s] + here[_HEAD]
                    here[_WORD], here[_VALUE] = queue[slot, _Q_WORD], queue[slot, _Q_VALUE]
                    here[_ROUTE] = queue[slot, _Q_ROUTE]
                    if queue[slot, _Q_THERE] > begin:
                        begin = queue[slot, _Q_THERE]
                        began_by = queue[slot, _Q_RECORD]
                    here[_QUEUE] += here[_LEN] * (now - here[_CHANGED])
                    here[_CHANGED] = now
                    here[_HEAD] = here[_HEAD] + 1 if here[_HEAD] + 1 < depth[s] else 0
                    here[_LEN] -= 1
                    freed = True
                    if k == SEND:
                        here[_CURSOR], here[_STOP] = core_outputs[unit[s], 0], core_outputs[unit[s], 1]

                # How long it takes.
                is_end = False
                service = service_ps[s]
                if k == SOURCE:
                    is_end = num_adds[here[_CURSOR]] < 0
                    service = packet_ps[here[_CURSOR]]
                elif k == LINK or k == ACCUMULATE:
                    if here[_ROUTE] < result_route:  # it carries a spike
                        e = here[_WORD]
                        is_end = num_adds[e] < 0
                        if is_end and free_ends:
                            service = 0
                        elif k == ACCUMULATE and not is_end:
                            c = unit[s]
                            columns = core_outputs[c, 1] - core_outputs[c, 0]
                            at = (position[e] - core_inputs[c, 0]) * columns
                            from_block = at // block_bytes
                            to_block = (at + columns - 1) // block_bytes
                            blocks = to_block - from_block + 1
                            if from_block == last_block[c]:
                                blocks -= 1
                            last_block[c] = to_block
                            counters[c, 3] += blocks
                            adding = num_adds[e] * ((columns + lanes - 1) // lanes) * add_ps
                            service += max(blocks * block_ps, adding)
                if jitter:
                    service += (((service * jitter) >> 16) * _mix(seed, s, here[_SERIAL])) >> 16
                here[_SERIAL] += 1
                here[_IDLE] = 0
                here[_SERVED] += 1
                here[_ENDS] += is_end
                here[_BUSY] += service
                if num_records:
                    records[recorded, 0] = s
                    records[recorded, 1] = here[_CURSOR] if k == SOURCE else here[_WORD]
                    records[recorded, 2] = begin
                    records[recorded, 3] = begin + service
                    records[recorded, 4] = began_by
                    here[_RECORD] = recorded
                    recorded += 1
                _set_time(s, begin + service, when, winner, size)

                # The freed place goes to who has waited longest, which may have nothing else to wait for.
                after = -1
                if freed and here[_WAIT_LEN]:
                    num_waiting = wait_at[s + 1] - wait_at[s]
                    w = waiting[wait_at[s] + here[_WAIT_HEAD]]
                    here[_WAIT_HEAD] = here[_WAIT_HEAD] + 1 if here[_WAIT_HEAD] + 1 < num_waiting else 0
                    here[_WAIT_LEN] -= 1
                    sender = state[w]
                    place = here[_HEAD] + here[_LEN]
                    slot = queue_at[s] + (place if place < depth[s] else place - depth[s])
                    queue[slot, _Q_WORD], queue[slot, _Q_VALUE] = sender[_OUT_WORD], sender[_OUT_VALUE]
                    queue[slot, _Q_ROUTE] = sender[_OUT_ROUTE]
                    queue[slot, _Q_THERE], queue[slot, _Q_RECORD] = now + latency_ps[w], sender[_RECORD]
                    here[_LEN] += 1
                    sender[_PENDING] -= 1
                    if sender[_PENDING] == 0:
                        sender[_BLOCKED] += now - sender[_SINCE]
                        after = w
                s = after

        s = winner[1]
        if when[s] == _NEVER:
            break
        now = when[s]
        _set_time(s, _NEVER, when, winner, size)
        here = state[s]
        k = kind[s]
        cause = here[_RECORD] if num_records else -1
        num_going = 0
        goes_out = True
        # What the end of a service does, by kind.
        if k == SOURCE:
            e = here[_CURSOR]
            here[_CURSOR] += 1
            here[_OUT_WORD], here[_OUT_VALUE], here[_OUT_ROUTE] = e, -here[_TOKEN], packet_route[e]
        elif k == LINK:
            here[_OUT_WORD], here[_OUT_VALUE], here[_OUT_ROUTE] = here[_WORD], here[_VALUE], here[_ROUTE]
        elif k == ACCUMULATE:
            c, e, token = unit[s], here[_WORD], -here[_VALUE] - 1
            bank = token % num_banks
            if num_adds[e] >= 0:
                goes_out = False
                o0 = core_outputs[c, 0]
                columns = core_outputs[c, 1] - o0
                _add_row(accumulator[c, bank], weight[position[e], o0 : o0 + columns], packet_value[e])
                counters[c, 0] += num_adds[e] * columns
                counters[c, 1] += num_shifts[e] * columns
                counters[c, 2] += columns
            else:
                ends_heard[c, bank] += 1
                goes_out = ends_heard[c, bank] == num_ends[c]
                if goes_out:
                    ends_heard[c, bank] = 0
                    here[_OUT_WORD], here[_OUT_VALUE], here[_OUT_ROUTE] = token, 0, here[_ROUTE]
        elif k == SEND:
            c, o, token = unit[s], here[_CURSOR], here[_WORD]
            bank = token % num_banks
            here[_CURSOR] += 1
            here[_OUT_WORD], here[_OUT_ROUTE] = token * num_outputs + o, sum_route[c]
            here[_OUT_VALUE] = accumulator[c, bank, o - core_outputs[c, 0]]
            accumulator[c, bank, o - core_outputs[c, 0]] = 0
        else:
            token, o = here[_WORD] // num_outputs, here[_WORD] % num_outputs
            if k == REDUCE:
                bank = token % num_banks
                met[bank, o] += 1
                met_sum[bank, o] += here[_VALUE]
                goes_out = met[bank, o] == num_partial
                if goes_out:
                    here[_OUT_WORD], here[_OUT_VALUE], here[_OUT_ROUTE] = here[_WORD], met_sum[bank, o], result_route
                    met[bank, o] = 0
                    met_sum[bank, o] = 0
            else:
                goes_out = False
                sums[token, o] = here[_VALUE]
                left[token] -= 1
                if left[token] == 0:
                    times[1, token] = now
                    completed += 1
                    records[num_records, 0] = cause
                    for source in sources:
                        if state[source, _IDLE]:
                            going[num_going] = source
                            num_going += 1

        if goes_out:
            r = here[_OUT_ROUTE]
            for j in range(next_first[s, r], next_first[s, r] + next_num[s, r]):
                d = next_station[j]
                there = state[d]
                if there[_LEN] < depth[d]:
                    there[_QUEUE] += there[_LEN] * (now - there[_CHANGED])
                    there[_CHANGED] = now
                    place = there[_HEAD] + there[_LEN]
                    slot = queue_at[d] + (place if place < depth[d] else place - depth[d])
                    queue[slot, _Q_WORD], queue[slot, _Q_VALUE] = here[_OUT_WORD], here[_OUT_VALUE]
                    queue[slot, _Q_ROUTE] = r
                    queue[slot, _Q_THERE], queue[slot, _Q_RECORD] = now + latency_ps[s], cause
                    there[_LEN] += 1
                    there[_MOST] = max(there[_MOST], there[_LEN])
                    if there[_IDLE]:
                        there[_IDLE] = 0
                        going[num_going] = d
                        num_going += 1
                else:
                    num_waiting = wait_at[d + 1] - wait_at[d]
                    place = there[_WAIT_HEAD] + there[_WAIT_LEN]
                    waiting[wait_at[d] + (place if place < num_waiting else place - num_waiting)] = s
                    there[_WAIT_LEN] += 1
                    here[_PENDING] += 1
        if here[_PENDING]:
            here[_SINCE] = now
        else:
            going[num_going] = s
            num_going += 1
    return completed


@numba.njit(cache=True)
def _add_row(total, row, value):
    """Add value times the row: the sum of its additions of shifted rows."""
    for j in range(len(row)):
        total[j] += value * row[j]
