"""Every record of a Transformer architecture, on a tiny model of it: all parts are counted, all names are there."""

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from spikebrain import record, to_spiking
from spikebrain.energy import count_operations
from spikebrain.errors import InputError
from spikebrain.models import from_transformer
from spikebrain.models.architectures import ARCHITECTURES, architecture_of, convertible_types
from spikebrain.models.recording.modules import describe

SIZES = {
    "vocab_size": 97,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
MODEL_TYPES = [model_type for architecture in ARCHITECTURES for model_type in architecture.model_types]


def tiny(model_type, **changes):
    config = AutoConfig.for_model(model_type, **{**SIZES, **changes})
    return AutoModelForCausalLM.from_config(config).eval()


@torch.inference_mode()
def recorded(model, num_tokens=12):
    spiking = to_spiking(model)
    with record(spiking) as recording:
        spiking(torch.arange(num_tokens)[None], use_cache=False)
    return recording


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_every_part_is_counted(model_type):
    recording = recorded(tiny(model_type))
    assert recording.unsupported == ()
    parts = {kind: [p for p in recording.modules.values() if p.kind == kind] for kind in ("softmax", "gated-mlp")}
    for attention in parts["softmax"]:
        assert attention.sizes == {"heads": 4, "kv_heads": 2, "dim": 6, "integer": 0}
        # Token n of 12 sees n columns.
        assert (attention.num_tokens, attention.num_pairs) == (12, 78)
    for mlp in parts["gated-mlp"]:
        assert (mlp.sizes, mlp.num_tokens) == ({"dim": 40}, 12)
    assert [len(found) for found in parts.values()] == [2, 2]
    residuals = [p for p in recording.modules.values() if p.kind == "residual"]
    assert [(p.sizes, p.num_tokens) for p in residuals] == [({"dim": 24}, 12)] * 2
    assert set(recording.order) == recording.layers.keys() | recording.modules.keys()
    assert count_operations(recording).unsupported == ()


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_every_norm_is_counted(model_type):
    model, vectors = tiny(model_type), {}

    def count(name):
        return lambda module, arguments: vectors.update({name: arguments[0].numel() // module.weight.numel()})

    for name, module in model.named_modules():
        if type(module).__name__.endswith("Norm"):
            module.register_forward_pre_hook(count(name))
    norms = {p.name: p for p in recorded(model).modules.values() if p.kind == "rms-norm"}
    with torch.inference_mode():
        model(torch.arange(12)[None])
    assert {name: part.num_tokens for name, part in norms.items()} == vectors
    assert len(norms) >= 2 * 2 + 1
    assert all(part.sizes == {"dim": model.get_submodule(name).weight.numel()} for name, part in norms.items())
    if model_type == "qwen3":  # queries and keys: 12 tokens of 4 and of 2 heads of 6 channels
        own = {name.rpartition(".")[2]: (part.num_tokens, part.sizes["dim"]) for name, part in norms.items()}
        assert (own["q_norm"], own["k_norm"]) == ((48, 6), (24, 6))


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_work_is_done_before_a_module_that_is_there(model_type):
    model = tiny(model_type)
    for _, part, _ in describe(model)[0]:
        if part.kind in ("softmax", "gated-mlp", "residual"):
            assert part.before.startswith(f"{part.name}.")
            assert isinstance(model.get_submodule(part.before), nn.Linear)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_conversion_does_what_the_record_says(model_type):
    model, ids = tiny(model_type), torch.arange(12)[None]
    known = architecture_of(model_type)
    if known.weights is None:
        assert known.not_convertible
        with pytest.raises(InputError) as error:
            from_transformer(model, "full,full")
        assert known.not_convertible in str(error.value)
        assert str(convertible_types()) in str(error.value)
    else:
        with torch.inference_mode():
            found, expected = from_transformer(model, "full,full")(ids).logits, model(ids).logits
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("mistral", {"sliding_window": 4}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0}),
        ("qwen3", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0}),
    ],
)
def test_windows(model_type, changes):
    recording = recorded(tiny(model_type, **changes))
    pairs = [part.num_pairs for part in recording.modules.values() if part.kind == "softmax"]
    # The first tokens see 1, 2 and 3 columns, the other 9 tokens 4 each.
    assert pairs == [42, 42]


class Odd(nn.Module):
    """Of no architecture."""

    def forward(self, x):
        return 2 * x


def test_what_no_record_knows_is_told():
    model = nn.Sequential(nn.Linear(4, 4), Odd(), nn.Sequential(nn.Linear(4, 4), Odd()), nn.GELU())
    parts, unknown = describe(to_spiking(model))
    assert parts == []
    assert unknown == ("GELU (1, first '3')", "Odd (2, first '1')")
    with torch.no_grad(), record(to_spiking(model)) as recording:
        model(torch.randn(3, 4))
    assert recording.unsupported == count_operations(recording).unsupported == unknown


def test_a_class_is_known_by_its_whole_name():
    class LlamaSparseMLP(nn.Module):
        pass

    class MistralDecoderLayers(nn.Module):
        pass

    model = nn.Sequential(nn.Linear(2, 2), LlamaSparseMLP(), MistralDecoderLayers())
    assert describe(model)[1] == ("LlamaSparseMLP (1, first '1')", "MistralDecoderLayers (1, first '2')")
