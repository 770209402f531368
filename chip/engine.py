"""The simulation for large layers: `reference.py` in compiled loops, event for event."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..compiled import compiled
from ..errors import InputError
from .network import ACCUMULATE, LINK, REDUCE, SEND, SOURCE, Network
from .outcome import Outcome, Trace, outcome_of
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
    return replace(outcome, trace=found)


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
    # No sum exceeds what the packets of all tokens together could make it.
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
        -(-np.diff(network.core_outputs)[:, 0] // network.lanes) * network.add_ps,
        network.block_bytes,
        network.block_ps,
        network.free_ends,
        network.keeps_sums,
        network.num_banks,
        traffic.first,
        traffic.position,
        traffic.value,
        traffic.num_adds,
        traffic.num_shifts,
        traffic.route,
        traffic.service_ps,
        np.ascontiguousarray(weight).reshape(-1),
        arrival_ps.astype(np.int64),
        round(jitter * 65536),
        np.uint64(seed),
        state,
        np.zeros((int(queue_at[-1]), 5), np.int64),
        queue_at,
        np.zeros(int(wait_at[-1]), np.int64),
        wait_at,
        np.zeros(num_cores * network.num_banks * int(np.diff(network.core_outputs).max()), wide),
        sums,
        times,
        counters,
        records,
    )
    if completed < 0:
        raise InputError(
            f"chip: expected times below {_NEVER >> num_stations.bit_length()} ps, as {num_stations:,} stations leave "
            "room for in 64 bits; it takes longer. Take fewer tokens, or shorter times in the description."
        )
    assert completed == num_tokens, f"{num_tokens - completed} tokens never ended"
    served, ends, busy, blocked, queued, most = np.ascontiguousarray(state[:, _SERVED:].T)
    synops, shifts, updates, blocks = np.ascontiguousarray(counters.T)
    begin, end = times
    columns = (begin, end, served, ends, busy, blocked, queued, most, synops, shifts, updates, blocks)
    return outcome_of(sums, columns), records


@compiled
def _mix(seed, station, serial):
    """Return 16 random bits for a service: splitmix64 of seed, station and the number of the service there."""
    x = seed * np.uint64(0x9E3779B97F4A7C15) + np.uint64(station) * np.uint64(0xD1342543DE82EF95) + np.uint64(serial)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.int64((x ^ (x >> np.uint64(31))) >> np.uint64(48))


@compiled
def _add_row(total, at, weight, row, columns, value):
    """Add value times the row: the sum of its additions of shifted rows."""
    for j in range(np.uintp(columns)):
        total[at + j] += value * weight[row + j]


@compiled
def _set_turn(s, turn, earliest, size):
    """Let station s act in that turn; `earliest` is a binary tree whose root is the earliest turn of all."""
    node = s + size
    earliest[node] = turn
    node >>= 1
    while node >= 1:
        first = min(earliest[2 * node], earliest[2 * node + 1])
        if earliest[node] == first:
            break
        earliest[node] = first
        node >>= 1


@compiled(error_model="numpy")
def _loop(  # noqa: PLR0912, PLR0915 - one loop over one state; reference.py says the same in parts
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
    row_ps,
    block_bytes,
    block_ps,
    free_ends,
    keeps_sums,
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
    """Run until no station has anything to do; return the number of tokens, or -1 if times get too large.

    Indices of hot arrays are unsigned: of a signed one, every access checks whether it counts from the end.
    """
    num_stations, num_tokens, num_outputs = len(kind), len(arrival_ps), sums.shape[1]
    most_columns = len(accumulator) // (len(num_ends) * num_banks)
    num_records, recorded = len(records) - 1, 0
    bits = 0
    while 1 << bits <= num_stations:
        bits += 1
    size = 1 << bits
    # Turns order the ends of services by time, then by station: time * size + station.
    earliest = np.full(2 * size, _NEVER, np.int64)
    latest = (_NEVER >> bits) - 1
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
    acting = -1
    while True:
        # Stations that are free take their next packet; room in their queue may free the station before them.
        i = 0
        while i < num_going:
            s = going[i]
            i += 1
            while s >= 0:
                me = np.uintp(s)
                k = kind[s]
                begin = now
                began_by = cause
                freed = False
                if k == SOURCE and state[me, _CURSOR] >= state[me, _STOP]:
                    token = state[me, _TOKEN]
                    if token >= num_tokens or token - completed >= num_banks:
                        state[me, _IDLE] = 1
                        break
                    state[me, _TOKEN] = token + 1
                    state[me, _CURSOR] = first[unit[s], token]
                    state[me, _STOP] = first[unit[s], token + 1]
                    if arrival_ps[token] > begin:
                        begin = arrival_ps[token]
                        began_by = -1
                    times[0, token] = min(times[0, token], begin)
                elif k != SOURCE and (k != SEND or state[me, _CURSOR] >= state[me, _STOP]):
                    if state[me, _LEN] == 0:
                        state[me, _IDLE] = 1
                        break
                    slot = np.uintp(queue_at[s] + state[me, _HEAD])
                    state[me, _WORD], state[me, _VALUE] = queue[slot, _Q_WORD], queue[slot, _Q_VALUE]
                    state[me, _ROUTE] = queue[slot, _Q_ROUTE]
                    if queue[slot, _Q_THERE] > begin:
                        begin = queue[slot, _Q_THERE]
                        began_by = queue[slot, _Q_RECORD]
                    state[me, _QUEUE] += state[me, _LEN] * (now - state[me, _CHANGED])
                    state[me, _CHANGED] = now
                    state[me, _HEAD] = state[me, _HEAD] + 1 if state[me, _HEAD] + 1 < depth[s] else 0
                    state[me, _LEN] -= 1
                    freed = True
                    if k == SEND:
                        state[me, _CURSOR], state[me, _STOP] = core_outputs[unit[s], 0], core_outputs[unit[s], 1]

                # How long it takes.
                is_end = False
                service = service_ps[s]
                if k == SOURCE:
                    is_end = num_adds[state[me, _CURSOR]] < 0
                    service = packet_ps[state[me, _CURSOR]]
                elif k in (LINK, ACCUMULATE) and state[me, _ROUTE] < result_route:  # it carries a spike
                    e = state[me, _WORD]
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
                        service += max(blocks * block_ps, num_adds[e] * row_ps[c])
                if jitter:
                    service += (((service * jitter) >> 16) * _mix(seed, s, state[me, _SERIAL])) >> 16
                state[me, _SERIAL] += 1
                state[me, _IDLE] = 0
                state[me, _SERVED] += 1
                state[me, _ENDS] += is_end
                state[me, _BUSY] += service
                if num_records:
                    records[recorded, 0] = s
                    records[recorded, 1] = state[me, _CURSOR] if k == SOURCE else state[me, _WORD]
                    records[recorded, 2] = begin
                    records[recorded, 3] = begin + service
                    records[recorded, 4] = began_by
                    state[me, _RECORD] = recorded
                    recorded += 1
                if begin + service > latest:
                    return -1
                _set_turn(s, ((begin + service) << bits) + s, earliest, size)
                if s == acting:
                    acting = -1

                # The freed place goes to who has waited longest, which may have nothing else to wait for.
                after = -1
                if freed and state[me, _WAIT_LEN]:
                    num_waiting = wait_at[s + 1] - wait_at[s]
                    w = waiting[wait_at[s] + state[me, _WAIT_HEAD]]
                    state[me, _WAIT_HEAD] = state[me, _WAIT_HEAD] + 1 if state[me, _WAIT_HEAD] + 1 < num_waiting else 0
                    state[me, _WAIT_LEN] -= 1
                    place = state[me, _HEAD] + state[me, _LEN]
                    slot = np.uintp(queue_at[s] + (place if place < depth[s] else place - depth[s]))
                    queue[slot, _Q_WORD], queue[slot, _Q_VALUE] = state[w, _OUT_WORD], state[w, _OUT_VALUE]
                    queue[slot, _Q_ROUTE] = state[w, _OUT_ROUTE]
                    queue[slot, _Q_THERE], queue[slot, _Q_RECORD] = now + latency_ps[w], state[w, _RECORD]
                    state[me, _LEN] += 1
                    state[w, _PENDING] -= 1
                    if state[w, _PENDING] == 0:
                        state[w, _BLOCKED] += now - state[w, _SINCE]
                        after = w
                s = after

        if acting >= 0:  # it has nothing more to do for now
            _set_turn(acting, _NEVER, earliest, size)
        if earliest[1] == _NEVER:
            break
        s = earliest[1] & (size - 1)
        now = earliest[1] >> bits
        acting = s
        me = np.uintp(s)
        k = kind[s]
        cause = state[me, _RECORD] if num_records else -1
        num_going = 0
        goes_out = True
        ended = -1
        # What the end of a service does, by kind.
        if k == SOURCE:
            e = state[me, _CURSOR]
            state[me, _CURSOR] += 1
            state[me, _OUT_WORD], state[me, _OUT_VALUE], state[me, _OUT_ROUTE] = e, -state[me, _TOKEN], packet_route[e]
        elif k == LINK:
            state[me, _OUT_WORD], state[me, _OUT_VALUE], state[me, _OUT_ROUTE] = (
                state[me, _WORD],
                state[me, _VALUE],
                state[me, _ROUTE],
            )
        elif k == ACCUMULATE:
            c, e, token = unit[s], state[me, _WORD], -state[me, _VALUE] - 1
            bank = token % num_banks
            if num_adds[e] >= 0:
                goes_out = False
                o0 = core_outputs[c, 0]
                columns = core_outputs[c, 1] - o0
                at = (c * num_banks + bank) * most_columns
                row = position[e] * num_outputs + o0
                _add_row(accumulator, np.uintp(at), weight, np.uintp(row), columns, packet_value[e])
                counters[c, 0] += num_adds[e] * columns
                counters[c, 1] += num_shifts[e] * columns
                counters[c, 2] += columns
            else:
                ends_heard[c, bank] += 1
                goes_out = ends_heard[c, bank] == num_ends[c]
                if goes_out and keeps_sums:
                    goes_out = False
                    ends_heard[c, bank] = 0
                    at = (c * num_banks + bank) * most_columns
                    o0, o1 = core_outputs[c, 0], core_outputs[c, 1]
                    for o in range(o0, o1):
                        sums[token, o] = accumulator[at + o - o0]
                        accumulator[at + o - o0] = 0
                    left[token] -= o1 - o0
                    ended = token
                elif goes_out:
                    ends_heard[c, bank] = 0
                    state[me, _OUT_WORD], state[me, _OUT_VALUE], state[me, _OUT_ROUTE] = token, 0, state[me, _ROUTE]
        elif k == SEND:
            c, o, token = unit[s], state[me, _CURSOR], state[me, _WORD]
            bank = token % num_banks
            state[me, _CURSOR] += 1
            state[me, _OUT_WORD], state[me, _OUT_ROUTE] = token * num_outputs + o, sum_route[c]
            at = (c * num_banks + bank) * most_columns + o - core_outputs[c, 0]
            state[me, _OUT_VALUE] = accumulator[at]
            accumulator[at] = 0
        else:
            token, o = state[me, _WORD] // num_outputs, state[me, _WORD] % num_outputs
            if k == REDUCE:
                bank = token % num_banks
                met[bank, o] += 1
                met_sum[bank, o] += state[me, _VALUE]
                goes_out = met[bank, o] == num_partial
                if goes_out:
                    state[me, _OUT_WORD], state[me, _OUT_VALUE], state[me, _OUT_ROUTE] = (
                        state[me, _WORD],
                        met_sum[bank, o],
                        result_route,
                    )
                    met[bank, o] = 0
                    met_sum[bank, o] = 0
            else:
                goes_out = False
                sums[token, o] = state[me, _VALUE]
                left[token] -= 1
                ended = token

        if ended >= 0 and left[ended] == 0:
            times[1, ended] = now
            completed += 1
            records[num_records, 0] = cause
            for source in sources:
                if state[source, _IDLE]:
                    going[num_going] = source
                    num_going += 1
        if goes_out:
            r = state[me, _OUT_ROUTE]
            for j in range(next_first[s, r], next_first[s, r] + next_num[s, r]):
                d = next_station[j]
                to = np.uintp(d)
                if state[to, _LEN] < depth[d]:
                    state[to, _QUEUE] += state[to, _LEN] * (now - state[to, _CHANGED])
                    state[to, _CHANGED] = now
                    place = state[to, _HEAD] + state[to, _LEN]
                    slot = np.uintp(queue_at[d] + (place if place < depth[d] else place - depth[d]))
                    queue[slot, _Q_WORD], queue[slot, _Q_VALUE] = state[me, _OUT_WORD], state[me, _OUT_VALUE]
                    queue[slot, _Q_ROUTE] = r
                    queue[slot, _Q_THERE], queue[slot, _Q_RECORD] = now + latency_ps[s], cause
                    state[to, _LEN] += 1
                    state[to, _MOST] = max(state[to, _MOST], state[to, _LEN])
                    if state[to, _IDLE]:
                        state[to, _IDLE] = 0
                        going[num_going] = d
                        num_going += 1
                else:
                    num_waiting = wait_at[d + 1] - wait_at[d]
                    place = state[to, _WAIT_HEAD] + state[to, _WAIT_LEN]
                    waiting[wait_at[d] + (place if place < num_waiting else place - num_waiting)] = s
                    state[to, _WAIT_LEN] += 1
                    state[me, _PENDING] += 1
        if state[me, _PENDING]:
            state[me, _SINCE] = now
        else:
            going[num_going] = s
            num_going += 1
    return completed
