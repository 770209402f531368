"""W8A-spike on the models: what spikes, INT8 state, dense again, training through spikes, given scales, reports."""

import pytest
import torch
from torch import nn

import spikebrain
from spikebrain import (
    AdaptiveThreshold,
    SpikeLinear,
    SpikeSettings,
    SpikingBrainForCausalLM,
    record,
    spikingbrain_settings,
    to_dense,
    to_spiking,
)
from spikebrain.errors import InputError
from spikebrain.jobs import ReportSettings, report
from spikebrain.models.io import save
from spikebrain.models.layers.quantize import quantize_with
from spikebrain.models.spikingbrain import SpikingBrainCache, tiny_7b, tiny_76b


@pytest.fixture(params=["7b", "76b"])
def model(request):
    config = {"7b": tiny_7b, "76b": tiny_76b}[request.param]
    return SpikingBrainForCausalLM(config(vocab_size=258, initializer_range=0.1)).eval()


@pytest.fixture
def ids():
    return torch.randint(0, 256, (2, 12))


def dense_layers(model):
    return {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def test_as_described_every_projection_spikes(model, ids):
    before = {name: x.clone() for name, x in model.state_dict().items()}
    spiking = to_spiking(model, spikingbrain_settings(k=2.5, group_size=16))
    routers = {name for name in dense_layers(model) if name.endswith("router")}
    assert dense_layers(spiking) == {"lm_head"} | routers
    names = {name for name, module in spiking.named_modules() if isinstance(module, SpikeLinear)}
    assert "model.layers.0.mlp.down_proj" in names
    if model.settings.gate == "low-rank":
        assert {"model.layers.0.attn.gk_proj.0", "model.layers.0.attn.gk_proj.1"} <= names
    layer = spiking.get_submodule("model.layers.0.attn.q_proj")
    assert (layer.neuron, layer.group_size) == (AdaptiveThreshold(2.5), 16)
    settings = spiking.settings
    assert (settings.spiking, settings.k, settings.group_size) == ("as-described", 2.5, 16)
    assert spiking.config.settings == settings
    # The model that was given is as it was.
    assert model.settings.spiking is model.config.spiking is None
    assert all(torch.equal(model.state_dict()[name], x) for name, x in before.items())
    assert to_spiking(model, inplace=True) is model
    assert model.settings.spiking == "as-described"


def test_as_released(model):
    spiking = to_spiking(model, spikingbrain_settings("as-released"))
    assert {name for name in dense_layers(spiking) if not name.endswith(("router", "lm_head"))} == {
        name for name in dense_layers(model) if name.endswith("down_proj")
    }


@pytest.mark.slow
def test_cache_holds_int8_as_described_and_floats_as_released(model, ids):
    kinds = {}
    for setting in ("as-described", "as-released"):
        spiking = to_spiking(model, spikingbrain_settings(setting))
        cache = SpikingBrainCache(spiking.settings)
        with torch.no_grad():
            spiking(ids, cache=cache)
        kinds[setting] = [x.dtype for x in cache.layers[1].columns.tensors]
        assert all(x.dtype == torch.float32 for layer in cache.layers if (x := layer.linear) is not None)
    assert kinds["as-described"] == [torch.int8, torch.float32, torch.int8, torch.float32, torch.bool]
    assert kinds["as-released"] == [torch.float32, torch.float32, torch.bool]


@pytest.mark.slow
def test_the_two_settings_differ_by_down_proj_alone(ids):
    """Integer attention and float attention on rounded values are the same numbers."""
    model = SpikingBrainForCausalLM(tiny_7b(initializer_range=0.1)).eval().double()
    only_down = SpikeSettings(layers=("*.down_proj",))
    described, released = (
        to_spiking(model),
        to_spiking(to_spiking(model, spikingbrain_settings("as-released")), only_down),
    )
    with torch.no_grad():
        torch.testing.assert_close(described(ids).logits, released(ids).logits, atol=1e-9, rtol=1e-9)


@pytest.mark.slow
def test_record_sees_every_layer_and_token(model, ids):
    spiking = to_spiking(model)
    with record(spiking) as recording:
        spiking(ids)
    attention = [layer for name, layer in recording.layers.items() if name.endswith("q_proj")]
    assert len(attention) == model.settings.num_layers
    # The sink tokens run once, not once per row.
    assert {layer.num_tokens for layer in attention} == {24 + model.settings.num_sinks}
    routed = [layer.num_tokens for name, layer in recording.layers.items() if ".experts." in name and "up" in name]
    num_moe = sum(plan.ffn == "moe" for plan in model.settings.layers)
    assert sum(routed) == num_moe * (24 + model.settings.num_sinks)


@pytest.mark.slow
def test_dense_again(model, ids):
    spiking = to_spiking(model)
    dense = to_dense(spiking)
    attention = dense.get_submodule("model.layers.1.attn")
    assert attention.spiking is None
    rounded = {n: m.dequantized_weight() for n, m in spiking.named_modules() if isinstance(m, SpikeLinear)}
    for name, weight in rounded.items():
        model.get_submodule(name).weight.data.copy_(weight)
    with torch.no_grad():
        torch.testing.assert_close(dense(ids).logits, model(ids).logits)


@pytest.mark.slow
def test_convert_alone_leaves_attention_in_floating_point(model, ids):
    converted = to_spiking(model, SpikeSettings(layers=("*_proj",)))
    assert converted.get_submodule("model.layers.1.attn").spiking is None
    with torch.no_grad():
        assert converted(ids).logits.shape == (2, 12, 258)


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["as-described", "as-released"])
def test_gradients_pass_through_spikes(setting, ids):
    """Training sees the same numbers, and its gradients reach the embedding."""
    spiking = to_spiking(
        SpikingBrainForCausalLM(tiny_7b(initializer_range=0.1)).double(), spikingbrain_settings(setting)
    )
    found = spiking(ids, labels=ids, use_cache=False)
    found.loss.backward()
    assert bool(torch.isfinite(spiking.model.embeddings.weight.grad).all())
    assert float(spiking.model.embeddings.weight.grad.abs().sum()) > 0
    with torch.no_grad():
        torch.testing.assert_close(spiking(ids).logits, found.logits.detach(), atol=1e-9, rtol=1e-9)


def test_given_scales():
    weight = torch.tensor([[1.0, -2.0, 0.26, 0.3], [0.0, 5.0, 1.0, 0.0]])
    scales = torch.tensor([[0.5, 0.1], [1.0, 2.0]])
    integers, scale, group_size = quantize_with(weight, scales[..., None])
    assert integers.tolist() == [[2, -4, 3, 3], [0, 5, 0, 0]]  # 1.0 / 2 is a tie and goes to even
    assert torch.equal(scale, scales)
    assert group_size == 2
    assert quantize_with(weight, torch.full((2, 1), 0.1))[2] is None
    linear = nn.Sequential(nn.Linear(4, 2))
    linear[0].weight.data = weight
    layer = to_spiking(linear, scales={"0": scales})[0]
    assert torch.equal(layer.weight, integers)
    assert layer.group_size == 2


@pytest.mark.parametrize(
    ("scales", "message"),
    [
        (torch.ones(2, 3), r"with groups that divide 4 input channels, got shape \(2, 3\)"),
        (torch.ones(3, 1), "expected"),
        (torch.ones(2), "expected"),
        (torch.zeros(2, 1), "finite numbers > 0"),
        (torch.full((2, 1), float("nan")), "finite numbers > 0"),
        (torch.full((2, 1), 0.001), "within -127 and 127, got 1000"),
    ],
)
def test_wrong_scales(scales, message):
    with pytest.raises(InputError, match=message):
        quantize_with(torch.ones(2, 4), scales, "layer")


def test_what_cannot_spike(model):
    with pytest.raises(InputError, match="expected one of"):
        to_spiking(model, spikingbrain_settings("as-published"))
    spiking = to_spiking(model)
    with pytest.raises(InputError, match="got one that spikes as-described"):
        to_spiking(spiking)


@pytest.mark.slow
def test_one_file_there_and_back(model, ids, tmp_path):
    spiking = to_spiking(model)
    spikebrain.save(spiking, tmp_path / "model.safetensors")
    read = spikebrain.load(tmp_path / "model.safetensors").model
    assert read.settings == spiking.settings
    with torch.no_grad():
        assert torch.equal(read(ids).logits, spiking(ids).logits)


@pytest.mark.slow
@pytest.mark.parametrize("setting", [None, "as-described"])
def test_report(tmp_path, tokenizer, setting):
    model = SpikingBrainForCausalLM(tiny_76b(vocab_size=258)).eval()
    save(to_spiking(model) if setting else model, tmp_path / "model", tokenizer)
    layers = None if setting else "*_proj"  # without the routers
    settings = ReportSettings(model=str(tmp_path / "model"), num_tokens=32, context=16, layers=layers)
    found = report(settings, tmp_path / "report")
    assert found["model"]["architecture"] == "SpikingBrainForCausalLM"
    # Seven layers with q, k, v, o; five dense feed-forward parts and two of four experts and a shared one.
    assert found["model"]["num_spiking_layers"] == 7 * 4 + 3 * (5 + 2 * 5)
    assert found["exactness"]["num_mismatches"] == 0
    assert (found["perplexity"]["float"] is None) == (setting is not None)
    assert found["perplexity"]["spiking"] == pytest.approx(258, rel=0.2)
