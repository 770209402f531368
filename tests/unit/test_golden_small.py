"""Against the golden vectors in tests/golden/, which a script of ours works out without spikebrain: never skipped."""

import json
import re
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from made_codes import EXACT

from spikebrain import AdaptiveThreshold, SpikeLinear, decode
from spikebrain.backends import BACKENDS
from spikebrain.coding import ENCODERS
from spikebrain.energy import ModelCounts, PaperEnergy
from spikebrain.energy.counts import LayerCounts, OperationCounts
from spikebrain.models.layers.quantize import quantize
from spikebrain.models.recording.weight_reads import blocks_needed
from spikebrain.models.spikingbrain.gla import chunked_gla, gla, recurrent_gla

FOLDER = Path(__file__).parents[1] / "golden"
MAKE = runpy.run_path(str(FOLDER / "make.py"))


def vectors(name):
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", MAKE["FILES"])
def test_the_script_makes_these_files(name):
    assert MAKE["text_of"](MAKE["FILES"][name]()) == (FOLDER / f"{name}.json").read_text(encoding="utf-8")


def test_every_file_has_its_function():
    assert {path.stem for path in FOLDER.glob("*.json")} == set(MAKE["FILES"])
    imports = re.findall(r"^\s*(?:import|from) (\w+)", (FOLDER / "make.py").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(imports) == {"__future__", "json", "random", "fractions", "pathlib"}


def test_rounding_in_the_script():
    draws = np.random.default_rng(0).standard_normal(200) * 10.0 ** np.arange(-10, 10).repeat(10)
    assert [float(MAKE["float32"](value)) for value in draws] == draws.astype(np.float32).astype(float).tolist()


@pytest.mark.parametrize("case", vectors("neuron"), ids=lambda case: case["name"])
def test_neuron(case):
    zeros = [0] * case["leading_zeros"]
    spikes = AdaptiveThreshold(k=case["k"])(torch.tensor([zeros + case["x"]], dtype=torch.float32))
    assert spikes.threshold.tolist() == [[case["threshold"]]]
    assert spikes.count.tolist() == [zeros + case["counts"]]


@pytest.mark.parametrize("name", EXACT)
def test_codes(name):
    expected, count = vectors("codes")[name], torch.arange(-20, 21)
    encoder, num_timesteps = ENCODERS.create(name).fitted(-20, 20)
    assert num_timesteps == expected["num_timesteps"]
    train = encoder.encode(count, num_timesteps)
    assert train.zero_point == expected["zero_point"]
    assert train.timestep_weight.tolist() == expected["timestep_weights"]
    assert ["".join("-0+"[s + 1] for s in one) for one in train.spikes.T.tolist()] == expected["trains"]
    assert decode(train).tolist() == count.tolist()
    packed = encoder.pack(count, num_timesteps).to_train()
    assert torch.equal(packed.spikes, train.spikes)
    plain = ENCODERS.create(name)
    assert {c: plain.timesteps_for(int(c)) for c in expected["timesteps_for"]} == expected["timesteps_for"]


@pytest.mark.parametrize("case", vectors("linear"), ids=lambda case: f"group_size={case['group_size']}")
def test_linear_layer(case):
    integers, scale = quantize(torch.tensor(case["weight"]), case["group_size"])
    assert integers.tolist() == case["integers"]
    assert scale.tolist() == case["scale"]
    x, outputs = torch.tensor(case["x"]), torch.tensor(case["outputs"], dtype=torch.float64)
    on_cpu = [name for name in BACKENDS if BACKENDS.create(name).why_unavailable(x.device) is None]
    assert {"reference", "cpu"} <= set(on_cpu)
    for backend in on_cpu:
        for encoder in EXACT:
            layer = SpikeLinear(
                integers,
                scale,
                torch.tensor(case["bias"]),
                group_size=case["group_size"],
                neuron=AdaptiveThreshold(k=case["k"]),
                encoder=ENCODERS.create(encoder),
                backend=BACKENDS.create(backend),
            )
            fused, steps = layer(x), []
            layer.observers.append(lambda _, step, steps=steps: steps.append(step))
            stepwise = layer(x)
            (step,) = steps
            assert step.count.tolist() == case["counts"], (backend, encoder)
            assert step.accumulation.tolist() == case["sums"], (backend, encoder)
            for y in (fused, stepwise):  # exact sums; a handful of float32 roundings afterwards
                torch.testing.assert_close(y.double(), outputs, rtol=4e-7, atol=2e-6, msg=f"{backend}, {encoder}")


@pytest.mark.parametrize(
    "run", [gla, recurrent_gla, *(lambda *a, n=n: chunked_gla(*a, chunk_size=n) for n in (1, 2, 16))]
)
def test_gated_linear_attention(run):
    given = {
        name: torch.tensor(value, dtype=torch.float64) for name, value in vectors("gated_linear_attention").items()
    }
    q, k, v = given["q"][None], given["k"][None, :, None], given["v"][None, :, None]  # [B, L, heads, channels]
    o, state = run(q, k, v, given["decay"].log()[None, :, None], given["first_state"][None, None])
    torch.testing.assert_close(o[0], given["outputs"], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(state[0, 0], given["last_state"], rtol=1e-12, atol=1e-12)


def test_energy_of_the_report():
    expected = vectors("energy")
    spiking = OperationCounts(num_activations=100, num_spikes=round(100 * expected["average_spikes"]))
    layer = LayerCounts("projection", spiking, OperationCounts(), OperationCounts(), weight_count=100)
    estimate = PaperEnergy().estimate(ModelCounts({"layer": layer}, 1, "Model", "k=3", "code"))
    for name in ("spike_mac_pj", "saving_vs_fp16", "saving_vs_int8", "ratio_vs_fp16", "ratio_vs_int8"):
        assert getattr(estimate, name) == pytest.approx(expected[name], rel=1e-12), name
    table = PaperEnergy().table
    wide = table["int8_mac"] / (estimate.average_spikes * table["int32_add"])
    assert wide == pytest.approx(expected["ratio_vs_int8_with_int32_sums"], rel=1e-12)
    printed = round(estimate.spike_mac_pj, 3)
    assert f"{1 - printed / 0.23:.1%}" == expected["printed_saving_vs_int8"] == "85.2%"
    assert f"{0.23 / printed:.2f}" == expected["printed_ratio_vs_int8"] == "6.76"


def test_block_reads():
    cases = vectors("block_reads")
    assert len(cases) == 24
    for case in cases:
        active = torch.tensor([[flag == "1" for flag in case["active"]]])
        assert blocks_needed(active, case["row_bytes"], case["block_bytes"]) == case["num_blocks_read"], case
