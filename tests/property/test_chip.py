"""The chip: both implementations agree event for event, integers are exact, nothing ever waits for itself."""

import dataclasses
import itertools
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spikebrain.backends import Reference
from spikebrain.backends.chip import Chip
from spikebrain.chip import MAPPINGS, ORDERS, load_description, num_packet_hops, simulate_layer
from spikebrain.chip.mapping import CoreTile, Placement
from spikebrain.chip.network import LINK, build_network
from spikebrain.chip.parts import to_ps
from spikebrain.chip.traffic import build_traffic
from spikebrain.coding import ENCODERS

PRESETS = {name: load_description(name) for name in ("ideal-45nm", "async-45nm", "loihi")}


def changed(chip, **parts):
    """Return a chip with some values of its parts replaced: core={"lanes": 1}, say."""
    return replace(chip, **{part: replace(getattr(chip, part), **values) for part, values in parts.items()})


@st.composite
def chips(draw):
    """Small chips of every kind: tiny queues, little memory, several cores a tile, times that tie."""
    chip = draw(st.sampled_from(list(PRESETS.values())))
    depth = st.integers(1, 3)
    time = st.sampled_from([0.0, 0.001, 0.5, 1.0, 3.7])
    chip = changed(
        chip,
        mesh={"cores_per_tile": draw(st.integers(1, 3)), "columns": 16, "rows": 16},
        packet={"multicast": draw(st.booleans())},
        link={
            "queue_packets": draw(depth),
            "bandwidth_bits_per_ns": draw(st.sampled_from([0.0, 16.0])),
            "east_west_ns": draw(time),
        },
        core={
            "sram_bytes": draw(st.sampled_from([100, 200, 500, 10_000])),
            "block_bytes": draw(st.sampled_from([1, 4, 64])),
            "queue_packets": draw(depth),
            "accumulator_banks": draw(st.integers(1, 3)),
            "lanes": draw(st.integers(1, 8)),
            "add_ns": draw(time),
            "access_ns": draw(time),
            "sums_travel": draw(st.booleans()),
        },
        encoder={"lanes": draw(st.integers(1, 4)), "round_ns": draw(time)},
        digital={"queue_packets": draw(depth)},
    )
    return chip


@st.composite
def jobs(draw):
    """A layer, placed, its train and weights."""
    chip = draw(chips())
    num_inputs, num_outputs = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    mapping = MAPPINGS.create(draw(st.sampled_from(list(MAPPINGS))))
    placement = mapping.place(num_inputs, num_outputs, chip, height=draw(st.integers(1, 4)))
    if draw(st.booleans()) and num_inputs > 1:  # two senders, on different tiles
        cut = draw(st.integers(1, num_inputs - 1))
        other = (placement.columns - 1, placement.rows - 1)
        placement = replace(placement, sources=((placement.home, range(cut)), (other, range(cut, num_inputs))))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    spikes = rng.choice(
        np.array([-1, 0, 0, 1], np.int8), (draw(st.integers(1, 3)), draw(st.integers(1, 4)), num_inputs)
    )
    timestep_weight = rng.choice([1, 1, 2, 3, 4, -4], len(spikes))
    weight = rng.integers(-128, 128, (num_inputs, num_outputs)).astype(np.int8)
    options = {
        "overlap": draw(st.booleans()),
        "jitter": draw(st.sampled_from([0.0, 0.0, 0.3, 2.0])),
        "seed": draw(st.integers(0, 2**64 - 1)),
        "arrival_ps": np.sort(rng.integers(0, 20_000, spikes.shape[1])) if draw(st.booleans()) else None,
    }
    return (spikes, timestep_weight, weight, chip, placement), options


def exact(spikes, timestep_weight, weight):
    return np.einsum("t,tln,nm->lm", timestep_weight, spikes.astype(np.int64), weight.astype(np.int64))


def services(trace, num_stations):
    """Return the services of each station, in order: what, from when to when."""
    found = [[] for _ in range(num_stations)]
    for station, *rest in zip(trace.station, trace.begin_ps, trace.end_ps, trace.word, strict=True):
        found[station].append(tuple(int(v) for v in rest))
    return [sorted(each) for each in found]


def plain_packets(sender, spikes, timestep_weight, placement, network, chip):
    """Return a row of packets (position, value, additions, shifts, route, service) for each token of one sender."""
    encoder, sent = chip.encoder, placement.senders[sender][1]
    base = chip.handshake.ps + (0 if chip.packet.multicast else to_ps(chip.core.send_ns))
    if chip.barrier.tiles:  # timesteps are tokens
        windows = [([w], spikes[t : t + 1, i]) for i in range(spikes.shape[1]) for t, w in enumerate(timestep_weight)]
    else:
        windows = [(list(timestep_weight), spikes[:, i]) for i in range(spikes.shape[1])]
    for weights, window in windows:
        row, groups = [], [list(sent)[i : i + encoder.lanes] for i in range(0, len(sent), encoder.lanes)]
        owed = len(groups) * to_ps(encoder.mean_ns) + to_ps(encoder.threshold_ns)
        for group in groups:
            owed += to_ps(encoder.round_ns)
            for n in group:
                fired = [(w, s) for w, s in zip(map(int, weights), window[:, n].tolist(), strict=True) if s]
                packets = [(w * s, abs(w).bit_count(), abs(w).bit_count() - (w & 1)) for w, s in fired]
                if chip.packet.payload == "count" and not chip.barrier.tiles and fired:
                    packets = [tuple(map(sum, zip(*packets, strict=True)))]
                block = next(i for i, inputs in enumerate(placement.input_blocks) if n in inputs)
                for packet in packets:
                    owed += to_ps(encoder.spike_ns)
                    for route in network.spike_routes[sender][block]:
                        row.append((n, *packet, route, owed + base))
                        owed = 0
        for route in network.end_routes[sender]:
            row.append((0, 0, -1, 0, route, owed + (0 if network.free_ends else base)))
            owed = 0
        yield row


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(jobs())
def test_packets_are_those_of_a_plain_loop(job):
    arguments, _ = job
    spikes, timestep_weight, _, chip, placement = arguments
    network = build_network(placement, chip)
    traffic = build_traffic(spikes, np.asarray(timestep_weight, np.int64), placement, network, chip)
    columns = ("position", "value", "num_adds", "num_shifts", "route", "service_ps")
    found = list(zip(*(getattr(traffic, name).tolist() for name in columns), strict=True))
    assert len(found) == traffic.num_sent == traffic.first[-1, -1]
    for sender in range(len(placement.senders)):
        expected = list(plain_packets(sender, spikes, timestep_weight, placement, network, chip))
        assert traffic.num_tokens == len(expected)
        for row, (first, stop) in zip(expected, itertools.pairwise(traffic.first[sender].tolist()), strict=True):
            assert found[first:stop] == row


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(jobs())
def test_both_implementations_agree_event_for_event(job):
    arguments, options = job
    fast = simulate_layer(*arguments, **options, trace=True)
    plain = simulate_layer(*arguments, **options, trace=True, implementation="simpy")
    num_stations = fast.network.num_stations
    assert services(fast.outcome.trace, num_stations) == services(plain.outcome.trace, num_stations)
    for field in dataclasses.fields(fast.outcome):
        if field.name != "trace":
            got, expected = getattr(fast.outcome, field.name), getattr(plain.outcome, field.name)
            np.testing.assert_array_equal(got, expected, err_msg=field.name)
    assert fast.energy_pj == plain.energy_pj
    np.testing.assert_array_equal(fast.sums, exact(*arguments[:3]))


# CHIP_EXAMPLES=10000 tries as many chips and layers.
@pytest.mark.slow
@settings(max_examples=int(os.environ.get("CHIP_EXAMPLES", "300")), deadline=None)
@given(jobs())
def test_exact_and_accounted_for(job):
    arguments, options = job
    spikes, timestep_weight, weight, chip, _placement = arguments
    found = simulate_layer(*arguments, **options, trace=True)
    np.testing.assert_array_equal(found.sums, exact(spikes, timestep_weight, weight))
    outcome, network = found.outcome, found.network
    # Nothing is lost or made: every spike's additions reach every output once.
    ones = np.array([abs(int(w)).bit_count() for w in timestep_weight])
    assert outcome.num_synops.sum() == int(ones @ np.abs(spikes).sum((1, 2))) * weight.shape[1]
    # Queues never hold more than fits, no station is busy longer than the simulation lasts.
    assert (outcome.queue_most <= network.depth).all()
    duration = int(outcome.end_ps.max())
    assert (outcome.busy_ps + outcome.blocked_ps <= duration).all()
    assert (outcome.queue_ps <= network.depth * duration).all()
    # A link leads to the next tile, and links of a route hang together; everything else stays where it is.
    for station, (start, end) in enumerate(network.tiles):
        assert abs(start[0] - end[0]) + abs(start[1] - end[1]) == (network.kind[station] == LINK)
        for r in range(network.next_num.shape[1]):
            at = network.next_first[station, r]
            for following in network.next_station[at : at + network.next_num[station, r]]:
                assert network.tiles[following][0] == end
    # A token begins when its input is there, and tokens end in order; without overlap one after the other.
    assert (np.diff(outcome.end_ps) >= 0).all()
    assert (outcome.end_ps >= outcome.begin_ps).all()
    if options["arrival_ps"] is not None and not chip.barrier.tiles:
        assert (found.begin_ps >= options["arrival_ps"]).all()
    if not options["overlap"]:
        assert (outcome.begin_ps[1:] >= outcome.end_ps[:-1]).all()
    # The critical path is a chain of services and wires without gaps.
    assert sum(found.critical_path_ps().values()) == duration
    # Twice the energies, twice the energy.
    doubled = {}
    for part in (f.name for f in dataclasses.fields(chip) if dataclasses.is_dataclass(getattr(chip, f.name))):
        values = vars(getattr(chip, part))
        doubled[part] = {k: 2 * v for k, v in values.items() if k.endswith(("_pj", "_mw"))}
    twice = found.activity.energy_pj(changed(chip, **doubled))
    assert twice == {name: 2 * value for name, value in found.energy_pj.items()}


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(jobs(), st.integers(0, 2**32))
def test_jitter_moves_times_only(job, seed):
    arguments, options = job
    steady = simulate_layer(*arguments, **options | {"jitter": 0.0})
    shaken = simulate_layer(*arguments, **options | {"jitter": 1.0, "seed": seed})
    again = simulate_layer(*arguments, **options | {"jitter": 1.0, "seed": seed})
    np.testing.assert_array_equal(shaken.sums, steady.sums)
    np.testing.assert_array_equal(shaken.outcome.end_ps, again.outcome.end_ps)
    assert (shaken.outcome.busy_ps >= steady.outcome.busy_ps).all() or arguments[3].core.block_bytes > 1


@pytest.mark.parametrize("encoder", list(ENCODERS))
@pytest.mark.parametrize("preset", list(PRESETS))
@pytest.mark.parametrize("mapping", list(MAPPINGS))
def test_every_preset_code_and_mapping_equals_reference(preset, encoder, mapping):
    count = torch.tensor([[0, 3, -2, 1, 7, 0, -1], [0, 0, 0, 0, 0, 0, 0], [9, -9, 1, 1, 0, 2, 5]])
    code, num_timesteps = ENCODERS.create(encoder).fitted(-9, 9)
    train = code.encode(count, num_timesteps)
    weight = torch.randint(-127, 128, (9, 7), dtype=torch.int8)
    chip = changed(PRESETS[preset], core={"sram_bytes": 120, "queue_packets": 1}, link={"queue_packets": 1})
    for jitter in (0.0, 1.0):
        backend = Chip(chip, mapping=MAPPINGS.create(mapping), jitter=jitter, seed=7)
        assert torch.equal(backend.accumulate(train, weight), Reference().accumulate(train, weight))


@pytest.mark.slow
@settings(max_examples=50, deadline=None)
@given(st.integers(0, 6), st.integers(0, 8), st.integers(0, 2**32))
def test_orders_are_permutations_and_change_no_sum(num_tokens, num_channels, seed):
    rng = np.random.default_rng(seed)
    active = rng.random((num_tokens, num_channels)) < 0.4
    chip = PRESETS["async-45nm"]
    for name in ORDERS:
        order = ORDERS.create(name).order(active)
        assert sorted(order.tolist()) == list(range(num_channels))
        if num_tokens and num_channels:
            placement = MAPPINGS.create("in-order").place(num_channels, 3, chip)
            weight = rng.integers(-128, 128, (num_channels, 3)).astype(np.int8)
            spikes = active[None].astype(np.int8)
            found = simulate_layer(spikes, np.ones(1), weight, chip, placement, order=order)
            np.testing.assert_array_equal(found.sums, exact(spikes, np.ones(1, np.int64), weight))


def test_minimal_traffic_has_no_more_hops_than_in_order():
    chip = changed(PRESETS["async-45nm"], core={"sram_bytes": 20_000})
    for shape in ((576, 576), (576, 192), (100, 700), (63, 577)):
        hops = {name: num_packet_hops(MAPPINGS.create(name).place(*shape, chip)) for name in MAPPINGS}
        assert hops["minimal-traffic"] <= hops["in-order"], (shape, hops)


def test_one_queue_in_closed_form():
    """One sender, one core, one queue. 5 packets, one every 2 ns, 3 ns each in the core: the n-th ends at 2 + 3 n."""
    zero = {f.name: 0.0 for f in dataclasses.fields(PRESETS["ideal-45nm"].encoder) if f.name.endswith("_ns")}
    chip = changed(
        PRESETS["ideal-45nm"], encoder={**zero, "spike_ns": 2.0}, core={"receive_ns": 3.0, "queue_packets": 100}
    )
    placement = Placement((0, 0), 1, 1, (0, 0), (CoreTile((0, 0), range(5), range(1)),), 1)
    found = simulate_layer(
        np.ones((1, 1, 5), np.int8), np.ones(1), np.ones((5, 1), np.int8), chip, placement, trace=True
    )
    core = found.network.names.index("accumulate 0")
    begin, end = (
        times[found.outcome.trace.station == core]
        for times in (found.outcome.trace.begin_ps, found.outcome.trace.end_ps)
    )
    # Packet n = 1 ... 5 arrives at 2 n ns; the end of the token follows the last spike at once and is a packet, too.
    assert begin.tolist() == [2000, 5000, 8000, 11000, 14000, 17000]
    assert end.tolist() == [5000, 8000, 11000, 14000, 17000, 20000]
    # In the queue: packet n waits from 2 n to 2 + 3 (n - 1): 0, 1, 2, 3, 4 ns; the end from 10 to 17.
    assert found.outcome.queue_ps[core] == (0 + 1 + 2 + 3 + 4 + 7) * 1000
    assert found.outcome.busy_ps[core] == 18000
    assert found.sums.tolist() == [[5]]
