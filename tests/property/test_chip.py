"""The chip: both implementations agree event for event, integers are exact, nothing ever waits for itself."""

import dataclasses
import itertools
import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spikebrain.backends import Reference
from spikebrain.backends.chip import Chip
from spikebrain.chip import MAPPINGS, ORDERS, chip_names, load_description, num_packet_hops, simulate_layer
from spikebrain.chip.mapping import CoreTile, Placement
from spikebrain.chip.network import build_network
from spikebrain.chip.parts import to_ps
from spikebrain.chip.traffic import build_traffic
from spikebrain.coding import ENCODERS
from spikebrain.testing import check_chip, check_mapping
from spikebrain.testing.chips import changed, check_simulation, exact, jobs
from spikebrain.testing.laws import try_law

PRESETS = {name: load_description(name) for name in chip_names()}


def services(trace, num_stations):
    """Return the services of each station, in order: what, from when to when."""
    found = [[] for _ in range(num_stations)]
    columns = (trace.station, trace.begin_ps, trace.end_ps, trace.entered_ps, trace.taken_ps, trace.word)
    for station, *rest in zip(*columns, strict=True):
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
    trace = fast.outcome.trace
    waited = np.bincount(trace.station, weights=trace.taken_ps - trace.entered_ps, minlength=num_stations)
    np.testing.assert_array_equal(waited, fast.outcome.queue_ps, err_msg="what packets wait is what queues hold")
    for field in dataclasses.fields(fast.outcome):
        if field.name != "trace":
            got, expected = getattr(fast.outcome, field.name), getattr(plain.outcome, field.name)
            np.testing.assert_array_equal(got, expected, err_msg=field.name)
    assert fast.energy_pj == plain.energy_pj
    np.testing.assert_array_equal(fast.sums, exact(*arguments[:3], options["coarse"]))


# CHIP_EXAMPLES=10000 tries as many chips and layers.
@pytest.mark.slow
def test_exact_and_accounted_for():
    try_law(lambda job: check_simulation(job, compare=False), int(os.environ.get("CHIP_EXAMPLES", "300")), job=jobs())


@pytest.mark.slow
@pytest.mark.parametrize("preset", list(PRESETS))
def test_every_preset(preset):
    check_chip(preset, examples=20)


@pytest.mark.slow
@pytest.mark.parametrize("mapping", list(MAPPINGS))
def test_every_mapping(mapping):
    check_mapping(mapping, examples=20)


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
    # A core reads less when packets of one block come one after another, and waits for its unit where groups end.
    if arguments[4].weights.group_size is None and np.array_equal(shaken.outcome.num_blocks, steady.outcome.num_blocks):
        assert (shaken.outcome.busy_ps >= steady.outcome.busy_ps).all()


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
