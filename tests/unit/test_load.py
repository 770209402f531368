"""Every way in which a model cannot be loaded has its own message; none opens a pickle."""

import json
import pickle
import re
import shutil
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedModel

from spikebrain import load, save, to_spiking
from spikebrain.errors import CheckpointError
from spikebrain.models.io.preview import preview
from spikebrain.models.spikingbrain import SpikingBrainForCausalLM, tiny_7b


class Bomb:
    """A pickle that leaves a trace when it is opened."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_folder(model_folder, tiny_llama, tokenizer):
    loaded = load(model_folder)
    ids = torch.arange(9)[None]
    with torch.no_grad():
        assert torch.equal(loaded.model(ids).logits, tiny_llama(ids).logits)
    assert loaded.tokenizer("a b")["input_ids"] == tokenizer("a b")["input_ids"]
    assert loaded.source == str(model_folder)
    assert not loaded.model.training


def test_dtype(model_folder):
    assert load(model_folder, dtype=torch.bfloat16).model.lm_head.weight.dtype == torch.bfloat16


def test_folder_without_tokenizer(model_folder):
    for file in model_folder.glob("*token*"):
        file.unlink()
    assert load(model_folder).tokenizer is None


def test_shards(model_folder, tiny_llama):
    shutil.rmtree(model_folder)
    tiny_llama.save_pretrained(model_folder, max_shard_size="10KB")
    shards = sorted(model_folder.glob("*.safetensors"))
    assert len(shards) > 1
    load(model_folder)
    shards[1].unlink()
    with pytest.raises(CheckpointError, match=f"1 weight files.*missing: {shards[1].name}"):
        load(model_folder)
    (model_folder / "model.safetensors.index.json").write_text("{broken")
    with pytest.raises(CheckpointError, match=r"index\.json: expected JSON"):
        load(model_folder)


@pytest.mark.parametrize("name", ["nothing/here/at/all", "missing.gguf", "missing.safetensors", "no such model"])
def test_missing(name):
    with pytest.raises(CheckpointError, match="no such file or folder"):
        load(name)


def test_hub_id_without_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("We couldn't connect")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", refuse)
    with pytest.raises(CheckpointError, match=r"owner/model: no such file.*as a hub id.*couldn't connect.*network"):
        load("owner/model")


def test_hub_id_asks_for_safetensors_and_runs_no_code(monkeypatch, tiny_llama, tokenizer):
    asked = {}

    def model(name, **options):
        asked.update(options, name=name)
        return tiny_llama, {"missing_keys": set(), "unexpected_keys": set(), "mismatched_keys": set()}

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", model)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda name, **options: tokenizer)
    assert load("owner/model").model is tiny_llama
    assert (asked["name"], asked["use_safetensors"], asked["trust_remote_code"]) == ("owner/model", True, False)
    assert asked["local_files_only"] is False


@pytest.mark.parametrize("suffix", ["bin", "pt", "pth", "pkl", "ckpt"])
def test_pickle_file_is_never_opened(tmp_path, suffix):
    path = tmp_path / f"model.{suffix}"
    path.write_bytes(pickle.dumps(Bomb(tmp_path / "opened")))
    with pytest.raises(CheckpointError, match="pickle can run any code"):
        load(path)
    assert not (tmp_path / "opened").exists()


def test_pickle_folder_is_never_opened(model_folder, tmp_path):
    (model_folder / "model.safetensors").unlink()
    (model_folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "opened")))
    with pytest.raises(CheckpointError, match=r"only pickles \(pytorch_model\.bin\), which are never opened"):
        load(model_folder)
    assert not (tmp_path / "opened").exists()


def test_folder_without_weights_or_config(model_folder):
    (model_folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="expected safetensors weights, found none"):
        load(model_folder)
    (model_folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        load(model_folder)


def test_code_beside_a_model_is_not_run(model_folder):
    config = model_folder / "config.json"
    config.write_text(config.read_text().replace('"model_type": "llama"', '"model_type": "made-up"'))
    with pytest.raises(CheckpointError, match="made-up"):
        load(model_folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "too short"),
        (b"abc", "too short"),
        (struct.pack("<Q", 2**62) + b"{}", "header of 4,611,686,018,427,387,904 bytes and has 10 bytes"),
        (struct.pack("<Q", 1000) + b"{}", "header of 1,000 bytes"),
        (struct.pack("<Q", 2) + b"}{", "damaged safetensors"),
        (struct.pack("<Q", 2) + b"{}", "spikebrain.save wrote"),
    ],
)
def test_bad_safetensors(tmp_path, model_folder, content, message):
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        load(path)
    if "spikebrain.save" not in message:
        (model_folder / "model.safetensors").write_bytes(content)
        with pytest.raises(CheckpointError, match=message):
            load(model_folder)


def test_truncated_safetensors(model_folder):
    path = model_folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="damaged safetensors"):
        load(model_folder)


def test_other_files(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"expected a \.gguf or \.safetensors"):
        load(path)


def test_missing_tensors_are_not_made_up(model_folder):
    path = model_folder / "model.safetensors"
    # Copied: older versions of safetensors write over the file in which these tensors still are.
    weights = {name: tensor.clone() for name, tensor in load_file(path).items()}
    down = weights.pop("model.layers.0.mlp.down_proj.weight")
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"missing:? model\.layers\.0\.mlp\.down_proj\.weight"):
        load(model_folder)
    weights["model.layers.0.mlp.down_proj.weight"] = down[:, :5].contiguous()
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="down_proj"):
        load(model_folder)


def test_folder_of_a_converted_model_is_not_read_as_floats(model_folder, tmp_path):
    # transformers can write it, but its INT8 numbers would be read without their scales.
    PreTrainedModel.save_pretrained(to_spiking(load(model_folder).model), tmp_path / "converted")
    with pytest.raises(CheckpointError, match="expected weights of floating-point numbers, got I8"):
        load(tmp_path / "converted")


def test_buffers_of_old_checkpoints_are_listed_and_ignored(model_folder, tiny_llama, caplog):
    file, name = model_folder / "model.safetensors", "model.layers.0.self_attn.masked_bias"
    save_file({**load_file(file), name: torch.ones(3)}, file, metadata={"format": "pt"})
    with caplog.at_level("INFO", logger="spikebrain"):
        loaded = load(model_folder)
    ids = torch.arange(9)[None]
    with torch.no_grad():
        assert torch.equal(loaded.model(ids).logits, tiny_llama(ids).logits)
    assert f"1 buffers are not used, as they follow from the configuration: {name}" in caplog.text
    save_file({**load_file(file), "model.layers.0.extra": torch.ones(3)}, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"unexpected: model\.layers\.0\.extra\. Fetch"):
        load(model_folder)


def test_a_folder_with_the_name_of_something_else(model_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model_folder.rename("smollm2")
    with pytest.raises(CheckpointError, match=r"names the built-in model, but there is a file or folder.*\./smollm2"):
        load("smollm2")
    assert load("./smollm2").source == "smollm2"
    assert load(Path("smollm2")).source == "smollm2"
    Path("owner").mkdir()
    Path("smollm2").rename("owner/name")
    assert load("owner/name").source == "owner/name"
    Path("owner/name/config.json").unlink()
    with pytest.raises(CheckpointError, match=r"no config\.json\. To load the hub id of that name, run from another"):
        load("owner/name")


def test_a_damaged_generation_configuration_is_not_left_out(model_folder):
    (model_folder / "generation_config.json").write_text("{broken")
    with pytest.raises(CheckpointError, match="is no generation configuration"):
        load(model_folder)


def test_a_tokenizer_of_vocabulary_and_merges(tmp_path):
    config = GPT2Config(vocab_size=260, n_embd=24, n_layer=1, n_head=4, n_positions=64)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    letters = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    (tmp_path / "vocab.json").write_text(json.dumps({**letters, "zz": 256}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\nz z\n")
    assert load(tmp_path).tokenizer("azz")["input_ids"] == [letters["a"], 256]
    (tmp_path / "vocab.json").write_text("{")
    with pytest.raises(CheckpointError, match="transformers cannot load it"):
        load(tmp_path)


def test_integers_are_no_float_weights(model_folder):
    path = model_folder / "model.safetensors"
    weights = load_file(path)
    name = "model.layers.0.mlp.up_proj.weight"
    save_file({**weights, name: (100 * weights[name]).to(torch.int8)}, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=rf"expected weights of floating-point numbers, got I8 for {name}"):
        load(model_folder)


@pytest.mark.parametrize("kind", ["float", "spiking", "SpikingBrain", "compressed-tensors"])
def test_more_layers_than_tensors_are_refused_before_one_is_built(tmp_path, tiny_llama, model_folder, kind):
    if kind == "float":
        folder = model_folder
    elif kind == "SpikingBrain":
        folder = tmp_path / "m"
        save(SpikingBrainForCausalLM(tiny_7b()), folder, released=True)
    else:
        folder = tmp_path / "m"
        save(to_spiking(tiny_llama), folder, format="spikebrain" if kind == "spiking" else kind)
    config = folder / "config.json"
    content = config.read_text()
    changed = re.sub(r'"num_hidden_layers": *\d+', f'"num_hidden_layers": {10**12}', content)
    assert changed != content
    config.write_text(changed)
    index = folder / "model.safetensors.index.json"
    if index.exists():  # as of a file that was made so, not damaged
        fields = json.loads(index.read_text())
        fields["metadata"].get("sha256", {}).pop("config.json", None)
        index.write_text(json.dumps(fields))
    with pytest.raises(CheckpointError, match=r"config.json: expected num_hidden_layers of at most \d+, the tensors"):
        load(folder)
    assert preview(folder) is None
