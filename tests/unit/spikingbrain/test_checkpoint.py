"""Model folders: there and back in both layouts, everything that may be wrong with them, and memory while reading."""

import json
import os
import subprocess
import sys

import pytest
import torch
from fast_first import fast_first
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import spikebrain
from spikebrain import spikingbrain_settings
from spikebrain.errors import CheckpointError, InputError
from spikebrain.models.conversion import to_spiking
from spikebrain.models.io import read_folder, save
from spikebrain.models.spikingbrain import SpikingBrainForCausalLM, tiny_7b, tiny_76b

INDEX = "model.safetensors.index.json"


@pytest.fixture(params=fast_first(["7b", "76b", "7b tied"], 2))
def model(request):
    config = {"7b": tiny_7b(), "7b tied": tiny_7b(tie_word_embeddings=True), "76b": tiny_76b()}[request.param]
    model = SpikingBrainForCausalLM(config).eval()
    model.generation_config.max_new_tokens = 7
    return model


@pytest.fixture
def folder(tmp_path):
    save(SpikingBrainForCausalLM(tiny_7b()), tmp_path, max_shard_bytes=100_000)
    return tmp_path


def rewrite(folder, change):
    """Read all shards, change their tensors, and write them as one."""
    tensors = {}
    for file in folder.glob("*.safetensors"):
        tensors |= load_file(file)
        file.unlink()
    (folder / INDEX).unlink()
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("setting", "group_size"),
    [(None, None), pytest.param("as-described", None, marks=pytest.mark.slow), ("as-released", 32)],
)
def test_there_and_back(model, tmp_path, setting, group_size, dtype):
    if setting is not None:
        model = to_spiking(model, spikingbrain_settings(setting, group_size=group_size, k=2.0))
    model = model.to(dtype)
    save(model, tmp_path, max_shard_bytes=50_000)
    read = read_folder(tmp_path)
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) >= 3
    assert read.settings == model.settings
    assert (read.dtype, read.training, read.generation_config.max_new_tokens) == (dtype, False, 7)
    expected, found = model.state_dict(), read.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], x) and found[name].dtype == x.dtype for name, x in expected.items())
    assert (read.lm_head.weight is read.model.embeddings.weight) == model.settings.tie_word_embeddings
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(read(ids).logits, model(ids).logits)
    # By load, a float model becomes float32, and one on spikes keeps what it was saved in, as in transformers.
    assert spikebrain.load(tmp_path).model.dtype == (torch.float32 if setting is None else dtype)


def test_names_of_the_released_layout(tmp_path):
    model = SpikingBrainForCausalLM(tiny_7b(gate="full", initializer_range=0.1))
    save(to_spiking(model, spikingbrain_settings("as-released", group_size=16)), tmp_path, released=True)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["model_type"], config["attn_layers"], config["w_group_size"]) == ("gla_swa", [1, 3], 16)
    with safe_open(tmp_path / "model-00001-of-00001.safetensors", "pt") as file:
        names = set(file.keys())
        scales = file.get_tensor("model.layers.1.mlp.up_proj.weight_quantizer.scales")
        rounded = file.get_tensor("model.layers.1.mlp.up_proj.weight")
    assert scales.shape == (96, 4, 1)
    weight = model.model.layers[1].mlp.up_proj.weight
    assert (rounded - weight).abs().max().item() <= scales.max().item() / 2 * 1.001
    attention = {f"{p}_proj.{kind}" for p in "qkv" for kind in ("weight", "bias")} | {"o_proj.weight"}
    assert {n.removeprefix("model.layers.1.attn.") for n in names if "layers.1.attn." in n} == attention | {
        f"{p}_proj.weight_quantizer.scales" for p in "qkvo"
    }
    assert {"model.embeddings.weight", "model.norm.weight", "lm_head.weight"} <= names
    assert "model.layers.0.attn.gk_proj.weight_quantizer.scales" in names
    # down_proj, which has no scales as released, gets its own where it spikes.
    # What the released file does not say is told by the names, and by the reader.
    assert read_folder(tmp_path).settings.spiking == "as-described"
    read = read_folder(tmp_path, spiking="as-released")
    assert (read.settings.gate, read.settings.spiking) == ("full", "as-released")
    with pytest.raises(InputError, match="no such"):
        save(SpikingBrainForCausalLM(tiny_76b()), tmp_path, released=True)


def test_float_folder_may_be_read_on_spikes(folder):
    read, model = read_folder(folder, spiking="as-described"), read_folder(folder)
    assert read.settings.spiking == "as-described"
    expected = to_spiking(model).state_dict()
    assert all(torch.equal(x, expected[name]) for name, x in read.state_dict().items())


def test_all_that_is_wrong_is_told_at_once(folder):
    def change(tensors):
        del tensors["model.norm.weight"], tensors["model.layers.1.attn.q_proj.bias"]
        tensors["model.layers.4.mlp.up_proj.weight"] = torch.ones(2, 2)
        tensors["model.layers.0.mlp.up_proj.weight"] = torch.ones(3, 64)
        tensors["model.layers.2.attn_norm.weight"][5] = torch.nan
        tensors["lm_head.weight"][1, 1] = torch.inf
        tensors["model.layers.3.mlp_norm.weight"] = torch.ones(64, dtype=torch.int64)

    rewrite(folder, change)
    with pytest.raises(CheckpointError) as caught:
        read_folder(folder)
    text = str(caught.value)
    assert "missing: model.layers.1.attn.q_proj.bias, model.norm.weight;" in text
    assert "unexpected: model.layers.4.mlp.up_proj.weight;" in text
    assert "of another shape: model.layers.0.mlp.up_proj.weight (3, 64) instead of (96, 64);" in text
    assert "not finite: lm_head.weight, model.layers.2.attn_norm.weight" in text
    assert "not of floats: model.layers.3.mlp_norm.weight (torch.int64)" in text


@pytest.mark.parametrize("name", fast_first(["model.layers.0.attn.k_proj", "model.layers.2.mlp.gate_proj"]))
def test_missing_and_wrong_scales(tmp_path, name):
    save(to_spiking(SpikingBrainForCausalLM(tiny_7b())), tmp_path)
    rewrite(tmp_path, lambda tensors: tensors.pop(f"{name}.scale"))
    with pytest.raises(CheckpointError, match=f"missing: {name}.scale"):
        read_folder(tmp_path)
    save(to_spiking(SpikingBrainForCausalLM(tiny_7b())), tmp_path)
    rewrite(tmp_path, lambda tensors: tensors[f"{name}.scale"].fill_(torch.nan))
    with pytest.raises(CheckpointError, match=f"{name}: SpikeLinear.scale: expected finite"):
        read_folder(tmp_path)


def test_scales_of_a_float_model_are_unexpected(folder):
    rewrite(
        folder,
        lambda tensors: tensors.update({"model.layers.0.attn.q_proj.weight_quantizer.scales": torch.ones(64, 1)}),
    )
    with pytest.raises(CheckpointError, match=r"unexpected: model\.layers\.0\.attn\.q_proj\.weight_quantizer\.scales"):
        read_folder(folder)


def test_a_shard_is_missing(folder):
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(CheckpointError, match=f"1 weight files of its index are missing: {shard.name}"):
        spikebrain.load(folder)


def test_other_damage(folder):
    shard = sorted(folder.glob("*.safetensors"))[2]
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=f"{shard.name}.*(damaged|truncated)"):
        read_folder(folder)
    shard.write_bytes(whole)
    config = json.loads((folder / "config.json").read_text())
    for fields, message in [
        ({**config, "windwo": 3}, r"unknown fields \['windwo'\]"),
        ({**config, "window": 0}, "window: expected an integer >= 1, got 0"),
        ({**config, "num_kv_heads": 3}, "divisor of num_heads"),
    ]:
        (folder / "config.json").write_text(json.dumps(fields))
        with pytest.raises(InputError, match=message):
            read_folder(folder)
    (folder / "config.json").write_text("[1")
    with pytest.raises(CheckpointError, match=r"config\.json: expected JSON"):
        spikebrain.load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        read_folder(folder)


@pytest.mark.parametrize("setting", fast_first(["as-released", None, "as-described"]))
def test_transformers_opens_a_folder(tmp_path, setting):
    model = SpikingBrainForCausalLM(tiny_7b(initializer_range=0.1)).eval()
    if setting is not None:
        model = to_spiking(model, spikingbrain_settings(setting, group_size=16))
    model.save_pretrained(tmp_path)
    opened, ids = AutoModelForCausalLM.from_pretrained(tmp_path), torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(opened(ids).logits, model(ids).logits)
        assert torch.equal(spikebrain.load(tmp_path).model(ids).logits, model(ids).logits)
    assert opened.settings == model.settings
    assert getattr(opened, "conversion", None) == getattr(model, "conversion", None)


def test_too_coarse_for_the_weights(tmp_path):
    model = SpikingBrainForCausalLM(tiny_7b(gate="full"))
    model.model.layers[0].mlp.up_proj.weight.data *= 1e-6
    with pytest.raises(InputError, match=r"float16 is too coarse for the weights of model\.layers\.0\.mlp\.up_proj"):
        save(to_spiking(model).half(), tmp_path, released=True)


MEMORY = """
import sys
from spikebrain.models.io import read_folder
from spikebrain.models.spikingbrain import SpikingBrainForCausalLM, tiny_7b

def status(key):
    return int(next(line for line in open("/proc/self/status") if line.startswith(key)).split()[1]) * 1024

SpikingBrainForCausalLM(tiny_7b())
for spiking in (None, "as-described"):
    open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
    before = status("VmRSS")
    model = read_folder(sys.argv[1], spiking=spiking)
    own = [*model.parameters(), *model.buffers()]
    print(status("VmHWM") - before, sum(x.numel() * x.element_size() for x in own))
    del model, own
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory of a process from /proc")
def test_memory_while_reading_is_near_the_size_of_the_model(tmp_path):
    # 6 layers of 3 * 512 * 2048 + 2.5 * 512 * 512 weights: 92 MB in float32, in shards of 20; 23 MB in INT8.
    config = tiny_7b(hidden_size=512, num_heads=8, num_kv_heads=2, head_dim=64, intermediate_size=2048)
    save(SpikingBrainForCausalLM(config.replace(layers=["gla", "swa"] * 3)), tmp_path, max_shard_bytes=20_000_000)
    # glibc gives freed memory back where it came from mmap, which a real model's tensors are large enough for.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-c", MEMORY, str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    for line, expected in zip(run.stdout.splitlines(), (92e6, 23e6), strict=True):
        used, size = map(int, line.split())
        assert size == pytest.approx(expected, rel=0.05)
        assert used < size + 35e6, line
