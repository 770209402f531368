import copy

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, RwkvConfig, RwkvForCausalLM

import spikebrain
from spikebrain import AdaptiveThreshold, SpikeLinear, SpikeSettings, Ternary, record, to_dense, to_spiking
from spikebrain.backends import Reference
from spikebrain.errors import InputError

IDS = torch.arange(20)[None]


def spiking_names(model):
    return [name for name, module in model.named_modules() if isinstance(module, SpikeLinear)]


def test_all_but_the_head(tiny_llama):
    before = {name: tensor.clone() for name, tensor in tiny_llama.state_dict().items()}
    result = to_spiking(tiny_llama)
    assert len(result.conversion.converted) == 2 * 7  # q, k, v, o, gate, up, down
    assert spiking_names(result) == list(result.conversion.converted)
    assert result.conversion.skipped == {
        "model.embed_tokens": "Embedding is not a plain linear layer",
        "lm_head": "output head",
    }
    # The model that was given is as it was, and shares nothing with the copy.
    assert not spiking_names(tiny_llama)
    assert all(torch.equal(before[name], tensor) for name, tensor in tiny_llama.state_dict().items())
    own = {t.data_ptr() for t in tiny_llama.parameters()}
    assert not own & {t.data_ptr() for t in result.parameters()}
    # Embedding and head are still one tensor.
    assert result.lm_head.weight is result.model.embed_tokens.weight


def test_in_place(tiny_llama):
    result = to_spiking(tiny_llama, inplace=True)
    assert result is tiny_llama
    assert len(spiking_names(tiny_llama)) == 14


def test_logits_are_near_the_float_models(tiny_llama):
    # With a large k and INT8 weights the spiking model is the float model up to quantisation.
    with torch.no_grad():
        expected = tiny_llama(IDS).logits
        coarse = to_spiking(tiny_llama, SpikeSettings(neuron=AdaptiveThreshold(k=1.0)))(IDS).logits
        fine = to_spiking(tiny_llama, SpikeSettings(neuron=AdaptiveThreshold(k=300.0)))(IDS).logits
    assert (fine - expected).abs().max() < 0.02 * expected.abs().max()
    assert (fine - expected).abs().mean() < (coarse - expected).abs().mean()


def test_generation_with_cache(tiny_llama):
    model = to_spiking(tiny_llama)
    tokens = model.generate(IDS[:, :5], max_new_tokens=6, do_sample=False)
    # Each token's threshold is its own, so cached decoding sees the same spikes as one pass over all tokens.
    with torch.no_grad():
        logits = model(tokens[:, :-1]).logits
    assert torch.equal(logits[0, 4:].argmax(-1), tokens[0, 5:])


def test_settings(tiny_llama):
    settings = SpikeSettings(
        layers=("*.mlp.*", "*.q_proj"),
        neuron=AdaptiveThreshold(k=2.0),
        encoder=Ternary(),
        group_size=8,
        backend=Reference(),
        include_head=True,
    )
    result = to_spiking(tiny_llama, settings)
    assert len(result.conversion.converted) == 2 * 4
    assert result.conversion.skipped["model.layers.1.self_attn.o_proj"] == "no pattern matches"
    assert result.conversion.skipped["lm_head"] == "no pattern matches"
    layer = result.get_submodule("model.layers.0.mlp.down_proj")
    assert (layer.neuron, layer.encoder, layer.group_size) == (AdaptiveThreshold(k=2.0), Ternary(), 8)
    assert isinstance(layer.backend, Reference)
    assert layer.scale.shape == (24, 5)
    assert layer.name == "model.layers.0.mlp.down_proj"


def test_tied_head_leaves_the_embedding_alone(tiny_llama):
    embedding = tiny_llama.model.embed_tokens.weight.clone()
    result = to_spiking(tiny_llama, SpikeSettings(include_head=True))
    assert isinstance(result.lm_head, SpikeLinear)
    assert torch.equal(result.model.embed_tokens.weight, embedding)
    assert result(IDS).logits.shape == (1, 20, 258)


def test_gpt2_conv1d():
    model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_positions=32, n_embd=12, n_layer=2, n_head=2)).eval()
    result = to_spiking(model, SpikeSettings(neuron=AdaptiveThreshold(k=300.0)))
    assert len(result.conversion.converted) == 2 * 4  # c_attn, c_proj, c_fc, c_proj
    assert result.transformer.h[0].attn.c_attn.out_features == 36
    with torch.no_grad():
        expected = model(IDS).logits
        assert (result(IDS).logits - expected).abs().max() < 0.02 * expected.abs().max()


def test_shared_layers_and_shared_weights():
    shared = nn.Linear(4, 4)
    twin = nn.Linear(4, 4)
    twin.weight = shared.weight
    model = nn.Sequential(shared, nn.ReLU(), shared, twin)
    for inplace in (False, True):
        converted = to_spiking(model, inplace=inplace)
        assert converted[0] is converted[2]
        assert isinstance(converted[3], SpikeLinear)
        assert converted[3] is not converted[0]
        assert converted[3].weight.data_ptr() == converted[0].weight.data_ptr()
        assert not torch.equal(converted[3].bias, converted[0].bias)


def test_a_single_layer():
    assert isinstance(to_spiking(nn.Linear(3, 2)), SpikeLinear)
    assert isinstance(to_spiking(nn.Linear(3, 2), inplace=True), SpikeLinear)


def test_layers_that_cannot_be_swapped_are_listed():
    class Own(nn.Linear):
        pass

    model = nn.ModuleDict(
        {
            "attention": nn.MultiheadAttention(8, 2),
            "block": nn.TransformerEncoderLayer(8, 2, 16),
            "own": Own(3, 3),
            "conv": nn.Conv1d(3, 3, 1),
            "plain": nn.Linear(3, 3),
            "norm": nn.LayerNorm(3),
        }
    )
    result = to_spiking(model)
    assert result.conversion.converted == ("plain",)
    assert result.conversion.skipped == {
        "attention": "MultiheadAttention is not a plain linear layer",
        "attention.out_proj": "NonDynamicallyQuantizableLinear is not a plain linear layer",
        "block.self_attn": "MultiheadAttention is not a plain linear layer",
        "block.self_attn.out_proj": "NonDynamicallyQuantizableLinear is not a plain linear layer",
        "block.linear1": "TransformerEncoderLayer uses its weights without calling it",
        "block.linear2": "TransformerEncoderLayer uses its weights without calling it",
        "own": "Own is not a plain linear layer",
        "conv": "Conv1d is not a plain linear layer",
    }


def test_twice(tiny_llama):
    once = to_spiking(tiny_llama, SpikeSettings(layers=("*.mlp.*",)))
    twice = to_spiking(once, SpikeSettings(layers=("*.self_attn.*",)))
    assert len(twice.conversion.converted) == 8
    assert twice.conversion.skipped["model.layers.0.mlp.up_proj"] == "spikes already"
    assert len(spiking_names(twice)) == 14


def test_to_dense_is_the_model_without_spikes(tiny_llama):
    converted = to_spiking(tiny_llama)
    dense = to_dense(converted)
    assert not spiking_names(dense)
    assert len(spiking_names(converted)) == 14
    layer = converted.get_submodule("model.layers.1.mlp.up_proj")
    assert torch.equal(dense.get_submodule("model.layers.1.mlp.up_proj").weight, layer.dequantized_weight())
    assert dense.lm_head.weight is dense.model.embed_tokens.weight


def test_training_mode_is_kept(tiny_llama):
    assert all(not m.training for m in to_spiking(tiny_llama).modules())
    assert all(m.training for m in to_spiking(tiny_llama.train()).modules())


def test_nothing_matches(tiny_llama):
    with pytest.raises(InputError, match=r"'model\.layers\.0\.self_attn\.q_proj': no pattern matches"):
        to_spiking(tiny_llama, SpikeSettings(layers=("*.conv",)))
    with pytest.raises(InputError, match="it has no weights"):
        to_spiking(nn.ReLU())


def test_a_text_is_no_list_of_patterns(tiny_llama, as_users):
    # Letter by letter it would match everything.
    with pytest.raises(InputError, match=r"Write \('\*down_proj',\)"):
        SpikeSettings(layers="*down_proj")  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="record: expected a tuple"), record(tiny_llama, layers="*"):
        pass
    with pytest.raises(InputError, match="group_size"):
        SpikeSettings(group_size=4.0)  # pyright: ignore[reportArgumentType]


def test_head_of_a_wrapped_model(tiny_llama):
    wrapped = nn.ModuleDict({"inner": tiny_llama})
    assert to_spiking(wrapped).conversion.skipped["inner.lm_head"] == "output head"


def test_layers_with_hooks_are_left_alone(tiny_llama):
    tiny_llama.model.layers[0].mlp.up_proj.register_forward_hook(lambda *arguments: None)
    result = to_spiking(tiny_llama)
    assert result.conversion.skipped["model.layers.0.mlp.up_proj"] == "has hooks, which a swap would lose"
    assert len(result.conversion.converted) == 13


def test_biases_stay_frozen():
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    model[0].bias.requires_grad_(False)
    converted = to_spiking(model)
    assert [layer.bias.requires_grad for layer in converted] == [False, True]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_to_dense_keeps_the_dtype(tiny_llama, dtype):
    dense = to_dense(to_spiking(tiny_llama.to(dtype)))
    assert dense(IDS).logits.dtype == dtype


@pytest.mark.parametrize("ran_before", [False, True])
def test_rwkv_does_not_rescale_spiking_weights(ran_before, tmp_path):
    # Of 3 blocks, transformers divides the weights of the second by 2 and of the third by 4, when the model first runs.
    sizes = {"hidden_size": 16, "attention_hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3}
    model = RwkvForCausalLM(RwkvConfig(vocab_size=31, rescale_every=1, **sizes)).eval()
    ids = torch.arange(6)[None]
    never = copy.deepcopy(model)
    never.config.rescale_every = 0
    with torch.no_grad():
        if ran_before:
            model(ids)
        before, spiking = model(ids).logits, to_spiking(model)
        assert torch.equal(model(ids).logits, before)
        expected = to_spiking(never)(ids).logits
        assert torch.equal(spiking(ids).logits, expected)
        spikebrain.save(spiking, tmp_path / "rwkv.safetensors")
        assert torch.equal(spikebrain.load(tmp_path / "rwkv.safetensors").model(ids).logits, expected)
