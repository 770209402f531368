"""Every way in which a model cannot be loaded has its own message; none opens a pickle."""

import pickle
import shutil
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from spikebrain import load, to_spiking
from spikebrain.errors import CheckpointError


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
    to_spiking(load(model_folder).model).save_pretrained(tmp_path / "converted")
    with pytest.raises(CheckpointError, match=r"unexpected|transformers cannot load it"):  # newer and older versions
        load(tmp_path / "converted")
