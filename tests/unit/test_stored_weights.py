"""The integers of a GGUF file are kept exactly, or a layer says why not."""

import copy

import gguf
import numpy as np
import pytest
import torch
from fast_first import fast_first
from safetensors.torch import load_file, save_file
from test_gguf import write
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import spikebrain as sb
from spikebrain.errors import CheckpointError, InputError
from spikebrain.models.io.gguf_blocks import BLOCK_TYPES, unpack_rows
from spikebrain.models.layers import spiking_layers
from spikebrain.models.layers.quantize import dequantize

STORED = sb.SpikeSettings(weights="stored", include_head=True)
IDS = torch.arange(3, 30)[None]
# Where 16-bit numbers lie in a block, by type; the rest of random bytes is valid as it is.
HALVES = {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}
HALVES |= {"Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,)}


def random_rows(kind, num_out, num_in, seed=0):
    """Return the bytes of a tensor with every kind of integer, scales of both signs, and zeros."""
    size, num_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (num_out * num_in // size, num_bytes)).astype(np.uint8)
    for at in HALVES[kind]:
        numbers = rng.normal(size=(len(blocks), 1)) * rng.choice([0, 0.002, 0.01], (len(blocks), 1))
        blocks[:, at : at + 2] = numbers.astype(np.float16).view(np.uint8)
    return blocks.reshape(num_out, -1)


def write_typed(path, tokenizer, kinds, *, tied=False, seed=0, **sizes):
    """Write a Llama whose linear layers have random integers; `kinds` gives the type of a tensor by its name."""
    torch.manual_seed(seed)
    shape = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 1, "vocab_size": 258}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    config = LlamaConfig(**{**shape, **heads, "eos_token_id": 256, "tie_word_embeddings": tied, **sizes})
    model, typed = LlamaForCausalLM(config), {}

    for name, (num_out, num_in) in {
        "token_embd": (258, 256),
        "output": (258, 256),
        **{f"blk.0.attn_{p}": (n, 256) for p, n in (("q", 256), ("k", 128), ("v", 128), ("output", 256))},
        **{f"blk.0.ffn_{p}": s for p, s in (("gate", (512, 256)), ("up", (512, 256)), ("down", (256, 512)))},
    }.items():
        kind = kinds(f"{name}.weight")
        if kind in ("F16", "BF16"):
            floats = np.random.default_rng(1).normal(size=(num_out, num_in)).astype(np.float32) * 0.02
            typed[f"{name}.weight"] = gguf.quantize(floats, gguf.GGMLQuantizationType[kind]), kind
        elif kind and not (tied and name == "output"):
            typed[f"{name}.weight"] = random_rows(kind, num_out, num_in, len(typed) + seed), kind
    dropped = {*typed, *(("output.weight",) if tied else ())}
    write(path, model, tokenizer, keep=lambda name: name not in dropped, typed=typed)
    return path


@pytest.mark.parametrize("kind", BLOCK_TYPES)
def test_integers_are_what_the_gguf_package_dequantises_bit_for_bit(kind):
    rows = random_rows(kind, 13, 768)
    found = unpack_rows(rows, kind)
    floats = dequantize(found.weight, found.scale, found.minimum, found.group_size).numpy()
    expected = gguf.dequantize(rows, gguf.GGMLQuantizationType[kind])
    assert np.array_equal(floats.view(np.int32), expected.view(np.int32))
    sb.SpikeLinear.from_quantized(found)  # checks shapes and the range of 4-bit integers
    assert found.weight_bits == (4 if kind in ("Q4_0", "Q4_1", "Q4_K", "Q2_K", "Q3_K") else 8)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_integers_that_the_gguf_package_wrote(kind):
    floats = np.random.default_rng(2).normal(size=(5, 64)).astype(np.float32)
    rows = gguf.quantize(floats, gguf.GGMLQuantizationType[kind])
    found = unpack_rows(rows, kind)
    assert np.array_equal(
        dequantize(found.weight, found.scale, found.minimum, 32).numpy(),
        gguf.dequantize(rows, gguf.GGMLQuantizationType[kind]),
    )


@pytest.mark.parametrize("kind", fast_first(["Q4_1", "Q6_K", "Q4_0", "Q8_0", "Q4_K", "Q2_K"], 2))
@pytest.mark.parametrize("tied", [False, True])
def test_a_model_keeps_the_integers_of_its_file(tmp_path, tokenizer, kind, tied, recwarn):
    loaded = sb.load(write_typed(tmp_path / "m.gguf", tokenizer, lambda name: kind, tied=tied))
    before = {name: p.clone() for name, p in loaded.model.named_parameters()}
    spiking = sb.to_spiking(loaded.model, STORED)
    assert not spiking.conversion.rounded
    assert not [w for w in recwarn if "INT8 rows" in str(w.message)]
    assert len(spiking.conversion.converted) == 8
    block = BLOCK_TYPES[kind]
    for layer in spiking_layers(spiking).values():
        assert (layer.group_size, layer.weight_bits) == (block.group_size, block.weight_bits)
    # As floats they are the loaded weights, number for number: q and k, whose rows transformers orders anew, too.
    dense = sb.to_dense(spiking)
    for name, p in dense.named_parameters():
        assert torch.equal(p, before[name if name in before else "model.embed_tokens.weight"]), name
    with torch.no_grad():
        assert torch.equal(dense(IDS).logits, loaded.model(IDS).logits)
    sb.save(spiking, tmp_path / "s.safetensors", loaded.tokenizer)
    again = sb.load(tmp_path / "s.safetensors").model
    assert again.conversion == spiking.conversion
    with torch.no_grad():
        assert torch.equal(again(IDS).logits, spiking(IDS).logits)
        assert not torch.equal(spiking(IDS).logits, sb.to_spiking(loaded.model)(IDS).logits)


def mixed(name):
    return {"output.weight": "Q6_K", "blk.0.ffn_down.weight": "F16", "blk.0.attn_v.weight": "BF16"}.get(name, "Q4_K")


def test_layers_without_integers_say_so_in_one_line(tmp_path, tokenizer):
    loaded = sb.load(write_typed(tmp_path / "m.gguf", tokenizer, mixed))
    with pytest.warns(UserWarning, match=r"2 of 8 layers get INT8 rows.*type BF16 .*type F16 ") as told:
        spiking = sb.to_spiking(loaded.model, STORED)
    assert len([w for w in told if "INT8 rows" in str(w.message)]) == 1
    assert {name.rpartition(".")[2] for name in spiking.conversion.rounded} == {"v_proj", "down_proj"}
    down = spiking.model.layers[0].mlp.down_proj
    assert (down.group_size, down.weight_bits, down.minimum) == (None, 8, None)
    assert spiking.lm_head.group_size == 16
    sb.save(spiking, tmp_path / "s.safetensors", loaded.tokenizer)
    assert sb.load(tmp_path / "s.safetensors").model.conversion.rounded == spiking.conversion.rounded


def test_without_any_integers_it_is_an_error(tmp_path, tokenizer, tiny_llama):
    loaded = sb.load(write_typed(tmp_path / "m.gguf", tokenizer, lambda name: "F16"))
    with pytest.raises(InputError, match=r"found none.*is of type F16 in the GGUF file, which is not one of Q4_0, .*"):
        sb.to_spiking(loaded.model, STORED)
    with pytest.raises(InputError, match=r"was not read from a GGUF file.*take int8 or int4"):
        sb.to_spiking(tiny_llama, STORED)


def test_a_weight_that_was_changed_does_not_use_stale_integers(tmp_path, tokenizer):
    loaded = sb.load(write_typed(tmp_path / "m.gguf", tokenizer, lambda name: "Q4_1", tied=True)).model
    with torch.no_grad():
        loaded.model.layers[0].mlp.up_proj.weight[3, 5] += 1e-3  # as training does
        loaded.model.layers[0].mlp.gate_proj.weight = nn.Parameter(torch.randn(512, 256))  # replaced
    loaded.resize_token_embeddings(300)
    changed = copy.deepcopy(loaded)
    with pytest.warns(UserWarning, match=r"3 of 8 layers"):
        spiking = sb.to_spiking(changed, STORED)
    assert set(spiking.conversion.rounded) == {
        "lm_head",
        "model.layers.0.mlp.up_proj",
        "model.layers.0.mlp.gate_proj",
    }
    assert "is not the one in the file any more" in spiking.conversion.rounded["model.layers.0.mlp.up_proj"]


def test_a_copy_in_bfloat16_and_a_file_that_is_gone(tmp_path, tokenizer):
    path = write_typed(tmp_path / "m.gguf", tokenizer, lambda name: "Q8_0")
    half, whole = sb.load(path, dtype=torch.bfloat16).model, sb.load(path).model
    spiking = sb.to_spiking(half, STORED)
    expected = sb.to_spiking(whole, STORED)
    for name, layer in spiking_layers(spiking).items():
        assert torch.equal(layer.weight, spiking_layers(expected)[name].weight)
    path.unlink()
    with pytest.raises(InputError, match=r"expected the GGUF file that the model was read from.*m\.gguf"):
        sb.to_spiking(whole, STORED)
    path.write_bytes(b"GGUF")
    with pytest.raises(InputError, match="is not the one that was read any more"):
        sb.to_spiking(whole, STORED)


def test_settings():
    with pytest.raises(InputError, match=r"weights: expected one of int8, stored, int4; got 'int2'"):
        sb.SpikeSettings(weights="int2")
    with pytest.raises(InputError, match=r"group_size: has no effect with `weights` stored"):
        sb.SpikeSettings(weights="stored", group_size=32)
    layer = nn.Sequential(nn.Linear(70, 3))
    with pytest.raises(InputError, match=r"scales: expected weights=.int8."):
        sb.to_spiking(layer, sb.SpikeSettings(weights="int4"), scales={"0": torch.ones(3, 1)})
    for size in (None, 16):
        spiking = sb.to_spiking(layer, sb.SpikeSettings(weights="int4", group_size=size))
        assert (spiking[0].weight_bits, spiking[0].group_size) == (4, size or 32)
        expected = sb.SpikeLinear.from_linear(layer[0], weight_bits=4, group_size=size)
        assert torch.equal(spiking[0].dequantized_weight(), expected.dequantized_weight())


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q6_K"])
def test_a_spikingbrain_model_and_its_folder_keep_the_integers(tmp_path, tokenizer, kind):
    loaded = sb.load(write_typed(tmp_path / "m.gguf", tokenizer, lambda name: kind))
    brain = sb.from_transformer(loaded.model, "full")
    spiking = sb.to_spiking(brain, sb.spikingbrain_settings(weights="stored"))
    assert not spiking.conversion.rounded
    ours, theirs = spiking.model.layers[0].attn.q_proj, loaded.model.model.layers[0].self_attn.q_proj
    assert torch.equal(ours.dequantized_weight(), theirs.weight)
    assert ours.weight_bits == BLOCK_TYPES[kind].weight_bits
    sb.save(spiking, tmp_path / "folder")
    again = sb.load(tmp_path / "folder").model
    for name, layer in spiking_layers(again).items():
        before = spiking.get_submodule(name)
        assert (layer.weight_bits, layer.group_size) == (before.weight_bits, before.group_size)
        assert torch.equal(layer.dequantized_weight(), before.dequantized_weight())
    with torch.no_grad():
        assert torch.equal(again(IDS).logits, spiking(IDS).logits)
    with pytest.raises(InputError, match=r"save\.released: expected INT8 weights with scales above 0"):
        sb.save(spiking, tmp_path / "released", released=True)


def test_int4_in_a_folder_and_a_lost_minimum(tmp_path, tokenizer):
    loaded = sb.load(write_typed(tmp_path / "m.gguf", tokenizer, lambda name: "F16"))
    spiking = sb.to_spiking(sb.from_transformer(loaded.model, "full"), sb.spikingbrain_settings(weights="int4"))
    sb.save(spiking, tmp_path / "folder")
    again = sb.load(tmp_path / "folder").model
    for name, layer in spiking_layers(again).items():
        for tensor in ("weight", "scale", "minimum"):
            assert torch.equal(getattr(layer, tensor), getattr(spiking.get_submodule(name), tensor)), (name, tensor)
    file = next((tmp_path / "folder").glob("*.safetensors"))
    tensors = load_file(file)
    tensors.pop("model.layers.0.attn.q_proj.minimum")
    save_file(tensors, file, {"format": "pt"})
    (tmp_path / "folder" / "model.safetensors.index.json").unlink()
    file.rename(tmp_path / "folder" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"missing: model\.layers\.0\.attn\.q_proj\.minimum"):
        sb.load(tmp_path / "folder")


def test_training_with_4_bits_in_the_loop_and_not_with_stored_ones(tiny_llama):
    settings = sb.SpikeSettings(weights="int4", group_size=16)
    with sb.spike_aware(tiny_llama, settings), torch.no_grad():
        aware = tiny_llama(IDS).logits
    with torch.no_grad():
        torch.testing.assert_close(aware, sb.to_spiking(tiny_llama, settings)(IDS).logits, atol=2e-3, rtol=1e-3)
    with pytest.raises(InputError, match=r"spike_aware\.settings: .*got .stored."), sb.spike_aware(tiny_llama, STORED):
        pass
