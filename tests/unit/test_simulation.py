"""A whole model on a chip: stages and what lies between them, portions, energy by layer, what is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from spikebrain.chip import load_description
from spikebrain.energy import EnergyReport
from spikebrain.errors import InputError
from spikebrain.models import SpikeSettings, to_spiking
from spikebrain.models.layers import spike_linear
from spikebrain.models.layers.observing import observing
from spikebrain.models.spikingbrain import LayerPlan, SpikingBrainForCausalLM, tiny_7b
from spikebrain.simulation import describe_simulation, simulate_model, survey_model
from spikebrain.simulation.leakage import used_cores

ASYNC = load_description("async-45nm")
IDS = torch.arange(5)


@pytest.fixture
def spiking(tiny_llama):
    return to_spiking(tiny_llama, SpikeSettings(), inplace=True).eval()


def topology(found):
    """Return layers and dense parts of each stage, names of blocks shortened."""
    stages = [(stage.layers, list(stage.rest)) for stage in found.stages]
    return [tuple(" ".join(names).replace("model.layers.", "") for names in stage) for stage in stages]


def test_stages_of_llama(spiking):
    found = simulate_model(spiking, IDS, ASYNC)
    block = [
        ("{0}.self_attn.q_proj {0}.self_attn.k_proj {0}.self_attn.v_proj", "{0}.input_layernorm"),
        ("{0}.self_attn.o_proj", "{0}.self_attn"),
        ("{0}.mlp.gate_proj {0}.mlp.up_proj", "{0}.post_attention_layernorm"),
        ("{0}.mlp.down_proj", "{0} {0}.mlp"),
    ]
    first, *rest = [tuple(text.format(i) for text in stage) for i in range(2) for stage in block]
    assert topology(found) == [(first[0], f"model.embed_tokens {first[1]}"), *rest, ("", "model.norm lm_head")]


def test_dense_projections_run_where_they_are(tiny_llama):
    policy = SpikeSettings(layers=("*.q_proj", "*.k_proj", "*.v_proj", "*.gate_proj", "*.up_proj"))
    found = simulate_model(to_spiking(tiny_llama, policy), IDS, ASYNC)
    assert topology(found) == [
        ("0.self_attn.q_proj 0.self_attn.k_proj 0.self_attn.v_proj", "model.embed_tokens 0.input_layernorm"),
        ("0.mlp.gate_proj 0.mlp.up_proj", "0.self_attn 0.self_attn.o_proj 0.post_attention_layernorm"),
        ("1.self_attn.q_proj 1.self_attn.k_proj 1.self_attn.v_proj", "0 0.mlp 0.mlp.down_proj 1.input_layernorm"),
        ("1.mlp.gate_proj 1.mlp.up_proj", "1.self_attn 1.self_attn.o_proj 1.post_attention_layernorm"),
        ("", "1 1.mlp 1.mlp.down_proj model.norm lm_head"),
    ]


def test_stages_of_a_hybrid():
    plans = (LayerPlan.parse("gla+swa"), LayerPlan.parse("full"))
    model = to_spiking(SpikingBrainForCausalLM(tiny_7b(layers=plans)))
    found = simulate_model(model, IDS, ASYNC)
    attn = [f"0.attn.{name}_proj" for name in ("q", "k", "v")]
    expected = [
        (" ".join([*attn, "0.attn.gk_proj.0"]), "model.embeddings 0.attn_norm"),
        ("0.attn.gk_proj.1", ""),
        ("0.attn.o_proj", "0.attn linear 0.attn softmax 0.attn branches 0.attn.g_norm 0.attn.s_norm"),
        ("0.mlp.gate_proj 0.mlp.up_proj", "0.mlp_norm after residual"),
        ("0.mlp.down_proj", "0 0.mlp"),
        ("1.attn.q_proj 1.attn.k_proj 1.attn.v_proj", "1.attn_norm"),
        ("1.attn.o_proj", "1.attn softmax"),
        ("1.mlp.gate_proj 1.mlp.up_proj", "1.mlp_norm after residual"),
        ("1.mlp.down_proj", "1 1.mlp"),
        ("", "model.norm lm_head"),
    ]
    assert topology(found) == expected
    assert all(layer.num_mismatches == 0 for layer in found.layers.values())


class Parallel(nn.Module):
    """y = b(norm(a(x))) + c(x) + d(copy of x): c shares its input with a but runs after b; d has an equal one."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(16, 8)
        self.a, self.b, self.c, self.d = (nn.Linear(8, 8) for _ in range(4))
        self.norm = nn.LayerNorm(8)

    def forward(self, input_ids, use_cache):
        x = self.embedding(input_ids)
        return self.b(self.norm(self.a(x))) + self.c(x) + self.d(x.clone())


def test_layers_share_a_stage_if_they_were_handed_the_same_tensor():
    model = to_spiking(Parallel()).eval()
    decode, prefill = (simulate_model(model, IDS, ASYNC, mode=mode) for mode in ("decode", "prefill"))
    for found in (decode, prefill):
        assert topology(found) == [("a c", "embedding"), ("b", "norm"), ("d", ""), ("", "")]
        assert found.layers.keys() == {"a", "b", "c", "d"}
        assert all(layer.num_mismatches == 0 for layer in found.layers.values())
    assert prefill.end_ps[0] == decode.end_ps[0]
    assert prefill.end_ps[-1] < decode.end_ps[-1]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["decode", "prefill"])
def test_portions_of_spikes_change_nothing(spiking, mode, monkeypatch):
    whole = simulate_model(spiking, IDS, ASYNC, mode=mode)
    monkeypatch.setattr(spike_linear, "_PORTION_BYTES", 400)  # one or two tokens a step
    seen = []
    with observing([spiking.model.layers[0].mlp.down_proj], lambda _, step: seen.append(step)):
        parts = simulate_model(spiking, IDS, ASYNC, mode=mode)
    assert len(seen) > 2 * 2  # several steps in each of the two runs
    assert topology(parts) == topology(whole)
    assert parts.energy_pj == whole.energy_pj
    assert np.array_equal(parts.end_ps, whole.end_ps)
    assert sum(layer.num_sums for layer in parts.layers.values()) == 5 * 2 * (24 + 12 + 12 + 24 + 40 + 40 + 24)
    assert all(layer.num_mismatches == 0 for layer in parts.layers.values())


@pytest.mark.parametrize("mode", ["decode", "prefill"])
def test_energy_report(spiking, mode):
    found = simulate_model(spiking, IDS, ASYNC, mode=mode)
    report = found.energy_report()
    assert report.total_pj == pytest.approx(sum(found.energy_pj.values()), rel=1e-12)
    assert report.parts == pytest.approx({name: pj for name, pj in found.energy_pj.items() if pj}, rel=1e-12)
    # A layer has what its own simulation found, but leakage is that of the whole chip for the whole time.
    for name, layer in found.layers.items():
        own = {part: pj for part, pj in layer.activity.energy_pj(ASYNC).items() if pj and part != "leakage"}
        assert report.layers[name] == own
    assert report.layers["leakage of the chip"] == {
        "leakage": ASYNC.num_cores * int(found.end_ps[-1]) * ASYNC.core.leakage_mw * 1e-3
    }
    assert report.layers["lm_head"].keys() == report.layers["model.layers.1.self_attn"].keys() == {"dense rest"}
    first, *after, last = found.stages
    assert "transfer to model.layers.0.self_attn.q_proj" not in report.layers  # nothing comes before it
    for stage in after:
        one = sum(stage.transfer.energy_pj(ASYNC).values())
        assert report.by_layer_pj[f"transfer to {stage.layers[0]}"] == pytest.approx(one)
    assert len(report.layers) == 14 + 7 + sum(len(stage.rest) for stage in (first, *after, last)) + 1
    assert (report.num_tokens, report.num_macs, report.process) == (5, found.activity.num_macs, "45 nm")
    written = json.loads(json.dumps(describe_simulation(found)))["energy_report"]
    assert EnergyReport.from_dict(written) == report


@pytest.mark.parametrize("mode", ["decode", "prefill"])
def test_a_head_on_spikes_has_cores_of_its_own(tiny_llama, mode):
    dense = simulate_model(to_spiking(tiny_llama), IDS, ASYNC, mode=mode)
    found = simulate_model(to_spiking(tiny_llama, SpikeSettings(include_head=True)), IDS, ASYNC, mode=mode)
    assert topology(dense)[-1] == ("", "model.norm lm_head")
    assert topology(found)[-2:] == [("lm_head", "model.norm"), ("", "")]
    head = found.layers["lm_head"]
    assert head.num_mismatches == 0
    out_features, in_features = tiny_llama.lm_head.weight.shape
    assert found.activity.num_macs - dense.activity.num_macs == 5 * out_features * in_features
    assert all(stage.spread_ps == 0 for stage in found.stages)
    # What is left dense, by kind; with rescaling it is the whole component.
    left, before = describe_simulation(found), describe_simulation(dense)
    parts, all_parts = left["dense_rest_per_token_pj"], before["dense_rest_per_token_pj"]
    assert all_parts.keys() - parts.keys() == {"lm_head"}
    assert parts.keys() == {
        "rescaling",
        "model.embed_tokens",
        "model.norm",
        "model.layers.*",
        *(f"model.layers.*.{part}" for part in ("input_layernorm", "post_attention_layernorm", "self_attn", "mlp")),
    }
    assert list(parts.values()) == sorted(parts.values(), reverse=True)
    for figures, its in ((left, parts), (before, all_parts)):
        assert sum(its.values()) == pytest.approx(figures["energy_per_token_pj"]["dense rest"], rel=1e-12)


def with_core(chip, **values):
    return replace(chip, core=replace(chip.core, **values))


@pytest.mark.parametrize("mode", ["decode", "prefill"])
def test_cores_that_sleep_and_cores_that_are_switched_off(spiking, mode):
    awake = simulate_model(spiking, IDS, ASYNC, mode=mode)
    total, used = int(awake.end_ps[-1]), sum(len(layer.placement.cores) for layer in awake.layers.values())
    assert used == 14 < ASYNC.num_cores  # a layer of tiny_llama fits one core
    # Only what holds no weights is switched off, but for the head, which runs on all tiles.
    off = simulate_model(spiking, IDS, with_core(ASYNC, off_share=0.0), mode=mode)
    head_ps = 5 * off.stages[-1].spread_ps
    assert head_ps > 0
    assert off.activity.leaking_core_ps == used * total + (1024 - used) * head_ps
    assert off.activity.off_core_ps == (1024 - used) * (total - head_ps)
    assert off.activity.num_wakes == off.activity.sleeping_core_ps == 0
    # Sleep: a core is awake for its own layer, 1 ns before it, at home for what lies between, and for the head.
    chip = with_core(ASYNC, sleep_share=0.25, off_share=0.125, wake_pj=7.0, wake_ns=1.0)
    found = simulate_model(spiking, IDS, chip, mode=mode)
    assert np.array_equal(found.end_ps, awake.end_ps)
    a, wakes = found.activity, 5 if mode == "decode" else 1
    expected = used * head_ps
    homes = set()
    for stage in found.stages:
        layers = [found.layers[name] for name in stage.layers]
        for layer in layers:
            begin = layer.end_ps - layer.latency_ps
            own = layer.latency_ps.sum() if mode == "decode" else layer.end_ps[-1] - begin[0]
            expected += min(int(own) + 1000 * wakes, total)
        here = {layer.placement.home for layer in layers}
        expected += len(homes | here) * 5 * (stage.rest_ps + stage.transfer_ps - stage.spread_ps)
        homes = here
    assert a.num_wakes == wakes * used
    assert a.leaking_core_ps == min(expected, used * total) + (1024 - used) * head_ps
    assert a.leaking_core_ps + a.sleeping_core_ps + a.off_core_ps == 1024 * total == awake.activity.leaking_core_ps
    leaked = a.leaking_core_ps + a.sleeping_core_ps / 4 + a.off_core_ps / 8
    assert found.energy_pj["leakage"] == pytest.approx(leaked * 1e-3 + 7 * a.num_wakes)
    assert "sleep while their layer does nothing" in describe_simulation(found)["assumptions"][-1]
    assert describe_simulation(awake)["assumptions"][-1] == "the whole chip leaks for the whole time"
    # Nothing else changes.
    assert {**found.energy_pj, "leakage": 0} == {**awake.energy_pj, "leakage": 0}


@pytest.mark.parametrize("mode", ["decode", "prefill"])
def test_spikes_that_were_kept_serve_every_chip(spiking, mode, monkeypatch):
    small = replace(ASYNC, packet=replace(ASYNC.packet, payload="spike"))
    alone = [simulate_model(spiking, IDS, chip, mode=mode) for chip in (ASYNC, small)]
    surveyed = survey_model(spiking, IDS)
    monkeypatch.setattr(spiking, "forward", None)  # it does not run again
    for before, chip in zip(alone, (ASYNC, small), strict=True):
        again = simulate_model(spiking, IDS, chip, mode=mode, surveyed=surveyed)
        assert topology(again) == topology(before)
        assert again.activities == before.activities
        assert np.array_equal(again.end_ps, before.end_ps)
        assert again.energy_report() == before.energy_report()
        assert all(layer.num_mismatches == 0 for layer in again.layers.values())
    with pytest.raises(InputError, match="has none"):
        survey_model(nn.Linear(2, 2), IDS)


def test_streamed_layers_take_turns_on_the_same_cores(spiking):
    found = simulate_model(spiking, IDS, with_core(ASYNC, sleep_share=0.5, off_share=0.5), stream=True)
    most = max(len(layer.placement.cores) for layer in found.layers.values())
    assert used_cores(layer.placement for layer in found.layers.values()) == most < 14
