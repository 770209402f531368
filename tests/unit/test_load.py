"""Every way in which a model cannot be loaded has its own message; none opens a pickle."""

import pickle
import shutil
import struct
from pathlib import Path

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from spikebrain import load, save, to_spiking
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
    with pytest.raises(CheckpointError, match="weight_map"):
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


def test_bad_gguf(tmp_path):
    path = tmp_path / "m.gguf"
    for content, message in (
        (b"", "starts with b''"),
        (b"PK\x03\x04zip", "starts with"),
        (b"GGUF", "truncated"),
        (b"GGUF" + struct.pack("<IQQ", 3, 5, 5), "truncated"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 2**60), "truncated"),
        (b"GGUF" + struct.pack("<IQQ", 999, 0, 0), "GGUF"),
    ):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=message):
            load(path)


def test_other_files(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"expected a \.gguf or \.safetensors"):
        load(path)


@pytest.fixture
def gguf_file(tmp_path, tiny_llama, tokenizer):
    """The tiny Llama as a GGUF file, written with the gguf package: Q8_0 where rows allow it, else float32."""
    path = tmp_path / "tiny.gguf"
    config = tiny_llama.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([token for token, _ in vocabulary])
    writer.add_token_types([1] * 256 + [3, 1])
    writer.add_token_merges(["Ā Ā"])
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(256)
    names = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        **{f"self_attn.{p}_proj": f"attn_{p}" for p in "qkv"},
        "self_attn.o_proj": "attn_output",
        **{f"mlp.{p}_proj": f"ffn_{p}" for p in ("gate", "up", "down")},
    }
    for name, tensor in tiny_llama.state_dict().items():
        if name == "lm_head.weight":
            continue  # tied
        block = name.split(".")[2] if name.startswith("model.layers") else None
        stem = name.removeprefix(f"model.layers.{block}.").removesuffix(".weight")
        weight = tensor
        if stem in ("self_attn.q_proj", "self_attn.k_proj"):
            # GGUF stores the two halves of each head's rotary pairs interleaved.
            heads = config.num_attention_heads if stem[10] == "q" else config.num_key_value_heads
            weight = tensor.view(heads, 2, -1, config.hidden_size).transpose(1, 2).reshape(tensor.shape)
        target = names[stem] if block is None else f"blk.{block}.{names[stem]}"
        writer.add_tensor(f"{target}.weight", weight.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_gguf(gguf_file, tiny_llama, tokenizer, tmp_path):
    loaded = load(gguf_file)
    ids = torch.arange(9)[None]
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(ids).logits, tiny_llama(ids).logits)
    assert loaded.tokenizer.encode("spikes") == tokenizer.encode("spikes")
    assert not hasattr(loaded.model.config, "quantization_config")
    # It is a float model like any other: it can be converted, saved and copied.
    spiking = to_spiking(loaded.model)
    save(spiking, tmp_path / "m.safetensors", loaded.tokenizer)
    again = load(tmp_path / "m.safetensors")
    with torch.no_grad():
        assert torch.equal(again.model(ids).logits, spiking(ids).logits)


@pytest.mark.parametrize("share", [0.01, 0.3, 0.6, 0.9, 0.999])
def test_truncated_gguf(gguf_file, share):
    content = gguf_file.read_bytes()
    gguf_file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match=r"tiny\.gguf .*truncated, damaged"):
        load(gguf_file)


def test_gguf_does_not_take_a_neighbours_tokenizer(gguf_file, tokenizer):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    other = Tokenizer(models.BPE(vocab={c: 255 - i for i, c in enumerate(alphabet)}, merges=[]))
    PreTrainedTokenizerFast(tokenizer_object=other).save_pretrained(gguf_file.parent)
    assert load(gguf_file).tokenizer.encode("ab") == tokenizer.encode("ab")


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
