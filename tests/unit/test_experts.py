"""Fused experts of transformers on spikes: which tokens they get, what they compute, and what is counted."""

import json

import pytest
import torch
from fast_first import fast_first
from torch import nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM

from spikebrain import SpikeSettings, load, record, save, to_spiking
from spikebrain.energy import DigitalEnergy, ModelCounts, count_operations
from spikebrain.errors import InputError
from spikebrain.models import spike_aware, spiking_layers, to_dense
from spikebrain.models.layers.experts import Experts, unfuse

SIZES = {
    "vocab_size": 61,
    "hidden_size": 24,
    "intermediate_size": 40,
    "moe_intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "num_local_experts": 4,
    "num_experts": 4,
    "num_experts_per_tok": 2,
}
IDS = torch.arange(3, 14)[None]


def tiny(model_type="mixtral", **changes):
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **{**SIZES, **changes})).eval()


class Fused(nn.Module):
    """Fused experts as transformers writes them, 3 experts of 8 channels."""

    def __init__(self, act=F.silu, factor=1.0):
        super().__init__()
        self.gate_up_proj, self.down_proj = nn.Parameter(torch.randn(3, 12, 8)), nn.Parameter(torch.randn(3, 8, 6))
        self.act_fn, self.factor = act, factor

    def forward(self, hidden_states, top_k_index, top_k_weights):
        y = torch.zeros_like(hidden_states)
        for token, (experts, weights) in enumerate(zip(top_k_index, top_k_weights, strict=True)):
            for e, weight in zip(experts.tolist(), weights, strict=True):
                if e < 3:
                    gate, up = F.linear(hidden_states[token], self.gate_up_proj[e]).chunk(2)
                    y[token] += self.factor * weight * F.linear(self.act_fn(gate) * up, self.down_proj[e])
        return y


class Layer(nn.Module):
    """A model of nothing but experts, with routes that the caller gives."""

    def __init__(self, experts):
        super().__init__()
        self.experts, self.last = experts, nn.Linear(8, 8)

    def forward(self, x, index, weight):
        return self.last(self.experts(x, index, weight))


def routes():
    return torch.randn(5, 8), torch.tensor([[0, 1], [1, 0], [1, 3], [0, 1], [3, 3]]), torch.rand(5, 2)


def test_unfused_experts_compute_the_same():
    fused = Fused()
    experts = unfuse(fused)
    assert isinstance(experts, Experts)
    given = routes()  # index 3 is no expert: transformers' mark of a route that another device takes
    torch.testing.assert_close(experts(*given), fused(*given))


def test_each_expert_gets_its_tokens_and_no_others():
    spiking = to_spiking(Layer(Fused()))
    with torch.no_grad(), record(spiking) as recording:
        spiking(*routes())
    tokens = {name: layer.num_tokens for name, layer in recording.layers.items()}
    assert tokens == {
        **{f"experts.0.{name}": 3 for name in ("gate_up_proj", "down_proj")},
        **{f"experts.1.{name}": 4 for name in ("gate_up_proj", "down_proj")},
        **{f"experts.2.{name}": 0 for name in ("gate_up_proj", "down_proj")},
        "last": 5,
    }
    counts = count_operations(recording)
    # 3 + 4 routes of a product 8 to 12 and one 6 to 8; then 5 tokens of the last layer.
    assert counts.total("int8", kind="projection").num_macs == 7 * (8 * 12 + 6 * 8) + 5 * 8 * 8
    # Each route gives 8 channels, multiplied by a weight and added.
    assert counts.total("spiking", kind="experts").num_mul_fp32 == 7 * 8


def test_experts_equal_a_dense_emulation():
    spiking, (x, index, weight) = to_spiking(Layer(Fused())), routes()

    def emulate(layer, a):
        threshold = a.abs().mean(-1, keepdim=True) / 3
        count = (a / threshold).round()
        return threshold * (count.double() @ layer.weight.double().t() * layer.scale[:, 0].double()).float()

    expected = torch.zeros(5, 8)
    for token in range(5):
        for e, w in zip(index[token].tolist(), weight[token], strict=True):
            if e < 3:
                layers = spiking_layers(spiking.experts)
                gate, up = emulate(layers[f"{e}.gate_up_proj"], x[token]).chunk(2)
                expected[token] += w * emulate(layers[f"{e}.down_proj"], F.silu(gate) * up)
    with torch.no_grad():
        torch.testing.assert_close(spiking.experts(x, index, weight), expected)


@pytest.mark.parametrize("model_type", fast_first(["gpt_oss", "mixtral", "qwen3_moe", "llama4_text"], 2))
def test_a_model_with_fused_experts(model_type, tmp_path):
    model = tiny(model_type)
    seen = {}
    for name, module in model.named_modules():
        if name.endswith("experts"):
            module.register_forward_pre_hook(lambda m, a, name=name: seen.update({name: a}))
    with torch.no_grad():
        model(IDS)
    for module in model.modules():
        module._forward_pre_hooks.clear()
    spiking = to_spiking(model)
    assert sum(".experts." in name for name in spiking.conversion.converted) == 2 * 4 * 2
    assert not any("experts" in name for name in spiking.conversion.skipped)
    with torch.no_grad(), record(spiking) as recording:
        logits = spiking(IDS).logits
    first, arguments = next(iter(seen.items()))
    if model_type == "llama4_text":  # blocks of 11 tokens, with zeros where a token is not routed
        expected = arguments[0].view(4, 11, -1).any(-1).sum(1).tolist()
    else:
        expected = arguments[1].flatten().bincount(minlength=4).tolist()
    found = [recording.layers[f"{first}.{e}.gate_up_proj"].num_tokens for e in range(4)]
    assert found == expected
    assert sum(found) == 11 * 2
    # Nothing with many weights is left out: what routes the tokens is 24 x 4 weights.
    assert count_operations(recording).uncounted_share < 0.02
    save(spiking, tmp_path / "model.safetensors")
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "model.safetensors").model(IDS).logits, spiking(IDS).logits)
        torch.testing.assert_close(to_dense(spiking)(IDS).logits, model(IDS).logits, atol=2e-2, rtol=0)
        torch.testing.assert_close(logits, spiking(IDS).logits)


def test_some_experts_can_stay_dense(tmp_path):
    model = tiny()
    before = {name: p.clone() for name, p in model.named_parameters()}
    spiking = to_spiking(model, SpikeSettings(skip=("*.experts.[01].*",)))
    assert spiking.conversion.skipped["model.layers.0.mlp.experts.1.down_proj"] == "a pattern of skip matches"
    dense = spiking.get_submodule("model.layers.0.mlp.experts.1.down_proj")
    assert torch.equal(dense.weight, model.model.layers[0].mlp.experts.down_proj[1])
    with torch.no_grad():
        for p in spiking.parameters():
            p.zero_()
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())  # a copy shares no weights


def test_experts_that_no_pattern_names_stay_as_they_are():
    spiking = to_spiking(tiny(), SpikeSettings(layers=("*self_attn*",)))
    assert type(spiking.model.layers[0].mlp.experts).__name__ == "MixtralExperts"
    assert spiking.conversion.skipped["model.layers.0.mlp.experts.3.down_proj"] == "no pattern matches"
    with torch.no_grad(), record(spiking) as recording:
        spiking(IDS)
    counts = count_operations(recording)
    # 11 tokens x 2 layers, each through 2 experts of 24 x 80 + 40 x 24 weights; and a router of 24 x 4.
    assert counts.uncounted_macs == 11 * 2 * (2 * (24 * 80 + 40 * 24) + 24 * 4)
    attention_and_head = 11 * (2 * 4 * 24 * 24 + 24 * 61)
    assert counts.uncounted_share == counts.uncounted_macs / (counts.uncounted_macs + attention_and_head)
    assert "MixtralExperts (2, first 'model.layers.0.mlp.experts')" in counts.unsupported
    assert f"up to {counts.uncounted_share:.1%}" in counts.not_counted()
    assert any(f"{counts.uncounted_share:.1%}" in text for text in DigitalEnergy().estimate(counts).left_out)
    assert ModelCounts.from_dict(counts.to_dict()) == counts
    assert (counts + counts).uncounted_macs == 2 * counts.uncounted_macs


@pytest.mark.parametrize(
    ("fused", "reason"),
    [
        (Fused(factor=2.0), "its results are others"),
        (Fused(act=None), "its forward does not take"),
    ],
)
def test_experts_of_another_kind_stay_dense_with_a_reason(fused, reason):
    spiking = to_spiking(Layer(fused))
    assert type(spiking.experts) is Fused
    assert reason in spiking.conversion.skipped["experts"]
    assert spiking.conversion.converted == ("last",)


def test_hooked_experts_stay_dense():
    layer = Layer(Fused())
    layer.experts.register_forward_hook(lambda module, arguments, y: 2 * y)
    assert "hooks" in to_spiking(layer).conversion.skipped["experts"]


def test_spike_aware_refuses_fused_experts():
    model = tiny()
    with (
        pytest.raises(InputError, match=r"Leave them out with `skip` '\*\.experts\.\*'"),
        spike_aware(model, SpikeSettings()),
    ):
        pass
    with spike_aware(model, SpikeSettings(skip=("*.experts.*",))):
        pass


def test_half_precision():
    model = tiny().to(torch.bfloat16)
    spiking = to_spiking(model)
    assert sum(".experts." in name for name in spiking.conversion.converted) == 16
    with torch.no_grad():
        torch.testing.assert_close(spiking(IDS).logits, model(IDS).logits, atol=0.2, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("skip", [(), ("--skip", "*.experts.*")])
def test_the_commands_say_what_is_not_counted(skip, run, text, tokenizer, tmp_path):
    model, folder, out = tiny(vocab_size=len(tokenizer)), tmp_path / "mixtral", tmp_path / "out"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    code, screen, _ = run("report", folder, "--text", text, "--num-tokens", 40, "--context", 20, "--out", out, *skip)
    assert code == 0
    found = json.loads((out / "report.json").read_text())
    told, num_experts = found["energy"]["not_counted"], 0 if skip else 2 * 4 * 2
    assert found["model"]["num_spiking_layers"] == 2 * 4 + num_experts
    assert any(part.startswith("MixtralExperts") for part in told["parts"]) == bool(skip)
    # Of a token and layer: attention 4 x 24 x 24, router 24 x 4, 2 experts of 24 x 80 + 40 x 24; and the head.
    experts, router, all_macs = 2 * 2 * 2880, 2 * 96, 2 * (2304 + 96 + 5760) + 24 * len(tokenizer)
    assert told["share_of_macs"] == pytest.approx((router + (experts if skip else 0)) / all_macs)
    assert told["sentence"] in " ".join(screen.split())
    code, screen, _ = run("energy", out / "report.json")
    assert code == 0
    assert told["sentence"] in " ".join(screen.split())
