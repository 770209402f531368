"""What happens around spiking layers: ties, resizing, saving by transformers, training, adapters."""

import copy
import pickle
import sys
import warnings
from types import ModuleType

import pytest
import torch
from torch import nn

from spikebrain import SpikeLinear, SpikeSettings, load, save, spike_aware, to_dense, to_spiking
from spikebrain.errors import InputError

IDS = torch.arange(9)[None]


@pytest.fixture
def with_head(tiny_llama):
    return to_spiking(tiny_llama, SpikeSettings(include_head=True))


def test_tie_weights_leaves_a_spiking_head_as_it_is(with_head, tmp_path):
    with torch.no_grad():
        expected = with_head(IDS).logits
    save(with_head, tmp_path / "model.safetensors")
    for model in (with_head, copy.deepcopy(with_head), load(tmp_path / "model.safetensors").model):
        model.tie_weights()
        assert model.lm_head.weight.dtype == torch.int8
        assert [name for name, _ in model.lm_head.named_buffers()] == ["weight", "scale"]
        with torch.no_grad():
            assert torch.equal(model(IDS).logits, expected)


def test_a_dense_head_stays_tied(tiny_llama):
    model = to_spiking(tiny_llama)
    model.resize_token_embeddings(300)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model(IDS).logits.shape == (1, 9, 300)


def test_a_spiking_head_cannot_be_resized(with_head):
    for arguments, settings in (((300,), {}), ((258, 64), {}), ((), {"pad_to_multiple_of": 64})):
        with pytest.raises(InputError, match=r"resize_token_embeddings: expected 258.*call to_spiking"):
            with_head.resize_token_embeddings(*arguments, **settings)
    assert with_head.resize_token_embeddings(258) is with_head.model.embed_tokens
    assert with_head(IDS).logits.shape == (1, 9, 258)


def test_float_parameters_in_place_of_spiking_weights_are_refused(with_head):
    weight = with_head.lm_head.weight
    for name in ("weight", "scale"):
        with pytest.raises(InputError, match=f"'lm_head'.{name}: expected"):
            setattr(with_head.lm_head, name, nn.Parameter(torch.ones(258, 24)))
    assert with_head.lm_head.weight is weight


def test_save_pretrained_saves_spikes_until_the_model_is_dense(tiny_llama, tmp_path):
    spiking = to_spiking(tiny_llama)
    with torch.no_grad():
        expected = spiking(IDS).logits
    save(spiking, tmp_path / "model.safetensors")
    pickled = pickle.loads(pickle.dumps(spiking))
    for model in (spiking, copy.deepcopy(spiking), pickled, load(tmp_path / "model.safetensors").model):
        model.save_pretrained(tmp_path / "spiking")
        with torch.no_grad():
            assert torch.equal(load(tmp_path / "spiking").model(IDS).logits, expected)
    for dense in (tiny_llama, to_dense(spiking)):
        dense.save_pretrained(tmp_path / "dense")
        again = type(tiny_llama).from_pretrained(tmp_path / "dense")
        assert all(torch.equal(p, q) for p, q in zip(again.parameters(), dense.parameters(), strict=True))
        with torch.no_grad():  # float products depend on where in memory the weights begin
            torch.testing.assert_close(again(IDS).logits, dense(IDS).logits)


def test_to_dense_keeps_a_head_of_its_own(with_head, tmp_path):
    dense = to_dense(with_head)
    with torch.no_grad():
        expected = dense(IDS).logits
        dense.tie_weights()
        assert torch.equal(dense(IDS).logits, expected)
    assert dense.resize_token_embeddings(300).num_embeddings == 300


def test_training_a_spiking_model_warns_once(tiny_llama):
    def step(model):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model(IDS, labels=IDS).loss.backward()
        return [str(warning.message) for warning in caught if "INT8" in str(warning.message)]

    spiking = to_spiking(tiny_llama)
    assert step(spiking) == []  # in evaluation mode
    with torch.no_grad():
        spiking.train()(IDS)
    (message,) = step(spiking)
    assert "spike_aware" in message
    assert step(spiking) == []
    assert len(step(to_spiking(tiny_llama.train()))) == 1  # a model of its own
    with spike_aware(tiny_llama, SpikeSettings()):
        assert step(tiny_llama) == []


def test_spike_aware_training_learns_what_the_spiking_model_computes():
    teacher, student = nn.Linear(12, 4), nn.Sequential(nn.Linear(12, 4))
    x = torch.randn(64, 12)
    optimizer = torch.optim.Adam(student.parameters(), 0.03)

    def loss(model):
        return nn.functional.mse_loss(model(x), teacher(x).detach())

    with torch.no_grad():
        before = float(loss(to_spiking(student)))
    with spike_aware(student, SpikeSettings()):
        for _ in range(100):
            optimizer.zero_grad()
            last = loss(student)
            last.backward()
            optimizer.step()
    with torch.no_grad():
        after = float(loss(to_spiking(student)))
    assert after < 0.2 * before
    assert after == pytest.approx(float(last.detach()), rel=0.1)


class Adapter(nn.Module):
    """A layer with an adapter, as peft has it."""

    adapter_layer_names = ("lora_A", "lora_B")

    def __init__(self):
        super().__init__()
        self.base_layer = nn.Linear(6, 6)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(6, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, 6, bias=False)})

    def forward(self, x):
        first = self.lora_A["default"]
        return self.base_layer(x) + self.lora_B["default"](first(x.to(first.weight.dtype)))


def test_adapters(monkeypatch):
    monkeypatch.setattr(Adapter, "__module__", "peft.tuners.lora.layer")
    monkeypatch.setitem(sys.modules, "peft.tuners.lora.layer", ModuleType("peft.tuners.lora.layer"))
    model, x = nn.Sequential(Adapter()), torch.randn(3, 6)
    spiking = to_spiking(model)
    assert spiking.conversion.converted == ("0.base_layer",)
    assert spiking.conversion.skipped == {
        f"0.{name}.default": "part of the adapter Adapter, which uses its weights" for name in ("lora_A", "lora_B")
    }
    with torch.no_grad():
        low = model[0].lora_B["default"](model[0].lora_A["default"](x))
        assert torch.equal(spiking(x), to_spiking(model[0].base_layer)(x) + low)
    model[0].lora_variant = {"default": "DoRA"}
    with pytest.raises(InputError, match="the adapter Adapter around it uses its weights"):
        to_spiking(model)


def test_a_wrapped_head_is_still_the_head(tiny_llama):
    tiny_llama.lm_head = nn.Sequential(tiny_llama.lm_head)
    conversion = to_spiking(tiny_llama).conversion
    assert conversion.skipped["lm_head.0"] == "output head"
    assert not any(isinstance(m, SpikeLinear) for m in to_spiking(tiny_llama).lm_head.modules())
