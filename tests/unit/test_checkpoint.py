import dataclasses
import json
import struct

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from spikebrain import (
    AdaptiveThreshold,
    Encoder,
    IntegrateAndFire,
    SignedDigit,
    SpikeSettings,
    Ternary,
    load,
    save,
    to_spiking,
)
from spikebrain.backends import Chip, Reference
from spikebrain.coding import ENCODERS
from spikebrain.errors import CheckpointError, InputError
from spikebrain.models import SpikeLinear
from spikebrain.models.spikingbrain import SpikingBrainForCausalLM, tiny_7b

IDS = torch.arange(30)[None]


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


@pytest.mark.parametrize(
    "policy",
    [
        SpikeSettings(),
        SpikeSettings(neuron=AdaptiveThreshold(k=2.5), encoder=SignedDigit(), group_size=7, backend=Reference()),
        SpikeSettings(layers=("*.mlp.*",), include_head=True),
        SpikeSettings(layers=("lm_head", "*.q_proj"), include_head=True),
    ],
    ids=["default", "settings", "some", "head"],
)
def test_identical_logits(tmp_path, tiny_llama, tokenizer, policy):
    model = to_spiking(tiny_llama, policy)
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
    save(to_spiking(tiny_llama), tmp_path / "m.safetensors")
    with (tmp_path / "m.safetensors").open("rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    assert header["model.layers.0.mlp.up_proj.weight"]["dtype"] == "I8"
    assert "lm_head.weight" not in header  # tied: stored once
    assert load(tmp_path / "m.safetensors").tokenizer is None


def test_gpt2(tmp_path):
    model = to_spiking(GPT2LMHeadModel(GPT2Config(vocab_size=50, n_positions=32, n_embd=12, n_layer=1, n_head=2)))
    save(model.eval(), tmp_path / "m.safetensors")
    assert torch.equal(logits(load(tmp_path / "m.safetensors").model), logits(model))


def test_half_precision(tmp_path, tiny_llama):
    model = to_spiking(tiny_llama.bfloat16())
    save(model, tmp_path / "m.safetensors")
    again = load(tmp_path / "m.safetensors").model
    assert again.model.norm.weight.dtype == torch.bfloat16
    assert torch.equal(logits(again), logits(model))


def test_a_model_that_is_not_of_transformers(tmp_path):
    def build():
        return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.BatchNorm1d(8), nn.Linear(8, 2))

    model = to_spiking(build().eval())
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
    save(to_spiking(tiny_llama), path)
    before = path.read_bytes()

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr("spikebrain.models.io.single_file.save_file", fail)
    with pytest.raises(CheckpointError, match="disk full"):
        save(to_spiking(tiny_llama), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_own_encoder_must_be_registered(tmp_path, tiny_llama):
    @dataclasses.dataclass(frozen=True)
    class Own(Encoder):
        def encode(self, count, num_timesteps):
            return Ternary().encode(count, num_timesteps)

        def timesteps_for(self, max_count):
            return Ternary().timesteps_for(max_count)

    model = to_spiking(tiny_llama, SpikeSettings(encoder=Own()))
    with pytest.raises(InputError, match="encoder Own has no name"):
        save(model, tmp_path / "m.safetensors")


def test_bad_input(tmp_path, tiny_llama):
    with pytest.raises(InputError, match="Call to_spiking first"):
        save(tiny_llama, tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match="cannot be written"):
        save(to_spiking(tiny_llama), tmp_path / "nowhere" / "m.safetensors")


def test_unknown_plug_in(tmp_path, tiny_llama, monkeypatch):
    save(to_spiking(tiny_llama, SpikeSettings(encoder=Ternary())), tmp_path / "m.safetensors")
    monkeypatch.delitem(ENCODERS._classes, "ternary")
    with pytest.raises(CheckpointError, match=r"got 'ternary'.*import the module"):
        load(tmp_path / "m.safetensors")


def test_shared_layers_and_weights_stay_shared(tmp_path):
    def build():
        model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
        model.append(model[0])
        model[2].weight = model[0].weight
        return model

    model = to_spiking(build())
    save(model, tmp_path / "m.safetensors")
    again = load(tmp_path / "m.safetensors", architecture=build()).model
    assert again[3] is again[0]
    assert again[2].weight is again[0].weight
    assert again[2].bias is not again[0].bias
    x = torch.randn(3, 4)
    assert torch.equal(again(x), model(x))


def test_what_is_frozen_stays_frozen(tmp_path, tiny_llama):
    tiny_llama.model.norm.weight.requires_grad_(False)
    model = to_spiking(tiny_llama)
    save(model, tmp_path / "m.safetensors")
    again = dict(load(tmp_path / "m.safetensors").model.named_parameters())
    assert {name: p.requires_grad for name, p in model.named_parameters()} == {
        n: p.requires_grad for n, p in again.items()
    }


def test_attention_implementation_is_kept(tmp_path, tiny_llama):
    tiny_llama.set_attn_implementation("eager")
    model = to_spiking(tiny_llama)
    save(model, tmp_path / "m.safetensors")
    assert torch.equal(logits(load(tmp_path / "m.safetensors").model), logits(model))


def test_neuron_with_a_fixed_field(tmp_path):
    model = to_spiking(nn.Sequential(nn.Linear(4, 2)), SpikeSettings(neuron=IntegrateAndFire(threshold=0.5)))
    save(model, tmp_path / "m.safetensors")
    again = load(tmp_path / "m.safetensors", architecture=nn.Sequential(nn.Linear(4, 2))).model
    assert again[0].neuron == IntegrateAndFire(threshold=0.5)


def test_what_cannot_be_stored_is_refused(tmp_path):
    model = to_spiking(
        nn.Sequential(nn.Linear(4, 2)), SpikeSettings(neuron=IntegrateAndFire(threshold=torch.tensor(1.0)))
    )
    with pytest.raises(InputError, match="which a file cannot hold"):
        save(model, tmp_path / "m.safetensors")
    with pytest.raises(InputError, match=r"nn\.Sequential"):
        save(to_spiking(nn.Linear(4, 2)), tmp_path / "m.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("change", ["garbage", "{}", "[]", "version", "scale", "neuron", "tokenizer"])
def test_damaged_descriptions(tmp_path, tiny_llama, tokenizer, change):
    path = tmp_path / "m.safetensors"
    save(to_spiking(tiny_llama), path, tokenizer)
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        text = file.metadata()["spikebrain-converted"]
    header = json.loads(text)
    if change == "version":
        header["version"] = 99
    elif change == "scale":
        del tensors["model.layers.0.mlp.up_proj.scale"]
    elif change == "neuron":
        header["spiking"]["settings"][0]["neuron"]["kay"] = 3
    elif change == "tokenizer":
        header["tokenizer"] = {"../escaped.json": "{}"}
    text = change if change in ("garbage", "{}", "[]") else json.dumps(header)
    save_file(tensors, path, metadata={"spikebrain-converted": text})
    told = {"garbage": "expected JSON", "version": "expected format version", "neuron": r"unknown \['kay'\]"}
    with pytest.raises(CheckpointError, match=told.get(change, "description does not fit")):
        load(path)
    assert not (tmp_path.parent / "escaped.json").exists()


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_all_settings_of_all_layers_come_back(tmp_path, tokenizer, kind):
    settings = SpikeSettings(
        layers=("*_proj",),
        skip=("*.1.mlp.up_proj",),
        neuron={"*.down_proj": AdaptiveThreshold(4.0), "*": AdaptiveThreshold(2.0)},
        encoder=SignedDigit(),
        group_size=16,
        backend=Chip("loihi", jitter=0.3, stream=True),
    )
    model = to_spiking(SpikingBrainForCausalLM(tiny_7b(initializer_range=0.1, vocab_size=258)).eval(), settings)
    path = tmp_path / ("m.safetensors" if kind == "file" else "folder")
    save(model, path, tokenizer)
    again = load(path).model
    assert str(again) == str(model)
    assert again.conversion == model.conversion
    for name, layer in model.named_modules():
        if isinstance(layer, SpikeLinear):
            twin = again.get_submodule(name)
            assert (twin.neuron, twin.encoder, twin.backend) == (layer.neuron, layer.encoder, layer.backend)
            assert twin.backend.jitter == 0.3
            twin.backend = layer.backend = "auto"
    assert torch.equal(logits(again), logits(model))


@pytest.mark.parametrize("tied", [False, True])
def test_a_folder_keeps_a_head_that_spikes(tmp_path, tied):
    config = tiny_7b(initializer_range=0.1, tie_word_embeddings=tied)
    model = to_spiking(SpikingBrainForCausalLM(config).eval(), SpikeSettings(include_head=True))
    save(model, tmp_path / "folder")
    again = load(tmp_path / "folder").model
    assert isinstance(again.lm_head, SpikeLinear)
    assert torch.equal(logits(again), logits(model))


def test_the_released_layout_is_for_folders(tmp_path, tiny_llama):
    with pytest.raises(InputError, match="no single files"):
        save(to_spiking(tiny_llama), tmp_path / "m.safetensors", released=True)
