"""Timelines are read back by Perfetto's own classes: slices nest, times and counters are right, flows follow spikes."""

import itertools
from collections import Counter, defaultdict
from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest
import torch
from torch import nn

from spikebrain import AdaptiveThreshold, SpikeLinear, jobs, record
from spikebrain.chip import InOrder, load_description, simulate_layer
from spikebrain.errors import InputError
from spikebrain.exchange import write_chip_timeline, write_recording_timeline

perfetto = pytest.importorskip("perfetto", reason="the extra `timeline` is not installed")


class Read:
    """A trace, parsed back: names of tracks, slices (name, begin, end, depth, details, flows), values of counters."""

    def __init__(self, path):
        from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import Trace, TrackEvent  # noqa: PLC0415

        self.names, self.parents, self.slices, self.counters = {}, {}, defaultdict(list), defaultdict(list)
        packets = Trace.FromString(path.read_bytes()).packet
        assert all(packet.timestamp >= 0 for packet in packets)
        for packet in packets:
            if packet.HasField("track_descriptor"):
                found = packet.track_descriptor
                assert found.uuid not in self.names
                assert not found.parent_uuid or found.parent_uuid in self.names
                self.names[found.uuid], self.parents[found.uuid] = found.name, found.parent_uuid
        events = sorted((p for p in packets if p.HasField("track_event")), key=lambda p: p.timestamp)  # as its reader
        open_slices = defaultdict(list)
        for packet in events:
            event, track = packet.track_event, packet.track_event.track_uuid
            assert track in self.names
            if event.type == TrackEvent.TYPE_COUNTER:
                self.counters[self.names[track]].append((packet.timestamp, event.counter_value))
            elif event.type == TrackEvent.TYPE_SLICE_BEGIN:
                details = {n.name: getattr(n, n.WhichOneof("value")) for n in event.debug_annotations}
                depth = len(open_slices[track])
                open_slices[track].append((event.name, packet.timestamp, depth, details, list(event.flow_ids)))
            else:
                assert event.type == TrackEvent.TYPE_SLICE_END
                name, begin, depth, details, flows = open_slices[track].pop()  # each end has its begin
                self.slices[self.names[track]].append((name, begin, packet.timestamp, depth, details, flows))
        assert not any(open_slices.values())


@pytest.fixture(scope="module")
def simulation():
    rng = np.random.default_rng(0)
    chip = load_description("async-45nm")
    spikes = rng.integers(-1, 2, (3, 1, 1200)).astype(np.int8)  # more channels than a core has room for
    weight = rng.integers(-127, 128, (1200, 300)).astype(np.int8)
    placement = InOrder().place(1200, 300, chip)
    return simulate_layer(spikes, np.array([4, 2, 1]), weight, chip, placement, trace=True)


@pytest.fixture(scope="module")
def written(simulation, tmp_path_factory):
    """The number of services that were written, and the file, read back."""
    path = tmp_path_factory.mktemp("timeline") / "t.pftrace"
    return write_chip_timeline({"a layer": simulation}, path), Read(path)


def test_a_chip_timeline_holds_every_service(simulation, written):
    num_services, read = written
    trace, network = simulation.outcome.trace, simulation.network
    assert read.names[1] == "a layer on async-45nm"
    assert num_services == len(trace.station) == sum(map(len, read.slices.values())) > 100
    for s, station in enumerate(network.names):
        mine = trace.station == s
        begun = sorted(zip(trace.begin_ps[mine].tolist(), trace.end_ps[mine].tolist(), strict=True))
        found = read.slices[station]
        exact = sorted((d["begin_ps"], d["begin_ps"] + d["duration_ps"]) for *_, d, _ in found)
        assert exact == begun
        for _, begin, end, depth, details, _ in found:
            assert depth == 0  # a station serves one packet at a time
            assert begin == details["begin_ps"] // 1000
            assert end == (details["begin_ps"] + details["duration_ps"]) // 1000


def test_flows_follow_a_spike_from_its_encoder_to_the_cores(simulation, written):
    _, read = written
    ways = defaultdict(list)
    for station, found in read.slices.items():
        for name, begin, _, _, details, flows in found:
            assert len(flows) <= 1
            for flow in flows:
                ways[flow].append((begin, station, name, details["count"]))
    is_spike = simulation.traffic.num_adds >= 0
    assert ways.keys() == set((np.flatnonzero(is_spike) + 1).tolist())
    for way in ways.values():
        stations = [station for _, station, _, _ in sorted(way)]
        assert stations[0].startswith("source")
        assert any(station.startswith("accumulate") for station in stations)
        assert len({(name, count) for *_, name, count in way}) == 1  # the same channel all the way
    assert any(station.startswith("spike link") for way in ways.values() for _, station, *_ in way)


def test_counters_of_a_chip_end_at_zero_and_agree_with_the_slices(written):
    _, read = written
    values = read.counters["busy: accumulate"]
    assert values[-1][1] == 0
    assert all(a[1] != b[1] for a, b in itertools.pairwise(values))
    spans = [(b, e) for name, found in read.slices.items() if name.startswith("accumulate") for _, b, e, *_ in found]
    for time_ns, busy in values:
        assert busy == sum(begin <= time_ns < end for begin, end in spans)


@pytest.mark.slow
def test_flows_of_two_layers_are_kept_apart(simulation, written, tmp_path):
    num_services, alone = written
    assert write_chip_timeline({"a": simulation, "b": simulation}, tmp_path / "t.pftrace") == 2 * num_services
    both = Read(tmp_path / "t.pftrace")
    roots = {uuid: name for uuid, name in both.names.items() if not both.parents[uuid]}
    assert [*roots.values()] == ["a on async-45nm", "b on async-45nm"]

    def lengths(read):
        return Counter(flow for found in read.slices.values() for *_, flows in found for flow in flows)

    assert sorted(lengths(both).values()) == sorted([*lengths(alone).values()] * 2)


@pytest.mark.slow
def test_a_pattern_names_the_layers(model_folder, text, tmp_path):
    of = {"model": str(model_folder), "text": text, "num_tokens": 2}
    found = jobs.simulate(jobs.SimulateSettings(**of, timeline="*.0.mlp.*"), tmp_path / "out")
    read = Read(tmp_path / "out" / "timeline.pftrace")
    roots = [name for uuid, name in read.names.items() if not read.parents[uuid]]
    assert roots == [f"model.layers.0.mlp.{kind}_proj on async-45nm" for kind in ("gate", "up", "down")]
    assert found.figures["num_timeline_events"] == sum(map(len, read.slices.values()))
    assert found.figures["queue_steps"]["layer"] == roots[0].partition(" ")[0]  # all three are as large
    bad = {
        "nowhere": r"timeline 'nowhere': expected a pattern that matches",
        "*": "timeline: expected at most 8 .* 14,",
    }
    for pattern, message in bad.items():
        with pytest.raises(InputError, match=message):
            jobs.simulate(jobs.SimulateSettings(**of, timeline=pattern), tmp_path / "no")


def test_a_simulation_without_a_trace_is_refused(simulation, tmp_path):
    bare = replace(simulation, outcome=replace(simulation.outcome, trace=None))
    with pytest.raises(InputError, match="expected a simulation with trace=True"):
        write_chip_timeline({"a layer": bare}, tmp_path / "t.pftrace")


def test_a_recording_timeline(tmp_path):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    layers = [SpikeLinear.from_linear(linear, neuron=AdaptiveThreshold(k=2.0)) for linear in model]
    model = nn.Sequential(*layers)
    x = torch.tensor([[1.0, -1.0, 4.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    with torch.no_grad(), record(model, keep_trains=True) as recording:
        model(x)
        model(x[:1])
    assert write_recording_timeline(recording, tmp_path / "t.pftrace", ["A", " neuron", "."]) == 4
    read = Read(tmp_path / "t.pftrace")
    # Counts of the first layer: threshold 0.75 gives 1, -1, 5, 0: 3 timesteps; the second token twos.
    first = recording.trains["0"][0]
    assert first.num_timesteps == 3
    of_layer = sorted(read.slices["0"], key=lambda s: (s[1], s[3]))
    assert [(name, begin, end, depth) for name, begin, end, depth, *_ in of_layer[:3]] == [
        ("2 tokens", 0, 6000, 0),
        ("token 0 'A'", 0, 3000, 1),
        ("token 1 ' neuron'", 3000, 6000, 1),
    ]
    assert of_layer[1][4]["spikes"] == int(first.spikes[:, 0].count_nonzero()) == 4
    # The second layer begins where the first one ends, and a call spans both.
    assert min(begin for _, begin, *_ in read.slices["1"]) == 6000
    calls = sorted(read.slices["calls of the model"], key=lambda s: s[1])
    assert [name for name, *_ in calls] == ["call 0", "call 1"]
    assert calls[0][2] == calls[1][1] == max(e for _, b, e, *_ in read.slices["1"] if b < calls[1][1])
    # One counter a layer, both of the same name: the values add up to the spikes, a timestep each.
    assert Counter(read.names.values())["spikes"] == 2
    assert calls[0][4]["spikes"] == sum(recording.trains[name][0].num_spikes for name in "01")


def test_the_counter_of_a_layer_gives_its_spikes_per_timestep(tmp_path):
    layer = SpikeLinear.from_linear(nn.Linear(6, 2))
    with torch.no_grad(), record(layer, keep_trains=True) as recording:
        layer(torch.randn(3, 6, generator=torch.Generator().manual_seed(1)))
    write_recording_timeline(recording, tmp_path / "t.pftrace")
    values = Read(tmp_path / "t.pftrace").counters["spikes"]
    train = recording.spikes_of("")
    expected = (train.spikes != 0).sum(2).t().flatten().tolist()
    for t, count in enumerate(expected):
        assert [value for time_ns, value in values if time_ns <= 1000 * t][-1] == count
    assert values[-1] == (1000 * len(expected), 0)


def test_nothing_to_write(tmp_path):
    layer = SpikeLinear.from_linear(nn.Linear(6, 2))
    with torch.no_grad(), record(layer) as recording:
        layer(torch.ones(1, 6))
    with pytest.raises(InputError, match=r"expected trains, got none\. Use record"):
        write_recording_timeline(recording, tmp_path / "t.pftrace")


def test_the_export_command(run, model_folder, text, tmp_path):
    out = tmp_path / "t.pftrace"
    code, shown, err = run("export", model_folder, "--text", text, "--num-tokens", 8, "--out", out)
    assert code == 0, err
    assert "timeline for Perfetto: 14 spiking layers, 8 tokens" in shown
    read = Read(out)
    assert len(read.slices["model.layers.1.mlp.down_proj"]) == 9
    code, _, err = run("export", model_folder, "--trains", "--out", out, "--force")
    assert code == 2
    assert "--trains: has no effect on t.pftrace" in err


def test_without_the_package(run, model_folder, text, tmp_path, monkeypatch):
    def without(name, *rest):
        if name.partition(".")[0] == "perfetto":
            raise ImportError("no module named perfetto")
        return import_module(name, *rest)

    monkeypatch.setattr("spikebrain.lazy.import_module", without)
    code, _, err = run("export", model_folder, "--text", text, "--out", tmp_path / "t.pftrace")
    assert code == 2
    assert "[timeline]'" in err
    typed = ("--text", text, "--num-tokens", 3, "--timeline", "model.layers.0.mlp.up_proj", "--out", tmp_path / "s")
    code, _, err = run("simulate", model_folder, *typed)
    assert code == 2
    assert "--timeline: needs perfetto" in err
    assert not (tmp_path / "s").exists()
