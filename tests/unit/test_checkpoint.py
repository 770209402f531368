import dataclasses
import json
import struct

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from spikebrain import AdaptiveThreshold, Encoder, IntegrateAndFire, Policy, SignedDigit, Ternary, convert, load, save
from spikebrain.backends import Reference
from spikebrain.coding import ENCODERS
from spikebrain.errors import CheckpointError, InputError

IDS = torch.arange(30)[None]


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


@pytest.mark.parametrize(
    "policy",
    [
        Policy(),
        Policy(neuron=AdaptiveThreshold(k=2.5), encoder=SignedDigit(), group_size=7, backend=Reference()),
        Policy(layers=("*.mlp.*",), include_head=True),
        Policy(layers=("lm_head", "*.q_proj"), include_head=True),
    ],
    ids=["default", "settings", "some", "head"],
)
def test_identical_logits(tmp_path, tiny_llama, tokenizer, policy):
    model = convert(tiny_llama, policy).model
    save(model, tmp_path / "m.safetensors", tokenizer)
    again = load(tmp_path / "m.safetensors")
    assert torch.equal(logits(again.model), logits(model))
    assert again.tokenizer("spike train")["input_ids"] == tokenizer("spike train")["input_ids"]
    assert str(again.model) == str(model)  # all settings of all layers
    if policy.include_head is False:
        assert again.model.lm_head.weight is again.model.model.embed_tokens.weight
    assert not again.model.training
    assert all(p.requires_grad for p in again.model.parameters())


def test_int8_on_disk(tmp_path, tiny_llama):
    save(convert(tiny_llama).model, tmp_path / "m.safetensors")
    with (tmp_path / "m.safetensors").open("rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    assert header["model.layers.0.mlp.up_proj.weight"]["dtype"] == "I8"
    assert "lm_head.weight" not in header  # tied: stored once
    assert load(tmp_path / "m.safetensors").tokenizer is None


def test_gpt2(tmp_path):
    model = convert(GPT2LMHeadModel(GPT2Config(vocab_size=50, n_positions=32, n_embd=12, n_layer=1, n_head=2))).model
    save(model.eval(), tmp_path / "m.safetensors")
    assert torch.equal(logits(load(tmp_path / "m.safetensors").model), logits(model))


def test_half_precision(tmp_path, tiny_llama):
    model = convert(tiny_llama.bfloat16()).model
    save(model, tmp_path / "m.safetensors")
    again = load(tmp_path / "m.safetensors").model
    assert again.model.norm.weight.dtype == torch.bfloat16
    assert torch.equal(logits(again), logits(model))


def test_a_model_that_is_not_of_transformers(tmp_path):
    def build():
        return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.BatchNorm1d(8), nn.Linear(8, 2))

    model = convert(build().eval()).model
    save(model, tmp_path / "m.safetensors")
    again = load(tmp_path / "m.safetensors", architecture=build()).model
    x = torch.randn(3, 4)
    assert torch.equal(again(x), model(x))
    with pytest.raises(CheckpointError, match="architecture="):
        load(tmp_path / "m.safetensors")
    with pytest.raises(
        CheckpointError, match=r"missing \['4\.bias', '4\.weight'\], not expected \[\], of another shape"
    ):
        load(tmp_path / "m.safetensors", architecture=nn.Sequential(*build(), nn.Linear(2, 2)))


def test_atomic(tmp_path, tiny_llama, monkeypatch):
    path = tmp_path / "m.safetensors"
    save(convert(tiny_llama).model, path)
    before = path.read_bytes()

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr("spikebrain.models.io.single_file.save_file", fail)
    with pytest.raises(CheckpointError, match="disk full"):
        save(convert(tiny_llama).model, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_own_encoder_must_be_registered(tmp_path, tiny_llama):
    @dataclasses.dataclass(frozen=True)
    class Own(Encoder):
        def encode(self, count, num_timesteps):
            return Ternary().encode(count, num_timesteps)

        def timesteps_for(self, max_count):
            return Ternary().timesteps_for(max_count)

    model = convert(tiny_llama, Policy(encoder=Own())).model
    with pytest.raises(InputError, match="encoder Own has no name"):
        save(model, tmp_path / "m.safetensors")


def test_bad_input(tmp_path, tiny_llama):
    with pytest.raises(InputError, match="Call convert first"):
        save(tiny_llama, tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match="cannot be written"):
        save(convert(tiny_llama).model, tmp_path / "nowhere" / "m.safetensors")


def test_unknown_plug_in(tmp_path, tiny_llama, monkeypatch):
    save(convert(tiny_llama, Policy(encoder=Ternary())).model, tmp_path / "m.safetensors")
    monkeypatch.delitem(ENCODERS._classes, "ternary")
    with pytest.raises(CheckpointError, match=r"got 'ternary'.*import the module"):
        load(tmp_path / "m.safetensors")


def test_shared_layers_and_weights_stay_shared(tmp_path):
    def build():
        model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
        model.append(model[0])
        model[2].weight = model[0].weight
        return model

    model = convert(build()).model
    save(model, tmp_path / "m.safetensors")
    again = load(tmp_path / "m.safetensors", architecture=build()).model
    assert again[3] is again[0]
    assert again[2].weight is again[0].weight
    assert again[2].bias is not again[0].bias
    x = torch.randn(3, 4)
    assert torch.equal(again(x), model(x))


def test_what_is_frozen_stays_frozen(tmp_path, tiny_llama):
    tiny_llama.model.norm.weight.requires_grad_(False)
    model = convert(tiny_llama).model
    save(model, tmp_path / "m.safetensors")
    again = dict(load(tmp_path / "m.safetensors").model.named_parameters())
    assert {name: p.requires_grad for name, p in model.named_parameters()} == {
        n: p.requires_grad for n, p in again.items()
    }


def test_attention_implementation_is_kept(tmp_path, tiny_llama):
    tiny_llama.set_attn_implementation("eager")
    model = convert(tiny_llama).model
    save(model, tmp_path / "m.safetensors")
    assert torch.equal(logits(load(tmp_path / "m.safetensors").model), logits(model))


def test_neuron_with_a_fixed_field(tmp_path):
    model = convert(nn.Sequential(nn.Linear(4, 2)), Policy(neuron=IntegrateAndFire(threshold=0.5))).model
    save(model, tmp_path / "m.safetensors")
    again = load(tmp_path / "m.safetensors", architecture=nn.Sequential(nn.Linear(4, 2))).model
    assert again[0].neuron == IntegrateAndFire(threshold=0.5)


def test_what_cannot_be_stored_is_refused(tmp_path):
    model = convert(nn.Sequential(nn.Linear(4, 2)), Policy(neuron=IntegrateAndFire(threshold=torch.tensor(1.0)))).model
    with pytest.raises(InputError, match="JSON"):
        save(model, tmp_path / "m.safetensors")
    with pytest.raises(InputError, match=r"nn\.Sequential"):
        save(convert(nn.Linear(4, 2)).model, tmp_path / "m.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("change", ["garbage", "{}", "[]", "version", "scale", "neuron", "tokenizer"])
def test_damaged_descriptions(tmp_path, tiny_llama, tokenizer, change):
    path = tmp_path / "m.safetensors"
    save(convert(tiny_llama).model, path, tokenizer)
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        text = file.metadata()["spikebrain-converted"]
    header = json.loads(text)
    if change == "version":
        header["version"] = 99
    elif change == "scale":
        del tensors["model.layers.0.mlp.up_proj.scale"]
    elif change == "neuron":
        header["layers"]["model.layers.0.mlp.up_proj"]["neuron"]["kay"] = 3
    elif change == "tokenizer":
        header["tokenizer"] = {"../escaped.json": "{}"}
    text = change if change in ("garbage", "{}", "[]") else json.dumps(header)
    save_file(tensors, path, metadata={"spikebrain-converted": text})
    with pytest.raises(CheckpointError, match="version" if change == "version" else "description does not fit"):
        load(path)
    assert not (tmp_path.parent / "escaped.json").exists()
