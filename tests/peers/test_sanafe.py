"""Loihi's energy and time: SANA-FE against the equations, which our chip is compared with too.

Where the two differ on purpose, or by a fault of theirs, it is a test with a sentence.
"""

from __future__ import annotations

from dataclasses import asdict, fields, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import yaml
from loihi_equations import LoihiCosts, LoihiExpectation, loihi_expected
from sanafe_loihi import description, load_chip, silenced, simulate

from spikebrain.chip import CoreTile, Placement, load_description, simulate_layer

sanafe = pytest.importorskip("sanafe", reason="pip install 'spikebrain[snn]'")

PARTS = ("synapse", "dendrite", "soma", "network", "total")
ENERGY_TOLERANCE, TIME_TOLERANCE = 1e-3, 1e-2  # asked for; they agree to 1e-9
EXACT = 1e-9
LOIHI = LoihiCosts()
# Every cost its own: a north hop taken for a south hop, or an update for an access, would show.
DISTINCT = LoihiCosts(
    **{f.name: 1.0 + 0.37 * i + 0.011 * i**2 for i, f in enumerate(fields(LoihiCosts)) if f.name != "barrier_ns"},
    barrier_ns={1: 3.0, 3: 5.0, 5: 7.0},
)


def random_net(seed: int) -> dict:
    """Draw a chip of up to 4 x 3 tiles, a net of up to 12 x 20 on it and a train of up to 7 timesteps."""
    rng = np.random.default_rng(seed)
    columns, rows, cores_per_tile = (int(rng.integers(1, high)) for high in (5, 4, 5))
    num_sources, num_outputs, num_timesteps = (int(rng.integers(1, high)) for high in (13, 21, 8))
    num_cores = columns * rows * cores_per_tile
    num_used = int(rng.integers(1, num_cores + 1))
    spikes = rng.random((num_timesteps + 2, num_sources)) < rng.choice([0.1, 0.5, 0.9])
    spikes[-2:] = False  # what the last spikes leave behind
    return {
        "mesh": {"columns": columns, "rows": rows, "cores_per_tile": cores_per_tile},
        # Weights of 0 and sums of 0 are frequent in every other net.
        "weight": rng.integers(-1, 2, (num_sources, num_outputs))
        if seed % 2
        else rng.integers(-127, 128, (num_sources, num_outputs)),
        "spikes": spikes,
        "source_core": rng.integers(0, num_cores, num_sources),
        "output_core": rng.choice(rng.choice(num_cores, num_used, replace=False), num_outputs),
        "threshold": float(rng.choice([np.inf, 1.0, 60.0])),
        "sources_cost": bool(rng.integers(2)),
    }


def both(net: dict, costs: LoihiCosts, **chip) -> tuple[LoihiExpectation, list[dict]]:
    """Return what the equations expect of a net, and SANA-FE's result of each timestep."""
    mesh = net["mesh"]
    layers = {key: value for key, value in net.items() if key != "mesh"}
    loaded = load_chip(description(costs, **mesh, num_inputs=len(net["source_core"]), **chip), **layers)
    expected = loihi_expected(**layers, costs=costs, mesh_rows=mesh["rows"], cores_per_tile=mesh["cores_per_tile"])
    return expected, simulate(loaded, net["spikes"], sources_cost=net["sources_cost"])


def energy_pj(results: list[dict], part: str = "total") -> np.ndarray:
    return np.array([r["energy"][part] for r in results]) * 1e12


def time_ns(results: list[dict]) -> np.ndarray:
    return np.array([r["sim_time"] for r in results]) * 1e9


def test_costs_are_those_of_its_own_preset():
    preset = yaml.safe_load(Path(sanafe.__file__).with_name("examples").joinpath("loihi.yaml").read_text())
    chip = preset["architecture"]
    hops, core = chip["tile"][0]["attributes"], chip["tile"][0]["core"][0]

    def unit(kind: str, name: str) -> dict:
        return next(u["attributes"] for u in core[kind] if u["name"] == name)

    synapse, soma = unit("synapse", "loihi_dense_synapse"), unit("soma", "loihi_lif")
    dendrite = unit("dendrite", "loihi_dendrites")
    message_in, message_out = core["axon_in"][0]["attributes"], core["axon_out"][0]["attributes"]
    theirs = {
        **{f"{side}_pj": hops[f"energy_{side}_hop"] * 1e12 for side in ("north", "south", "east", "west")},
        "north_south_ns": hops["latency_north_hop"] * 1e9,
        "east_west_ns": hops["latency_east_hop"] * 1e9,
        "receive_pj": message_in["energy_message_in"] * 1e12,
        "receive_ns": message_in["latency_message_in"] * 1e9,
        "synapse_pj": synapse["energy_process_spike"] * 1e12,
        "synapse_ns": synapse["latency_process_spike"] * 1e9,
        "dendrite_pj": dendrite["energy_update"] * 1e12,
        "dendrite_ns": dendrite["latency_update"] * 1e9,
        "access_pj": soma["energy_access_neuron"] * 1e12,
        "access_ns": soma["latency_access_neuron"] * 1e9,
        "update_pj": soma["energy_update_neuron"] * 1e12,
        "update_ns": soma["latency_update_neuron"] * 1e9,
        "spike_pj": soma["energy_spike_out"] * 1e12,
        "spike_ns": soma["latency_spike_out"] * 1e9,
        "send_pj": message_out["energy_message_out"] * 1e12,
        "send_ns": message_out["latency_message_out"] * 1e9,
    }
    ours = asdict(LOIHI)
    barrier_ns = ours.pop("barrier_ns")
    assert ours == pytest.approx(theirs)
    assert barrier_ns == pytest.approx({n: s * 1e9 for n, s in chip["attributes"]["latency_sync"].items()})


@pytest.mark.parametrize("seed", range(30))
def test_random_nets_on_loihi(seed):
    expected, theirs = both(random_net(seed), LOIHI)
    assert energy_pj(theirs).sum() == pytest.approx(expected.total_pj.sum(), rel=ENERGY_TOLERANCE)
    assert time_ns(theirs).sum() == pytest.approx(expected.time_ns.sum(), rel=TIME_TOLERANCE)


@pytest.mark.parametrize("seed", range(100, 130))
def test_every_part_and_timestep_with_costs_that_all_differ(seed):
    expected, theirs = both(random_net(seed), DISTINCT)
    for part in PARTS:
        ours = getattr(expected, f"{part}_pj")
        np.testing.assert_allclose(energy_pj(theirs, part), ours, rtol=EXACT, atol=1e-9, err_msg=part)
    np.testing.assert_allclose(time_ns(theirs), expected.time_ns, rtol=EXACT)
    assert [r["packets_sent"] for r in theirs] == expected.num_packets.tolist()
    assert [r["spikes"] for r in theirs] == expected.num_synops.tolist()


def test_random_nets_cover_what_the_equations_say():
    # Otherwise the tests above could pass without a firing output, several cores, or a core with both layers.
    nets = [random_net(seed) for seed in range(30)]
    assert {net["sources_cost"] for net in nets} == {False, True}
    assert any(set(net["source_core"]) & set(net["output_core"]) for net in nets)
    assert len({len({c // net["mesh"]["cores_per_tile"] for c in net["output_core"]}) for net in nets}) >= 4
    keys = ("weight", "spikes", "source_core", "output_core", "threshold", "sources_cost")
    expected = [
        loihi_expected(
            **{key: net[key] for key in keys},
            costs=LOIHI,
            mesh_rows=net["mesh"]["rows"],
            cores_per_tile=net["mesh"]["cores_per_tile"],
        )
        for net in nets
    ]
    assert sum(e.fired.any() for e in expected) >= 5


@pytest.mark.parametrize(
    "name", [f.name for f in fields(LoihiCosts) if f.name not in ("north_south_ns", "east_west_ns", "barrier_ns")]
)
def test_a_cost_that_is_one_percent_off_is_found(name):
    """Each cost reaches SANA-FE's total: the comparison fails if the equations use another number for it."""
    net = random_net(100) | {
        "mesh": {"columns": 2, "rows": 2, "cores_per_tile": 1},
        "weight": np.full((2, 4), 5),
        "spikes": np.array([[1, 1], [0, 0]]),
        "source_core": [0, 3],
        "output_core": [0, 0, 3, 3],
        "threshold": 2.0,
        "sources_cost": True,
    }
    # Large latencies of processing keep the time of generation out of the maximum, and the other way round.
    processing = name in ("receive_ns", "synapse_ns", "dendrite_ns")
    base = replace(DISTINCT, **dict.fromkeys(("receive_ns", "synapse_ns", "dendrite_ns"), 1000.0) if processing else {})
    expected, _ = both(net, base)
    _, theirs = both(net, replace(base, **{name: getattr(base, name) * 1.01}))
    measure, ours = (time_ns, expected.time_ns) if name.endswith("_ns") else (energy_pj, expected.total_pj)
    assert measure(theirs).sum() > ours.sum() * (1 + 10 * EXACT)


def test_one_spike_at_one_synapse():
    # Timestep 0: send 111.0, synapse 35.5, access of the output 51.2. Processing 16.0 + 3.8 ns is longer than
    # generation, 6.0 + 5.1 ns. Timestep 1: access and update. Timestep 2: v = 3 is kept, hence an update again.
    net = {
        "mesh": {"columns": 1, "rows": 1, "cores_per_tile": 1},
        "weight": np.array([[3]]),
        "spikes": np.array([[1], [0], [0]]),
        "source_core": [0],
        "output_core": [0],
        "threshold": np.inf,
        "sources_cost": False,
    }
    expected, theirs = both(net, LOIHI)
    for pj, ns in ((expected.total_pj, expected.time_ns), (energy_pj(theirs), time_ns(theirs))):
        np.testing.assert_allclose(pj, [197.7, 72.8, 72.8])
        np.testing.assert_allclose(ns, [619.8, 609.7, 609.7])
    # The spike leaves nothing behind if the weight is 0, but it is processed, and the neuron updated once.
    expected, theirs = both(net | {"weight": np.array([[0]])}, LOIHI)
    np.testing.assert_allclose(expected.total_pj, [197.7, 72.8, 51.2])
    np.testing.assert_allclose(energy_pj(theirs), [197.7, 72.8, 51.2])


@pytest.mark.parametrize(
    ("tiles", "ns"), [(1, 600.0), (2, 1000.0), (3, 1000.0), (4, 1400.0), (28, 1400.0), (29, 1800.0)]
)
def test_barrier_is_a_staircase(tiles, ns):
    net = {
        "mesh": {"columns": 8, "rows": 4, "cores_per_tile": 1},
        "weight": np.zeros((1, tiles), dtype=int),
        "spikes": np.zeros((1, 1), dtype=int),
        "source_core": [0],
        "output_core": list(range(tiles)),
        "threshold": np.inf,
        "sources_cost": False,
    }
    expected, theirs = both(net, LOIHI)
    np.testing.assert_allclose(expected.time_ns, [ns + 6.0])  # each core accesses its one neuron
    np.testing.assert_allclose(time_ns(theirs), [ns + 6.0])


def test_known_fault_only_the_last_axon_unit_is_paid_for():
    # With two units for either direction, all packets take the first and SANA-FE's network is left with the hops.
    expected, theirs = both(random_net(102) | {"sources_cost": False}, DISTINCT, num_axon_units=2)
    packets_pj = expected.num_packets.sum() * (DISTINCT.send_pj + DISTINCT.receive_pj)
    assert packets_pj > 0
    assert energy_pj(theirs, "network").sum() == pytest.approx(expected.network_pj.sum() - packets_pj, abs=1e-6)


def test_known_fault_a_latency_trace_holds_energy():
    net = random_net(102)
    text = description(LOIHI, **net["mesh"], num_inputs=len(net["source_core"]))
    text = text.replace("{model: current_based,", "{log_energy: true, log_latency: true, model: current_based,")
    layers = {key: value for key, value in net.items() if key != "mesh"} | {"sources_cost": False}
    chip = load_chip(text, **layers)
    with silenced():
        trace = chip.sim(len(net["spikes"]), timing_model="simple", processing_threads=1, perf_trace=True)["perf_trace"]
    energies = {key: trace[key] for key in trace if key.endswith("synapses.energy")}
    assert np.sum(list(energies.values())) > 0
    for key, energy in energies.items():
        assert trace[key.replace(".energy", ".latency")] == energy


@pytest.mark.parametrize("seed", range(200, 230))
def test_our_chip_equals_sanafe_on_random_two_layer_nets(seed):
    """Our event-driven Loihi takes SANA-FE's energy, and what it calls `simple` time.

    The sources are inputs, which cost their packets only; ours would charge their spikes to them. Ours has no core that
    both sends and adds. SANA-FE runs each timestep of the one token by itself.
    """
    rng = np.random.default_rng(seed)
    columns, rows, cores_per_tile = 4, 3, int(rng.integers(1, 5))
    num_sources, num_outputs, num_timesteps = (int(rng.integers(1, high)) for high in (13, 21, 8))
    cores = rng.permutation(columns * rows * cores_per_tile)
    num_senders, num_receivers = (
        int(rng.integers(1, min(4, num_sources) + 1)),
        int(rng.integers(1, min(5, num_outputs) + 1)),
    )
    sending, receiving = cores[:num_senders], cores[num_senders : num_senders + num_receivers]
    weight = rng.integers(-127, 128, (num_sources, num_outputs))
    spikes = rng.random((num_timesteps, num_sources)) < rng.choice([0.1, 0.5, 0.9])

    def tile(core):
        return divmod(int(core) // cores_per_tile, rows)

    sent, held = _blocks(num_sources, num_senders), _blocks(num_outputs, num_receivers)
    net = {
        "mesh": {"columns": columns, "rows": rows, "cores_per_tile": cores_per_tile},
        "weight": weight,
        "spikes": spikes,
        "source_core": [int(core) for core, block in zip(sending, sent, strict=True) for _ in block],
        "output_core": [int(core) for core, block in zip(receiving, held, strict=True) for _ in block],
        "threshold": np.inf,
        "sources_cost": False,
    }
    _, theirs = both(net, LOIHI)

    loihi = load_description("loihi")
    chip = replace(loihi, encoder=replace(loihi.encoder, spike_pj=0.0, spike_ns=0.0))
    chip = replace(chip, mesh=replace(chip.mesh, columns=columns, rows=rows, cores_per_tile=cores_per_tile))
    placement = Placement(
        origin=(0, 0),
        columns=columns,
        rows=rows,
        home=(0, 0),
        cores=tuple(CoreTile(tile(c), range(num_sources), block) for c, block in zip(receiving, held, strict=True)),
        num_input_blocks=1,
        sources=tuple((tile(c), block) for c, block in zip(sending, sent, strict=True)),
    )
    found = simulate_layer(
        spikes[:, None].astype(np.int8), np.ones(num_timesteps), weight.astype(np.int8), chip, placement
    )
    np.testing.assert_array_equal(found.sums[0], spikes.sum(0) @ weight)
    assert sum(found.energy_pj.values()) == pytest.approx(energy_pj(theirs).sum(), rel=ENERGY_TOLERANCE)
    np.testing.assert_allclose(found.simple_ps[0] / 1000, time_ns(theirs), rtol=TIME_TOLERANCE)
    # What events take is never less than the busiest core and the barrier, but for visits to neurons.
    assert found.latency_ps[0] >= num_timesteps * 600_000


def _blocks(total: int, num: int) -> list[range]:
    ends = [i * total // num for i in range(num + 1)]
    return [range(a, b) for a, b in pairwise(ends)]
