"""A spiking model is a Hugging Face model: transformers saves and opens it, and what it cannot open says why."""

import json
import os
import subprocess
import sys

import pytest
import torch
from fast_first import fast_first
from llama_type import spiking_model
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

import spikebrain
from spikebrain import AdaptiveThreshold, Chip, SpikeSettings, Ternary, to_dense, to_spiking
from spikebrain.errors import CheckpointError, InputError
from spikebrain.models import spiking_layers
from spikebrain.models.io.compressed_tensors import pack
from spikebrain.models.io.quantizer import SpikebrainQuantizer
from spikebrain.models.spikingbrain import SpikingBrainForCausalLM, tiny_7b
from spikebrain.neuro import NEURONS

IDS = torch.arange(12)[None]
SMALL = {"vocab_size": 90, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def mixtral():
    return MixtralForCausalLM(MixtralConfig(**SMALL, intermediate_size=48, num_key_value_heads=2, num_local_experts=4))


def gpt2():
    return GPT2LMHeadModel(GPT2Config(vocab_size=90, n_embd=32, n_layer=2, n_head=4, n_positions=64))


MODELS = {
    "4 bits, tied head": lambda: spiking_model(
        "llama, bias and scaled positions", SpikeSettings(weights="int4", include_head=True)
    ),
    "groups, neurons by name": lambda: spiking_model(
        "qwen3",
        SpikeSettings(neuron={"*down_proj": AdaptiveThreshold(5.0), "*": AdaptiveThreshold(2.0)}, group_size=24),
    ),
    "experts": lambda: to_spiking(mixtral().eval()),
    "transposed layers": lambda: to_spiking(gpt2().eval(), SpikeSettings(encoder=Ternary())),
    "half precision": lambda: spiking_model("llama").half(),
    "eager": lambda: to_spiking(
        LlamaForCausalLM._from_config(spiking_model().config, attn_implementation="eager").eval()
    ),
}


@pytest.mark.parametrize("name", fast_first(MODELS, 2))
def test_there_and_back(name, tmp_path):
    model = MODELS[name]()
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    for opened in (AutoModelForCausalLM.from_pretrained(tmp_path, device_map="auto"), spikebrain.load(tmp_path).model):
        assert type(opened) is type(model)
        assert torch.equal(logits(opened), logits(model))
        assert opened.conversion == model.conversion
        found = spiking_layers(opened)
        for key, layer in spiking_layers(model).items():
            assert (found[key].neuron, found[key].encoder, found[key].backend) == (
                layer.neuron,
                layer.encoder,
                layer.backend,
            )
            assert found[key].weight.t().is_contiguous()
    assert opened.dtype == model.dtype


def test_a_backend_keeps_its_arguments(tmp_path):
    chip = Chip("async-45nm", stream=True)
    model = spiking_model("llama", SpikeSettings(layers=("*.0.*q_proj",), backend=chip))
    spikebrain.save(model, tmp_path)
    layers = spiking_layers(AutoModelForCausalLM.from_pretrained(tmp_path))
    assert [layer.backend for layer in layers.values()] == [chip]


def test_it_can_be_saved_again_made_dense_and_pushed(tmp_path, monkeypatch):
    model = spiking_model()
    model.save_pretrained(tmp_path / "a")
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    opened.save_pretrained(tmp_path / "b")
    assert torch.equal(logits(spikebrain.load(tmp_path / "b").model), logits(model))
    to_dense(opened).save_pretrained(tmp_path / "dense")
    assert AutoConfig.from_pretrained(tmp_path / "dense").to_dict().get("quantization_config") is None
    pushed = []
    monkeypatch.setattr(type(model), "push_to_hub", lambda self, *names, **options: pushed.append(names))
    opened.save_pretrained(tmp_path / "c", push_to_hub=True, repo_id="me/it")
    assert pushed == [("me/it",)]
    opened.save_pretrained(tmp_path / "d", is_main_process=False)
    assert not (tmp_path / "d").exists()


def test_the_tokenizer_travels_along(tmp_path, tokenizer):
    model = spiking_model()
    spikebrain.save(model, tmp_path, tokenizer)
    assert AutoTokenizer.from_pretrained(tmp_path).get_vocab() == tokenizer.get_vocab()


PROCESS = """
import sys, torch
if sys.argv[1] == "import": import spikebrain
from transformers import AutoModelForCausalLM, LlamaForCausalLM
if sys.argv[1] == "late": import spikebrain
trust = {"trust_remote_code": True} if sys.argv[1] == "trust" else {}
kind = LlamaForCausalLM if sys.argv[1] == "class" else AutoModelForCausalLM
model = kind.from_pretrained(sys.argv[2], **trust)
torch.save(model(torch.arange(12)[None]).logits, sys.argv[3])
"""


def in_a_process(how, folder, out, **environment):
    given = {**os.environ, "HF_MODULES_CACHE": str(out.parent / "modules"), "HF_HUB_OFFLINE": "1", **environment}
    command = [sys.executable, "-c", PROCESS, how, str(folder), str(out)]
    return subprocess.run(command, env=given, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["import", "late", "trust"])
def test_in_a_fresh_process(how, tmp_path):
    model = spiking_model()
    model.save_pretrained(tmp_path / "model")
    ended = in_a_process(how, tmp_path / "model", tmp_path / "logits")
    assert ended.returncode == 0, ended.stderr
    assert torch.equal(torch.load(tmp_path / "logits"), logits(model))


@pytest.mark.slow
@pytest.mark.parametrize(("how", "told"), [("plain", "trust_remote_code"), ("class", "open-this-folder-with-Auto")])
def test_transformers_alone_refuses(how, told, tmp_path):
    spiking_model().save_pretrained(tmp_path / "model")
    ended = in_a_process(how, tmp_path / "model", tmp_path / "logits")
    assert ended.returncode != 0
    assert told in ended.stderr
    assert not (tmp_path / "logits").exists()


def test_without_the_package_the_file_in_the_folder_says_what_to_install(tmp_path, monkeypatch):
    spiking_model().save_pretrained(tmp_path)
    monkeypatch.setitem(sys.modules, "spikebrain.models.io", None)
    with pytest.raises(ImportError, match="Install it: pip install spikebrain"):
        exec(compile((tmp_path / "spikebrain_model.py").read_text(), "it", "exec"), {})


def change(folder, edit):
    config = json.loads((folder / "config.json").read_text())
    edit(config)
    (folder / "config.json").write_text(json.dumps(config))
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["metadata"]["sha256"].pop("config.json", None)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


DAMAGE = {
    "newer": (lambda config: config["quantization_config"].update(format=3), "format 2 .* got format 3"),
    "newer table": (lambda config: config["quantization_config"].update(version=9), "table of version 1, got 9"),
    "no table": (lambda config: config.pop("quantization_config"), "format 2 .* got none"),
    "layers": (lambda config: config["quantization_config"].pop("settings"), "the file was changed"),
    "no such layer": (
        lambda config: config["quantization_config"]["layers"].update({"model.none": {"settings": 0}}),
        "are not those of a LlamaForCausalLM",
    ),
    "model type": (lambda config: config["quantization_config"].update(base_type="neon"), "got 'neon'"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_changed_config(name, tmp_path):
    spiking_model().save_pretrained(tmp_path)
    edit, told = DAMAGE[name]
    change(tmp_path, edit)
    for read in (AutoModelForCausalLM.from_pretrained, spikebrain.load):
        with pytest.raises((CheckpointError, InputError), match=told):
            read(tmp_path)


def test_damaged_tensors(tmp_path):
    spiking_model().save_pretrained(tmp_path)
    file = tmp_path / "model-00001-of-00001.safetensors"
    whole = bytearray(file.read_bytes())
    whole[-9] ^= 1
    file.write_bytes(whole)
    for read in (AutoModelForCausalLM.from_pretrained, spikebrain.load):
        with pytest.raises(CheckpointError, match="is not what was saved"):
            read(tmp_path)
    file.write_bytes(whole[: len(whole) // 2])
    for read in (AutoModelForCausalLM.from_pretrained, spikebrain.load):
        with pytest.raises(CheckpointError, match=r"damaged|truncated"):
            read(tmp_path)


def test_a_plug_in_that_is_not_registered(tmp_path, monkeypatch):
    spiking_model().save_pretrained(tmp_path)
    monkeypatch.delitem(NEURONS._classes, "adaptive-threshold")
    for read in (AutoModelForCausalLM.from_pretrained, spikebrain.load):
        with pytest.raises(CheckpointError, match="import the module that registers it first"):
            read(tmp_path)


def test_what_cannot_be_saved(tmp_path):
    model = spiking_model()
    with pytest.raises(InputError, match=r"save_pretrained\.variant"):
        model.save_pretrained(tmp_path / "a", variant="fp16")
    with pytest.raises(InputError, match=r"unknown options \['shards'\]"):
        model.save_pretrained(tmp_path / "a", shards=3)
    with pytest.raises(InputError, match=r"state_dict: expected the names"):
        model.save_pretrained(tmp_path / "a", state_dict={})
    with pytest.raises(InputError, match="Call to_spiking first"):
        spikebrain.save(to_dense(model), tmp_path / "a")
    with pytest.raises(InputError, match=r"save\.format: expected one of spikebrain, compressed-tensors"):
        spikebrain.save(model, tmp_path / "a", format="gguf")
    with pytest.raises(InputError, match="has weights of 4 bits with minima"):
        spikebrain.save(
            spiking_model("llama", SpikeSettings(weights="int4")), tmp_path / "a", format="compressed-tensors"
        )
    with pytest.raises(InputError, match="is no linear layer"):
        spikebrain.save(to_spiking(gpt2()), tmp_path / "a", format="compressed-tensors")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("group_size", [None, 16])
def test_compressed_tensors_has_the_same_integers(tmp_path, group_size):
    model = spiking_model("llama", SpikeSettings(group_size=group_size, include_head=True))
    spikebrain.save(model, tmp_path, format="compressed-tensors")
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["model_type"], config["quantization_config"]["quant_method"]) == ("llama", "compressed-tensors")
    tensors = load_file(tmp_path / "model-00001-of-00001.safetensors")
    for name, layer in spiking_layers(model).items():
        words = tensors[f"{name}.weight_packed"]
        integers = torch.stack([(words >> 8 * i & 255) - 128 for i in range(4)], 2).flatten(1)
        assert torch.equal(integers[:, : layer.in_features].to(torch.int8), layer.weight)
        assert torch.equal(tensors[f"{name}.weight_scale"], layer.scale)
        assert tensors[f"{name}.weight_shape"].tolist() == list(layer.weight.shape)


@pytest.mark.parametrize("group_size", [None, 16])
def test_compressed_tensors_itself_reads_them(tmp_path, group_size):
    packing = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    model = spiking_model("llama", SpikeSettings(group_size=group_size))
    weight = next(iter(spiking_layers(model).values())).weight
    assert torch.equal(packing.pack_to_int32(weight.contiguous(), 8), pack(weight))
    spikebrain.save(model, tmp_path, format="compressed-tensors")
    opened = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(logits(opened), logits(to_dense(model)))


def test_compressed_tensors_of_a_spikingbrain_model(tmp_path):
    model = to_spiking(SpikingBrainForCausalLM(tiny_7b()).eval())
    spikebrain.save(model, tmp_path, format="compressed-tensors")
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["model_type"], config["spiking"]) == ("spikingbrain", None)
    assert "AutoConfig" in config["auto_map"]


def test_a_class_asked_directly(tmp_path):
    """As `transformers serve` does."""
    model = spiking_model()
    model.save_pretrained(tmp_path)
    opened = type(model).from_pretrained(tmp_path)
    assert torch.equal(logits(opened), logits(model))
    assert opened.config.model_type == "llama"
    opened.save_pretrained(tmp_path / "again")
    assert torch.equal(logits(spikebrain.load(tmp_path / "again").model), logits(model))


def test_the_quantizer_takes_the_calls_of_older_versions():
    # transformers 5.8 to 5.20 call it without the model, later versions with it.
    quantizer = SpikebrainQuantizer.__new__(SpikebrainQuantizer)
    for given in ([[]], [[], None]):
        assert quantizer.update_weight_conversions(*given) == []
