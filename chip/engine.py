"""The simulation for large layers: `simpy_engine.py` in compiled loops, event for event."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..compiled import compiled
from ..errors import InputError
from .engine_arrays import CORES, QUEUED, SERVICES, STATE, LayerArrays, PacketArrays
from .network import ACCUMULATE, LINK, REDUCE, SEND, SOURCE, Network
from .outcome import Outcome, Trace, outcome_of
from .traffic import Traffic

_NEVER = np.iinfo(np.int64).max


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
        weight: int8, [N, M], rows in the order of the positions; or int16, with kinds of coarse rows below, in halves.
        arrival_ps: time at which each token's input arrives, never falling; int64 [L].
        jitter: services last longer by a random share up to this one.
        seed: random seed of the jitter.
        trace: also return every service.
    """
    outcome, _ = _run(network, traffic, weight, arrival_ps, jitter, seed, 0)
    if not trace:
        return outcome
    # The first run gives the number of services; the second repeats it and keeps them.
    outcome, services = _run(network, traffic, weight, arrival_ps, jitter, seed, int(outcome.num_served.sum()))
    columns = {name: np.ascontiguousarray(services[name][:-1]) for name in SERVICES.names or ()}
    return replace(outcome, trace=Trace(**columns, last=int(services["cause"][-1])))


def _run(network, traffic, weight, arrival_ps, jitter, seed, num_services) -> tuple[Outcome, np.ndarray]:
    num_stations, num_tokens, num_outputs = network.num_stations, traffic.num_tokens, weight.shape[1]
    upstream = np.zeros(num_stations, np.int64)
    np.add.at(upstream, network.next_station, 1)
    queue_at = np.concatenate([[0], network.depth.cumsum()])
    wait_at = np.concatenate([[0], upstream.cumsum()])
    # No sum exceeds what the packets of all tokens together could make it.
    largest = max(-int(weight.min(initial=0)), int(weight.max(initial=0)))
    charge = int(np.abs(traffic.value).sum(initial=0)) * largest
    width = np.int32 if charge < 2**31 else np.int64
    state, cores = np.zeros(num_stations, STATE), np.zeros(len(network.core_inputs), CORES)
    sums = np.zeros((num_tokens, num_outputs), np.int64)
    most_columns = int(np.diff(network.core_outputs).max())
    num_groups = network.num_groups
    group_sums = np.zeros((num_tokens, num_groups, num_outputs), width)
    begin_ps, end_ps = np.zeros((2, num_tokens), np.int64)
    services = np.empty(num_services + 1, SERVICES)
    completed = _loop(
        LayerArrays.of(network),
        PacketArrays.of(traffic),
        np.ascontiguousarray(weight).reshape(-1),
        arrival_ps.astype(np.int64),
        round(jitter * 65536),
        np.uint64(seed),
        state,
        np.zeros(int(queue_at[-1]), QUEUED),
        queue_at,
        np.zeros(int(wait_at[-1]), np.int64),
        wait_at,
        np.zeros(len(cores) * network.num_banks * most_columns, width),
        np.zeros(len(cores) * most_columns if network.group_size else 0, width),
        sums,
        group_sums,
        begin_ps,
        end_ps,
        cores,
        services,
    )
    if completed < 0:
        raise InputError(
            f"chip: expected times below {_NEVER >> num_stations.bit_length()} ps, as {num_stations:,} stations leave "
            "room for in 64 bits; it takes longer. Take fewer tokens, or shorter times in the description."
        )
    assert completed == num_tokens, f"{num_tokens - completed} tokens never ended"
    return outcome_of(sums, group_sums, begin_ps, end_ps, state, cores), services


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
def _finish_group(adding, at, total, into, noted):
    """Add the sums of a group to those of its token, and note them."""
    for j in range(len(noted)):
        total[into + j] += adding[at + j]
        noted[j] += adding[at + j]
        adding[at + j] = 0


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
def _loop(  # noqa: PLR0912, PLR0915 - one loop over one state; simpy_engine.py says the same in parts
    layer,
    packets,
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
    adding,
    sums,
    group_sums,
    begin_ps,
    end_ps,
    cores,
    services,
):
    """Run until no station has anything to do; return the number of tokens, or -1 if times get too large.

    Indices of hot arrays are unsigned: with a signed index, every access checks whether it counts from the end.
    """
    # Arrays get names of their own here: taking one out of a tuple in the loop would count its references each time.
    kind, depth, service_ps, latency_ps, unit = layer.kind, layer.depth, layer.service_ps, layer.latency_ps, layer.unit
    next_first, next_num, next_station = layer.next_first, layer.next_num, layer.next_station
    num_ends, core_inputs, core_outputs, row_ps = layer.num_ends, layer.core_inputs, layer.core_outputs, layer.row_ps
    sum_route, result_route, num_partial = layer.sum_route, layer.result_route, layer.num_partial
    block_ps, num_banks = layer.block_ps, layer.num_banks
    free_ends, keeps_sums = layer.free_ends, layer.keeps_sums
    group_size, parameter_bits = layer.group_size, layer.parameter_bits
    rescale_ps, block_bits = layer.rescale_ps, 8 * layer.block_bytes
    first, position, num_adds, num_shifts = packets.first, packets.position, packets.num_adds, packets.num_shifts
    packet_value, packet_route, packet_ps = packets.value, packets.route, packets.service_ps
    packet_row, read_bits, planes = packets.row, packets.read_bits, packets.planes
    num_planes = len(planes) - 1
    num_stations, num_tokens, num_outputs = len(kind), len(arrival_ps), sums.shape[1]
    most_columns = len(accumulator) // (len(num_ends) * num_banks)
    num_services, recorded = len(services) - 1, 0
    bits = 0
    while 1 << bits <= num_stations:
        bits += 1
    size = 1 << bits
    # Turns order the ends of services by time, then by station: time * size + station.
    earliest = np.full(2 * size, _NEVER, np.int64)
    latest = (_NEVER >> bits) - 1
    ends_heard = np.zeros((len(num_ends), num_banks), np.int64)
    last_block = np.full((len(num_ends), num_planes), -1, np.int64)
    met = np.zeros((num_banks, num_outputs if num_partial > 1 else 0), np.int64)
    met_sum = np.zeros_like(met)
    left = np.full(num_tokens, num_outputs, np.int64)
    begin_ps[:] = _NEVER
    for c in range(len(cores)):
        cores[c].group = -1
    completed = 0
    sources = np.flatnonzero(kind == SOURCE)
    for s in range(num_stations):
        state[s].idle = 1
    # A station acts when its service ends. `going` lists those that may go on with their next packet at this instant.
    going = np.empty(num_stations + 1, np.int64)
    num_going = len(sources)
    going[:num_going] = sources
    now, cause, acting = 0, -1, -1
    while True:
        # Stations that are free take their next packet; room in their queue may free the station before them.
        i = 0
        while i < num_going:
            s = going[i]
            i += 1
            while s >= 0:
                me = np.uintp(s)
                k = kind[s]
                begin = entered = now
                began_by = cause
                freed = False
                if k == SOURCE and state[me].cursor >= state[me].stop:
                    token = state[me].token
                    if token >= num_tokens or token - completed >= num_banks:
                        state[me].idle = 1
                        break
                    state[me].token = token + 1
                    state[me].cursor = first[unit[s], token]
                    state[me].stop = first[unit[s], token + 1]
                    if arrival_ps[token] > begin:
                        begin = arrival_ps[token]
                        began_by = -1
                    begin_ps[token] = min(begin_ps[token], begin)
                elif k != SOURCE and (k != SEND or state[me].cursor >= state[me].stop):
                    if state[me].length == 0:
                        state[me].idle = 1
                        break
                    slot = np.uintp(queue_at[s] + state[me].head)
                    state[me].word, state[me].value = queue[slot].word, queue[slot].value
                    state[me].route = queue[slot].route
                    if queue[slot].there_ps > begin:
                        begin = queue[slot].there_ps
                        began_by = queue[slot].record
                    if num_services:  # it left the station before it when it came into this queue
                        entered = queue[slot].there_ps - latency_ps[services[queue[slot].record].station]
                    state[me].queue_ps += state[me].length * (now - state[me].changed)
                    state[me].changed = now
                    state[me].head = state[me].head + 1 if state[me].head + 1 < depth[s] else 0
                    state[me].length -= 1
                    freed = True
                    if k == SEND:
                        state[me].cursor, state[me].stop = core_outputs[unit[s], 0], core_outputs[unit[s], 1]

                # How long it takes.
                is_end = False
                service = service_ps[s]
                if k == SOURCE:
                    is_end = num_adds[state[me].cursor] < 0
                    service = packet_ps[state[me].cursor]
                elif k in (LINK, ACCUMULATE) and state[me].route < result_route:  # it carries a spike
                    e = state[me].word
                    is_end = num_adds[e] < 0
                    if is_end and free_ends:
                        service = 0
                    elif k == ACCUMULATE:
                        c = unit[s]
                        columns = core_outputs[c, 1] - core_outputs[c, 0]
                        blocks, wait_ps, adding_ps = 0, 0, 0 if is_end else num_adds[e] * row_ps[c]
                        if group_size:
                            token, held = -state[me].value - 1, cores[c].group
                            is_last = is_end and ends_heard[c, token % num_banks] + 1 == num_ends[c]
                            goes_on = is_end or position[e] // group_size == held
                            if held >= 0 and (is_last or cores[c].token != token or not goes_on):
                                of, o0 = cores[c].token, core_outputs[c, 0]
                                into = (c * num_banks + of % num_banks) * most_columns
                                _finish_group(
                                    adding, c * most_columns, accumulator, into, group_sums[of, held, o0 : o0 + columns]
                                )
                                at = (held - core_inputs[c, 0] // group_size) * columns * parameter_bits
                                if parameter_bits:
                                    blocks = (at + columns * parameter_bits - 1) // block_bits - at // block_bits + 1
                                last_block[c, :] = -1
                                wait_ps = max(cores[c].free_ps - begin, 0)
                                cores[c].free_ps = begin + wait_ps + rescale_ps[c]
                                cores[c].num_updates += columns
                                cores[c].num_rescaled += columns
                                cores[c].group = -1
                            if is_last:  # until the unit has rescaled all sums
                                wait_ps, adding_ps = 0, max(cores[c].free_ps - begin, 0)
                            elif not is_end:
                                cores[c].group, cores[c].token = position[e] // group_size, token
                        if not is_end:
                            for p in range(num_planes):
                                if planes[p] >= read_bits[e]:
                                    break
                                row_bits = columns * (planes[p + 1] - planes[p])
                                at = (position[e] - core_inputs[c, 0]) * row_bits
                                from_block = at // block_bits
                                to_block = (at + row_bits - 1) // block_bits
                                blocks += to_block - from_block + 1
                                if from_block == last_block[c, p]:
                                    blocks -= 1
                                last_block[c, p] = to_block
                        cores[c].num_blocks += blocks
                        service += wait_ps + max(blocks * block_ps, adding_ps)
                if jitter:
                    service += (((service * jitter) >> 16) * _mix(seed, s, state[me].serial)) >> 16
                state[me].serial += 1
                state[me].idle = 0
                state[me].num_served += 1
                state[me].num_ends += is_end
                state[me].busy_ps += service
                if num_services:
                    services[recorded].station = s
                    services[recorded].word = state[me].cursor if k == SOURCE else state[me].word
                    services[recorded].begin_ps = begin
                    services[recorded].end_ps = begin + service
                    services[recorded].entered_ps, services[recorded].taken_ps = entered, now
                    services[recorded].cause = began_by
                    state[me].record = recorded
                    recorded += 1
                if begin + service > latest:
                    return -1
                _set_turn(s, ((begin + service) << bits) + s, earliest, size)
                if s == acting:
                    acting = -1

                # The freed place goes to who has waited longest, which may have nothing else to wait for.
                after = -1
                if freed and state[me].wait_length:
                    num_waiting = wait_at[s + 1] - wait_at[s]
                    w = waiting[wait_at[s] + state[me].wait_head]
                    state[me].wait_head = state[me].wait_head + 1 if state[me].wait_head + 1 < num_waiting else 0
                    state[me].wait_length -= 1
                    place = state[me].head + state[me].length
                    slot = np.uintp(queue_at[s] + (place if place < depth[s] else place - depth[s]))
                    queue[slot].word, queue[slot].value = state[w].out_word, state[w].out_value
                    queue[slot].route = state[w].out_route
                    queue[slot].there_ps, queue[slot].record = now + latency_ps[w], state[w].record
                    state[me].length += 1
                    state[w].pending -= 1
                    if state[w].pending == 0:
                        state[w].blocked_ps += now - state[w].since
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
        cause = state[me].record if num_services else -1
        num_going = 0
        goes_out = True
        ended = -1
        # What the end of a service does, by kind.
        if k == SOURCE:
            e = state[me].cursor
            state[me].cursor += 1
            state[me].out_word, state[me].out_value, state[me].out_route = e, -state[me].token, packet_route[e]
        elif k == LINK:
            state[me].out_word, state[me].out_value = state[me].word, state[me].value
            state[me].out_route = state[me].route
        elif k == ACCUMULATE:
            c, e, token = unit[s], state[me].word, -state[me].value - 1
            bank = token % num_banks
            if num_adds[e] >= 0:
                goes_out = False
                o0 = core_outputs[c, 0]
                columns = core_outputs[c, 1] - o0
                at = (c * num_banks + bank) * most_columns
                row = packet_row[e] * num_outputs + o0
                if group_size:
                    _add_row(adding, np.uintp(c * most_columns), weight, np.uintp(row), columns, packet_value[e])
                else:
                    _add_row(accumulator, np.uintp(at), weight, np.uintp(row), columns, packet_value[e])
                cores[c].num_synops += num_adds[e] * columns
                cores[c].num_shifts += num_shifts[e] * columns
                cores[c].num_updates += columns
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
                    state[me].out_word, state[me].out_value, state[me].out_route = token, 0, state[me].route
        elif k == SEND:
            c, o, token = unit[s], state[me].cursor, state[me].word
            bank = token % num_banks
            state[me].cursor += 1
            state[me].out_word, state[me].out_route = token * num_outputs + o, sum_route[c]
            at = (c * num_banks + bank) * most_columns + o - core_outputs[c, 0]
            state[me].out_value = accumulator[at]
            accumulator[at] = 0
        else:
            token, o = state[me].word // num_outputs, state[me].word % num_outputs
            if k == REDUCE:
                bank = token % num_banks
                met[bank, o] += 1
                met_sum[bank, o] += state[me].value
                goes_out = met[bank, o] == num_partial
                if goes_out:
                    state[me].out_word, state[me].out_value = state[me].word, met_sum[bank, o]
                    state[me].out_route = result_route
                    met[bank, o] = 0
                    met_sum[bank, o] = 0
            else:
                goes_out = False
                sums[token, o] = state[me].value
                left[token] -= 1
                ended = token

        if ended >= 0 and left[ended] == 0:
            end_ps[ended] = now
            completed += 1
            services[num_services].cause = cause
            for source in sources:
                if state[source].idle:
                    going[num_going] = source
                    num_going += 1
        if goes_out:
            r = state[me].out_route
            for j in range(next_first[s, r], next_first[s, r] + next_num[s, r]):
                d = next_station[j]
                to = np.uintp(d)
                if state[to].length < depth[d]:
                    state[to].queue_ps += state[to].length * (now - state[to].changed)
                    state[to].changed = now
                    place = state[to].head + state[to].length
                    slot = np.uintp(queue_at[d] + (place if place < depth[d] else place - depth[d]))
                    queue[slot].word, queue[slot].value = state[me].out_word, state[me].out_value
                    queue[slot].route = r
                    queue[slot].there_ps, queue[slot].record = now + latency_ps[s], cause
                    state[to].length += 1
                    state[to].queue_most = max(state[to].queue_most, state[to].length)
                    if state[to].idle:
                        state[to].idle = 0
                        going[num_going] = d
                        num_going += 1
                else:
                    num_waiting = wait_at[d + 1] - wait_at[d]
                    place = state[to].wait_head + state[to].wait_length
                    waiting[wait_at[d] + (place if place < num_waiting else place - num_waiting)] = s
                    state[to].wait_length += 1
                    state[me].pending += 1
        if state[me].pending:
            state[me].since = now
        else:
            going[num_going] = s
            num_going += 1
    return completed
