"""Experts and sink tokens on a chip: a token's events go to the cores of its experts; sinks have run before."""

import numpy as np
import pytest
import torch
from transformers import MixtralConfig, MixtralForCausalLM

import spikebrain as sb
from spikebrain import jobs
from spikebrain.chip import load_description
from spikebrain.errors import InputError
from spikebrain.jobs.progress import Silent
from spikebrain.models import spiking_layers
from spikebrain.models.spikingbrain import SpikingBrainForCausalLM, tiny_7b, tiny_76b
from spikebrain.simulation import simulate_model, survey_model
from spikebrain.simulation.calls import begin
from spikebrain.simulation.describe import describe_simulation
from spikebrain.simulation.leakage import used_cores

ASYNC, SLICED = load_description("async-45nm"), load_description("sliced-45nm")
IDS = torch.arange(6)


def hybrid(**changes):
    """Return a small hybrid whose routers tell tokens apart."""
    torch.manual_seed(0)
    model = SpikingBrainForCausalLM(tiny_76b(**changes)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("router.weight"):
                parameter.normal_()
    return model


def chosen_by(model, ids):
    """Return which tokens each expert gets, by the name of the expert, from the routers themselves."""
    found, handles = {}, []
    for name, module in model.named_modules():
        if name.endswith(".router"):

            def see(_, __, logits, name=name):
                for e in range(logits.shape[1]):
                    tokens = (logits.float().softmax(-1).topk(1, -1).indices == e).any(-1).nonzero().flatten()
                    found[name.replace("router", f"experts.{e}")] = tokens.tolist()

            handles.append(module.register_forward_hook(see))
    with torch.inference_mode():
        model(ids[None], **begin(model, ids))
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("num_sinks", [0, 3])
@pytest.mark.parametrize("mode", ["decode", "prefill"])
def test_experts_see_their_own_tokens(mode, num_sinks):
    model = sb.to_spiking(hybrid(num_sinks=num_sinks))
    assert model.config.settings.num_experts_per_token == 1
    chosen = chosen_by(model, IDS)
    assert len({len(tokens) for tokens in chosen.values()}) > 1
    found = simulate_model(model, IDS, SLICED, mode=mode, trace=True)
    assert sum(layer.num_mismatches for layer in found.layers.values()) == 0
    layers = spiking_layers(model)
    for name, layer in layers.items():
        tokens = chosen.get(name.rpartition(".")[0], list(range(6)))
        if not tokens:
            assert name in found.idle
            assert name not in found.layers
            continue
        one = found.layers[name]
        assert one.num_tokens == len(tokens)
        assert one.num_sums == len(tokens) * layer.out_features
        assert one.activity.num_macs == len(tokens) * layer.in_features * layer.out_features
        assert np.flatnonzero(one.latency_ps).tolist() == tokens
    assert found.placements.keys() == layers.keys()
    report = found.energy_report()
    assert report.total_pj == pytest.approx(sum(found.energy_pj.values()))
    described = describe_simulation(found)
    assert described["idle_layers"] == list(found.idle)
    assert described["num_cores"]["mapped"] == sum(len(placement.cores) for placement in found.placements.values())
    again = simulate_model(model, IDS, SLICED, mode=mode, surveyed=survey_model(model, IDS))
    assert again.energy_pj == found.energy_pj
    assert np.array_equal(again.end_ps, found.end_ps)


def test_stages_of_experts():
    model = sb.to_spiking(hybrid(num_sinks=0))
    chosen = chosen_by(model, IDS)
    found = simulate_model(model, IDS, ASYNC)
    of_experts = [stage for stage in found.stages if any(".experts." in name for name in stage.layers)]
    mixtures = {name.rpartition(".experts.")[0] for name in chosen}
    assert len(of_experts) == 2 * len(mixtures)
    for first, last in zip(of_experts[::2], of_experts[1::2], strict=True):
        # All that read the same tokens run at the same time, shared experts among them; then all that read these.
        assert {name.rpartition(".")[2] for name in first.layers} == {"gate_proj", "up_proj"}
        assert {name.rpartition(".")[2] for name in last.layers} == {"down_proj"}
        assert len(first.layers) == 2 * len(last.layers)
        assert any(".shared." in name for name in last.layers)
        # Gate and up go to the home of their own expert's last projection, for its own tokens.
        sent = 0
        for name in last.layers:
            expert = name.rpartition(".")[0]
            num_tokens = len(chosen.get(expert, IDS))
            for projection in ("gate_proj", "up_proj"):
                start = found.layers[f"{expert}.{projection}"].placement
                if start.home != found.layers[name].placement.home:
                    sent += num_tokens * start.cores[-1].outputs.stop
        assert last.transfer.num_sent == sent > 0
    between = sum(stage.transfer_ps + stage.rest_ps for stage in found.stages)
    slowest = [max(found.layers[name].latency_ps[0] for name in stage.layers) for stage in found.stages[:-1]]
    assert found.end_ps[0] == between + sum(slowest)


def test_idle_experts_keep_their_weights():
    model = sb.to_spiking(hybrid(num_sinks=0))
    found = simulate_model(model, IDS[:1], SLICED)
    assert found.idle
    total = int(found.end_ps[-1])
    a = found.activity
    awake_or_asleep = a.leaking_core_ps + a.sleeping_core_ps
    used = used_cores(found.placements.values())
    assert a.off_core_ps <= (SLICED.num_cores - used) * total
    assert awake_or_asleep + a.off_core_ps == SLICED.num_cores * total
    assert a.num_wakes == sum(len(layer.placement.cores) for layer in found.layers.values())


def test_sinks_have_run_before():
    torch.manual_seed(0)
    model = sb.to_spiking(SpikingBrainForCausalLM(tiny_7b(num_sinks=4))).eval()
    with torch.inference_mode():
        assert torch.equal(model(IDS[None], **begin(model, IDS)).logits, model(IDS[None]).logits)
    found = survey_model(model, IDS)
    assert {call.train.spikes.shape[1] for call in found.calls} == {6}
    # Each of 6 tokens sees 4 sinks besides those before it and itself: 6 * 4 + 21, where the window has room.
    pairs = {part.num_pairs for name, part in found.recording.modules.items() if name.endswith("softmax")}
    assert pairs == {6 * 4 + 21}
    for mode in ("decode", "prefill"):
        layers = simulate_model(model, IDS, ASYNC, mode=mode).layers
        assert sum(layer.num_mismatches for layer in layers.values()) == 0
        assert {layer.num_tokens for layer in layers.values()} == {6}


@pytest.mark.parametrize("settings", [sb.SpikeSettings(), sb.SpikeSettings(weights="int4", coarse=((2, 2),))])
def test_experts_of_transformers(settings):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = MixtralConfig(vocab_size=300, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2, **sizes)
    model = sb.to_spiking(MixtralForCausalLM(config).eval(), settings)
    found = simulate_model(model, IDS, ASYNC)
    assert sum(layer.num_mismatches for layer in found.layers.values()) == 0
    last = [layer for name, layer in found.layers.items() if ".experts." in name and "down_proj" in name]
    assert sum(layer.num_tokens for layer in last) == 6 * 2
    assert sum(any(".experts." in name for name in stage.layers) for stage in found.stages) == 2


def test_experts_that_are_one_set_of_weights_are_refused():
    plain = SpikingBrainForCausalLM(tiny_76b(num_sinks=0, equal_experts=True)).eval()
    model = sb.to_spiking(plain)
    with pytest.raises(
        InputError, match=r"expected one call of .*experts\.0.* unshare_experts\(model\), before to_spiking"
    ):
        simulate_model(model, IDS, ASYNC)
    sb.unshare_experts(plain)
    found = simulate_model(sb.to_spiking(plain), IDS, ASYNC)
    assert sum(layer.num_mismatches for layer in found.layers.values()) == 0


@pytest.mark.slow
def test_the_job_gives_equal_experts_cores_of_their_own(model_folder, text, tmp_path):
    mixture, said, progress = tmp_path / "mixture", [], Silent()
    teacher, tokenizer, _ = sb.load(model_folder)
    sb.save(sb.from_transformer(teacher, "gla+full/moe,gla", num_experts=3), mixture, tokenizer)
    progress.say = said.append
    found = jobs.simulate(jobs.SimulateSettings(str(mixture), text=text, num_tokens=3), tmp_path / "out", progress)
    assert "All experts of a layer are one set of weights: each gets a copy, on cores of its own." in said
    figures = found.figures
    assert figures["exactness"]["num_mismatches"] == 0 < figures["exactness"]["num_checked"]
    placed = [layer["name"] for layer in figures["layers"]] + figures["idle_layers"]
    assert sum(".experts." in name for name in placed) == 9
    options, objectives = {"k": [2.0, 3.0], "chip_tokens": 4}, ("chip_energy_nj",)
    swept = jobs.sweep(jobs.SweepSettings(options, str(mixture), text, 8, 8, objectives), tmp_path / "sweep")
    assert [row.figures["chip_energy_nj"] > 0 for row in swept.rows] == [True, True]
    assert sb.load(mixture).model.settings.equal_experts  # the file is as it was
