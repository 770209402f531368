"""A whole small model on the chip, and the command."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import spikebrain
from spikebrain.backends import Chip
from spikebrain.chip import (
    ByRate,
    load_description,
)
from spikebrain.cli.app import app
from spikebrain.energy import PaperEnergy, count_operations
from spikebrain.errors import InputError
from spikebrain.models import SpikeLinear, SpikeSettings
from spikebrain.models.conversion import to_spiking
from spikebrain.models.layers.observing import observing
from spikebrain.models.recording import record
from spikebrain.simulation.describe import describe_simulation
from spikebrain.simulation.model import simulate_model
from spikebrain.simulation.orders import learn_orders
from spikebrain.simulation.times import held_up_by, time_by_kind

ASYNC = load_description("async-45nm")


@pytest.fixture
def spiking(tiny_llama):
    return to_spiking(tiny_llama, SpikeSettings(), inplace=True).eval()


def test_ideal_chip_equals_the_papers_estimate(spiking):
    ids = torch.arange(6)
    with record(spiking) as recording, torch.inference_mode():
        spiking(input_ids=ids[None], use_cache=False)
    paper = PaperEnergy().estimate(count_operations(recording))
    found = simulate_model(spiking, ids, load_description("ideal-45nm"))
    for name, layer in found.layers.items():
        assert sum(layer.activity.energy_pj(found.chip).values()) == paper.layers[name]["additions"]
    assert sum(found.energy_pj.values()) == found.activity.num_synops * 0.03 == pytest.approx(paper.total_pj, rel=1e-14)
    assert describe_simulation(found)["energy_per_mac_pj"]["paper"] == paper.spike_mac_pj
    assert int(found.end_ps[-1]) == 0


@pytest.mark.parametrize("mode", ["decode", "prefill"])
def test_a_whole_model(spiking, mode):
    ids = torch.arange(5)
    found = simulate_model(spiking, ids, ASYNC, mode=mode, trace=True, timelines=["model.layers.0.mlp.up_proj"])
    report = json.loads(json.dumps(describe_simulation(found)))
    outputs = sum(m.out_features for m in spiking.modules() if isinstance(m, SpikeLinear))
    assert report["exactness"] == {"num_checked": 5 * outputs, "num_mismatches": 0}
    # q, k and v; o; gate and up; down; of two blocks, and what comes after them.
    assert [len(stage.layers) for stage in found.stages] == [3, 1, 2, 1] * 2 + [0]
    assert sum(report["energy_per_token_pj"].values()) == pytest.approx(2 * report["energy_per_token_pj"]["total"])
    assert (np.diff(found.end_ps) > 0).all()
    if mode == "decode":
        between = sum(stage.transfer_ps + stage.rest_ps for stage in found.stages)
        slowest = sum(max(found.layers[n].latency_ps[0] for n in stage.layers) for stage in found.stages[:-1])
        assert found.end_ps[0] == between + slowest
    else:
        alone = simulate_model(spiking, ids, ASYNC, mode="decode")
        assert found.end_ps[-1] < alone.end_ps[-1]
        assert found.end_ps[0] == alone.end_ps[0]
    assert [name for name, kept in found.timelines.items() if kept.outcome.trace] == ["model.layers.0.mlp.up_proj"]
    held_up, times = held_up_by(found), time_by_kind(found)
    assert bool(held_up) == (mode == "decode")
    for kind, stations in held_up.items():
        # The path is that of the layer which is slowest on average.
        assert sum(stations.values()) <= times[kind]
        assert sum(stations.values()) == pytest.approx(times[kind]) or " " in kind
    row = report["layers"][0]
    assert len(row["cores"]) == row["num_cores"]
    assert row["queues"].keys() >= row["links"].keys()


@pytest.mark.slow
def test_orders_are_learned_from_what_fires(spiking):
    ids = torch.arange(12)
    rates = {}
    layers = {name: module for name, module in spiking.named_modules() if isinstance(module, SpikeLinear)}
    for name, layer in layers.items():
        with observing([layer], lambda _, step, name=name: rates.update({name: (step.count != 0).sum(0).numpy()})):
            spiking(input_ids=ids[None], use_cache=False)
    orders = learn_orders(spiking, ids, ByRate())
    assert orders.keys() == layers.keys()
    for name, order in orders.items():
        assert (np.diff(rates[name][order]) <= 0).all()
    found = simulate_model(spiking, ids, ASYNC, orders=orders)
    assert all(layer.num_mismatches == 0 for layer in found.layers.values())


def test_what_is_refused(spiking, as_users):
    ids = torch.arange(3)
    with pytest.raises(InputError, match="expected one of decode, prefill"):
        simulate_model(spiking, ids, ASYNC, mode="train")
    with pytest.raises(InputError, match="timelines: expected a spiking layer such as"):
        simulate_model(spiking, ids, ASYNC, timelines=["nowhere"])
    with pytest.raises(InputError, match="has none"):
        simulate_model(torch.nn.Linear(2, 2), ids, ASYNC)
    with pytest.raises(InputError, match="permutation"):
        simulate_model(spiking, ids, ASYNC, orders={"model.layers.0.mlp.up_proj": np.zeros(24, np.int64)})
    with pytest.raises(InputError, match="at least one token"):
        simulate_model(spiking, ids[:0], ASYNC)
    with pytest.raises(InputError, match=r"mapping: expected .* one of the names .*in-order"):
        Chip(mapping="nowhere")
    # Told before anything runs.
    for wrong in (-1.0, float("nan"), 101.0):
        with pytest.raises(InputError, match=r"^jitter: expected a share"):
            simulate_model(spiking, ids, ASYNC, jitter=wrong)
        with pytest.raises(InputError, match=r"^jitter: expected a share"):
            Chip(jitter=wrong)
    with pytest.raises(InputError, match=r"^seed: expected an integer"):
        Chip(seed=-1)


def test_spike_linear_on_a_chip():
    layer = torch.nn.Linear(8, 4)
    x = torch.randn(3, 8)
    seen = []
    on_chip = SpikeLinear.from_linear(layer, backend=Chip("async-45nm", on_simulation=seen.append))
    assert torch.equal(on_chip(x), SpikeLinear.from_linear(layer)(x))
    assert len(seen) == 1
    assert seen[0].latency_ps.min() > 0
    with pytest.raises(spikebrain.SpikebrainError, match="payload_bits = 2"):
        SpikeLinear.from_linear(layer, backend=Chip(replace(ASYNC, packet=replace(ASYNC.packet, payload_bits=2))))(
            10 * x
        )


@pytest.mark.slow
def test_command(model_folder, tmp_path):
    text, out = tmp_path / "text.txt", tmp_path / "out"
    text.write_text("A neuron fires when its potential passes the threshold, and rests. " * 4)
    arguments = ["simulate", str(model_folder), "--text", str(text), "--num-tokens", "5", "--out", str(out)]
    first = "model.layers.0.mlp.down_proj"
    result = CliRunner().invoke(
        app, [*arguments, "--include-head", "--critical-path", "--order", "by-rate", "--timeline", first]
    )
    assert result.exit_code == 0, result.output
    report = json.loads((out / "simulation.json").read_text())
    assert report["exactness"]["num_checked"] > report["exactness"]["num_mismatches"] == 0
    assert report["order"]["name"] == "by-rate"
    assert report["settings"]["include_head"] is True
    assert report["layers"][-1]["name"] == "lm_head"
    assert "Left dense: " in result.output
    assert "lm_head" not in result.output
    assert all(sum(row["critical_path_ps"].values()) > 0 for row in report["layers"])
    assert report["num_timeline_events"] > 0
    assert (out / "timeline.pftrace").stat().st_size > report["num_timeline_events"]
    assert all((out / name).stat().st_size > 1000 for name in ("energy.png", "time.png", "mesh.png"))
    # A text too short for what was asked.
    text.write_text("A")
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code != 0
    assert "--text: expected at least" in str(result.exception)
    for order in ("as-given", "by-rate"):
        result = CliRunner().invoke(app, [*arguments, "--num-tokens", "-4", "--order", order])
        assert "--num-tokens: expected 1 or more, got -4" in str(result.exception)


def test_command_refuses_bad_input(tmp_path):
    for arguments, message in (
        (["--mode", "train"], "--mode: expected one of"),
        (["--chip", "truenorth"], "chip: expected one of"),
        (["--mapping", "best"], "--mapping: expected one of"),
        (["--order", "random"], "--order: expected one of as-given, by-rate, together"),
        (["--encoder", "morse"], "--encoder: expected one of"),
    ):
        result = CliRunner().invoke(app, ["simulate", *arguments, "--out", str(tmp_path)])
        assert result.exit_code != 0
        assert message in str(result.exception)
