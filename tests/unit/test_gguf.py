"""GGUF files of other people: settings and tensors are honoured or named, whatever the file is called."""

import struct

import gguf
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import spikebrain as sb
from spikebrain.errors import CheckpointError
from spikebrain.models.io import gguf_file, gguf_once
from spikebrain.models.io.hub import check_finite

IDS = torch.arange(3, 60)[None]
_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    **{f"self_attn.{p}_proj": f"attn_{p}" for p in "qkv"},
    "self_attn.o_proj": "attn_output",
    **{f"mlp.{p}_proj": f"ffn_{p}" for p in ("gate", "up", "down")},
}


def llama(**changes):
    torch.manual_seed(0)
    sizes = {"vocab_size": 258, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
    config = LlamaConfig(**{**sizes, **heads, "eos_token_id": 256, "initializer_range": 0.3, **changes})
    return LlamaForCausalLM(config).eval()


def write(
    path, model, tokenizer, *, settings=None, tensors=None, keep=lambda name: True, part=None, typed=None, **options
):
    """Write a Llama model as llama.cpp's converter does: rotary pairs side by side, float32.

    `typed` has tensors of other types: bytes and the name of the type, by name.
    """
    config = model.config
    writer = gguf.GGUFWriter(path, "llama", **options)
    if part is None or part[0] == 0:
        writer.add_block_count(config.num_hidden_layers)
        writer.add_context_length(config.max_position_embeddings)
        writer.add_embedding_length(config.hidden_size)
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count(config.num_attention_heads)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_rope_dimension_count(config.head_dim)
        writer.add_rope_freq_base(10000.0)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_vocab_size(config.vocab_size)
        vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list([word for word, _ in vocabulary])
        writer.add_token_types([1] * 256 + [3, 1])
        writer.add_token_merges(["Ā Ā"] * 2)  # transformers before 5.24 takes a list of one for its element
        writer.add_bos_token_id(256)
        writer.add_eos_token_id(256)
    for name, value in (settings or {}).items():
        add = writer.add_string if isinstance(value, str) else writer.add_float32
        (writer.add_uint32 if isinstance(value, int) else add)(f"llama.{name}", value)
    if part is not None:
        writer.add_uint16("split.no", part[0])
        writer.add_uint16("split.count", part[1])
        writer.add_int32("split.tensors.count", part[2])
    for name, tensor in model.state_dict().items():
        block = name.split(".")[2] if name.startswith("model.layers") else None
        stem = name.removeprefix(f"model.layers.{block}.").removesuffix(".weight")
        target = ("" if block is None else f"blk.{block}.") + _NAMES[stem] + ".weight"
        if stem in ("self_attn.q_proj", "self_attn.k_proj"):
            heads = config.num_attention_heads if "q_proj" in stem else config.num_key_value_heads
            tensor = tensor.view(heads, 2, -1, config.hidden_size).transpose(1, 2).reshape(tensor.shape)  # noqa: PLW2901
        if keep(target):
            writer.add_tensor(target, tensor.contiguous().numpy())
    for name, tensor in (tensors or {}).items():
        writer.add_tensor(name, tensor)
    for name, (content, kind) in (typed or {}).items():
        writer.add_tensor(name, content, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def assert_same(path, model):
    loaded = sb.load(path)
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(IDS).logits, model(IDS).logits, atol=1e-4, rtol=1e-4)
    return loaded


@pytest.fixture
def tiny_file(tmp_path, tiny_llama, tokenizer):
    """The tiny Llama, whose head is tied to its embedding."""
    path = tmp_path / "tiny.gguf"
    write(path, tiny_llama, tokenizer, keep=lambda name: name != "output.weight")
    return path


def test_more_layers_than_tensors(tmp_path, tiny_llama, tokenizer):
    tiny_llama.config.num_hidden_layers = 10**9
    write(tmp_path / "m.gguf", tiny_llama, tokenizer)
    with pytest.raises(
        CheckpointError, match=r"m.gguf: expected num_hidden_layers of at most \d+, .* got 1,000,000,000"
    ):
        sb.load(tmp_path / "m.gguf")


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
            sb.load(path)


def test_gguf(tiny_file, tiny_llama, tokenizer, tmp_path):
    loaded = sb.load(tiny_file)
    ids = torch.arange(9)[None]
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(ids).logits, tiny_llama(ids).logits)
    assert loaded.tokenizer.encode("spikes") == tokenizer.encode("spikes")
    assert not hasattr(loaded.model.config, "quantization_config")
    # It is a float model like any other: it can be converted, saved and copied.
    spiking = sb.to_spiking(loaded.model)
    sb.save(spiking, tmp_path / "m.safetensors", loaded.tokenizer)
    again = sb.load(tmp_path / "m.safetensors")
    with torch.no_grad():
        assert torch.equal(again.model(ids).logits, spiking(ids).logits)


@pytest.mark.parametrize("share", [0.01, 0.3, 0.6, 0.9, 0.999])
def test_truncated_gguf(tiny_file, share):
    content = tiny_file.read_bytes()
    tiny_file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match=r"tiny\.gguf .*truncated, damaged"):
        sb.load(tiny_file)


def test_gguf_does_not_take_a_neighbours_tokenizer(tiny_file, tokenizer):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    other = Tokenizer(models.BPE(vocab={c: 255 - i for i, c in enumerate(alphabet)}, merges=[]))
    PreTrainedTokenizerFast(tokenizer_object=other).save_pretrained(tiny_file.parent)
    assert sb.load(tiny_file).tokenizer.encode("ab") == tokenizer.encode("ab")


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}


@pytest.mark.parametrize(
    ("settings", "rope"),
    [
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
        (
            {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 32},
            YARN,
        ),
        (
            {
                "rope.scaling.type": "yarn",
                "rope.scaling.factor": 4.0,
                "rope.scaling.original_context_length": 32,
                "rope.scaling.yarn_beta_fast": 16.0,
                "rope.scaling.attn_factor": 0.5,
            },
            {**YARN, "beta_fast": 16.0, "attention_factor": 0.5 * (0.1 * np.log(4.0) + 1)},
        ),
        ({"rope.scaling.type": "none"}, {"rope_type": "default"}),
        ({"attention.key_length": 8, "attention.value_length": 8, "expert_count": 0}, {"rope_type": "default"}),
    ],
    ids=["linear", "yarn", "yarn with factors", "none", "settings that say what the model has"],
)
def test_rotary_scaling_is_honoured(tmp_path, tokenizer, settings, rope):
    model = llama(rope_parameters={**rope, "rope_theta": 10000.0})
    write(tmp_path / "m.gguf", model, tokenizer, settings=settings)
    assert_same(tmp_path / "m.gguf", model)
    if rope["rope_type"] != "default":
        with pytest.raises(AssertionError):
            assert_same(tmp_path / "m.gguf", llama())  # plain rotary embedding gives other logits


def test_factors_of_llama_3_1_are_honoured(tmp_path, tokenizer):
    rope = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    model = llama(rope_parameters={**rope, "original_max_position_embeddings": 32, "rope_theta": 10000.0})
    plain = 1.0 / 10000.0 ** (torch.arange(0, 8, 2) / 8)
    factors = (plain / model.model.rotary_emb.inv_freq).numpy().astype(np.float32)
    assert factors.max() > 7  # it matters
    write(tmp_path / "m.gguf", model, tokenizer, tensors={"rope_freqs.weight": factors})
    assert_same(tmp_path / "m.gguf", model)


@pytest.mark.parametrize(
    ("settings", "tensors", "named"),
    [
        ({"rope.scaling.type": "su"}, {}, r"rope\.scaling\.type = 'su'"),
        ({"rope.scaling.type": "linear", "rope.scaling.log": 2.0}, {}, r"rope\.scaling\.log = 2\.0"),
        ({"attention.sliding_window": 16}, {}, r"attention\.sliding_window = 16"),
        ({"attention.key_length": 16}, {}, r"attention\.key_length = 16, where the model has head_dim = 8"),
        ({"expert_count": 4}, {}, "expert_count = 4"),
        ({"logit_scale": 0.5}, {}, "logit_scale = 0.5"),
        ({}, {"blk.0.attn_q_norm.weight": np.ones(8, np.float32)}, r"the tensor blk\.0\.attn_q_norm\.weight"),
        ({}, {"blk.7.attn_q.weight": np.ones((32, 32), np.float32)}, r"the tensor blk\.7\.attn_q\.weight"),
        (
            {"rope.scaling.type": "linear"},
            {"rope_freqs.weight": np.ones(4, np.float32)},
            r"'linear' together with the tensor rope_freqs\.weight",
        ),
    ],
)
def test_what_cannot_be_honoured_is_named(tmp_path, tokenizer, settings, tensors, named):
    write(tmp_path / "m.gguf", llama(), tokenizer, settings=settings, tensors=tensors)
    with pytest.raises(CheckpointError, match=named):
        sb.load(tmp_path / "m.gguf")


@pytest.mark.parametrize("name", ["m.GGUF", "a b ü [x] #1.gguf", "sha256-abcdef", "m.gguf.part"])
def test_a_file_is_known_by_its_content_not_its_name(tmp_path, tokenizer, name):
    model = llama()
    write(tmp_path / name, model, tokenizer)
    assert assert_same(tmp_path / name, model).tokenizer is not None


def test_without_the_right_to_make_links(tmp_path, tokenizer, monkeypatch):
    model = llama()
    write(tmp_path / "m.gguf", model, tokenizer)

    def refuse(*arguments):
        raise OSError(1314, "A required privilege is not held by the client")

    monkeypatch.setattr(gguf_file.os, "symlink", refuse)
    monkeypatch.setattr(gguf_file.os, "link", refuse)
    assert_same(tmp_path / "m.gguf", model)


def test_parts_are_joined(tmp_path, tokenizer):
    model, names = llama(), []
    write(tmp_path / "whole.gguf", model, tokenizer, keep=lambda name: names.append(name) or True)
    half = set(names[: len(names) // 2])
    for i in range(2):
        keep = (lambda name: name in half) if i == 0 else (lambda name: name not in half)
        path = tmp_path / f"m-{i + 1:05d}-of-00002.gguf"
        write(path, model, tokenizer, keep=keep, part=(i, 2, len(names)))
    assert assert_same(tmp_path / "m-00001-of-00002.gguf", model).tokenizer is not None
    assert_same(tmp_path / "m-00002-of-00002.gguf", model)
    (tmp_path / "m-00001-of-00002.gguf").rename(tmp_path / "elsewhere.gguf")
    with pytest.raises(CheckpointError, match=r"parts of the model are missing: m-00001-of-00002\.gguf"):
        sb.load(tmp_path / "m-00002-of-00002.gguf")
    with pytest.raises(CheckpointError, match="is one of 2 parts, whose names"):
        sb.load(tmp_path / "elsewhere.gguf")


def test_the_other_byte_order_is_named(tmp_path, tokenizer):
    write(tmp_path / "m.gguf", llama(), tokenizer, endianess=gguf.GGUFEndian.BIG)
    with pytest.raises(CheckpointError, match="is big-endian"):
        sb.load(tmp_path / "m.gguf")


def test_lack_of_memory_is_not_blamed_on_the_file(tmp_path, tokenizer, monkeypatch):
    write(tmp_path / "m.gguf", llama(), tokenizer)

    def full(*arguments, **options):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(gguf_file, "read_weights", full)
    with pytest.raises(CheckpointError, match="not enough memory"):
        sb.load(tmp_path / "m.gguf")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_one_element_that_is_no_number_is_found(bad, dtype):
    model = torch.nn.Sequential(torch.nn.Linear(0, 3, bias=False), torch.nn.Linear(300, 7)).to(dtype)
    check_finite(model, "m")
    with torch.no_grad():
        model[1].weight[4, 299] = bad
    with pytest.raises(CheckpointError, match=rf"m: expected finite weights, got {bad} at \(4, 299\) of 1.weight"):
        check_finite(model, "m")


def test_weights_that_are_no_numbers_are_refused(tmp_path, tokenizer):
    model = llama()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 2] = torch.nan
    write(tmp_path / "m.gguf", model, tokenizer)
    with pytest.raises(CheckpointError, match=r"got nan at \(3, 2\) of model\.layers\.1\.mlp\.up_proj\.weight"):
        sb.load(tmp_path / "m.gguf")


def test_a_file_is_read_once_for_all_who_ask(tmp_path, tokenizer, monkeypatch):
    write(tmp_path / "m.gguf", llama(), tokenizer)
    write(tmp_path / "other.gguf", llama(num_hidden_layers=1), tokenizer)
    opened, tables = [], []
    read, make, reader = gguf.GGUFReader.__init__, gguf.get_tensor_name_map, gguf.GGUFReader
    monkeypatch.setattr(reader, "__init__", lambda self, path, *a: (opened.append(path), read(self, path, *a))[1])
    monkeypatch.setattr(gguf, "get_tensor_name_map", lambda *a: (tables.append(a), make(*a))[1])
    sb.load(tmp_path / "m.gguf")
    assert (len(opened), len(tables)) == (1, 1)
    assert gguf.GGUFReader is reader

    ours = gguf_once.Reader(tmp_path / "m.gguf")
    with gguf_once.shared_with_transformers(ours, tmp_path / "m.gguf"):
        assert gguf.GGUFReader(str(tmp_path / "m.gguf")) is ours
        assert gguf.GGUFReader(tmp_path / "m.gguf", "c") is not ours  # may be written to
        assert len(gguf.GGUFReader(tmp_path / "other.gguf").tensors) < len(ours.tensors)
    assert gguf.GGUFReader is reader
