"""A save is whole or not there: killed at any moment, refused when it could not be read again, checked when it is."""

import json
import os
import signal
import warnings
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from spikebrain import load, save, to_spiking
from spikebrain.errors import CheckpointError, InputError
from spikebrain.models.conversion import from_transformer
from spikebrain.models.io import folder_writer, replace_folder, single_file
from spikebrain.models.spikingbrain import SpikingBrainForCausalLM, tiny_7b

IDS = torch.arange(20)[None]
INDEX = "model.safetensors.index.json"


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def brain(seed=0, **changes):
    torch.manual_seed(seed)
    return SpikingBrainForCausalLM(tiny_7b(initializer_range=0.1, **changes)).eval()


def killed_at(step, model, path):
    """Save in a process that kills itself before this step of the file system; return whether it got that far."""
    process = os.fork()
    if process == 0:
        steps = iter(range(10_000))

        def stepwise(function):
            def wrapped(*arguments, **options):
                if next(steps) == step:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*arguments, **options)

            return wrapped

        for name in ("replace", "unlink", "mkdir", "rmdir"):
            setattr(os, name, stepwise(getattr(os, name)))
        folder_writer.write_tensors = stepwise(folder_writer.write_tensors)
        Path.write_text = stepwise(Path.write_text)
        save(model, path, max_shard_bytes=150_000)
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(process, 0)[1])


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a fork of this process")
def test_a_save_that_is_killed_leaves_the_old_model_the_new_one_or_a_clear_error(tmp_path):
    old, new = brain(1), brain(2)
    seen, step, reached, told = [], 0, True, "A save into it was interrupted: save the model again"
    while reached:
        folder = tmp_path / str(step)
        save(old, folder, max_shard_bytes=100_000)
        reached = killed_at(step, new, folder)
        try:
            found = logits(load(folder).model)
            seen.append("old" if torch.equal(found, logits(old)) else "new" if torch.equal(found, logits(new)) else "?")
        except CheckpointError as error:
            seen.append("refused" if told in str(error) else str(error))
        if seen[-1] == "refused":
            save(new, folder)
            assert torch.equal(logits(load(folder).model), logits(new))
            assert not list(folder.glob(".saving-*"))
        step += 1
    assert sorted(set(seen), key=seen.index) == ["old", "refused", "new"]
    assert seen == sorted(seen, key=["old", "refused", "new"].index)


def test_a_save_that_fails_leaves_the_old_model(tmp_path, monkeypatch):
    old = brain(1)
    save(old, tmp_path / "m", max_shard_bytes=100_000)

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folder_writer, "write_tensors", full)
    with pytest.raises(CheckpointError, match=r"cannot be written.*No space left"):
        save(brain(2), tmp_path / "m")
    assert torch.equal(logits(load(tmp_path / "m").model), logits(old))
    assert not list((tmp_path / "m").glob(".*"))


def test_only_the_new_weights_and_tokenizer_stay_and_other_files_too(tmp_path, tokenizer):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "training.safetensors").write_bytes(b"state")
    (tmp_path / "merges.txt").write_text("of the old tokenizer")
    brain(1).save_pretrained(tmp_path)
    model = brain(2, vocab_size=258)
    save(model, tmp_path, tokenizer, max_shard_bytes=100_000)
    save(model, tmp_path, tokenizer)
    found = {file.name for file in tmp_path.iterdir()}
    weights = {"model-00001-of-00001.safetensors", "training.safetensors"}
    assert {name for name in found if name.endswith(".safetensors")} == weights
    assert "notes.txt" in found
    assert "merges.txt" not in found
    assert torch.equal(logits(load(tmp_path).model), logits(model))


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
@pytest.mark.parametrize("mask", [0o022, 0o027])
def test_files_have_the_permissions_of_the_umask(tmp_path, tokenizer, mask):
    before = os.umask(mask)
    try:
        save(to_spiking(brain(vocab_size=258)), tmp_path / "m.safetensors", tokenizer)
        save(brain(vocab_size=258), tmp_path / "folder", tokenizer)
    finally:
        os.umask(before)
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(files) >= 6
    assert {file.stat().st_mode & 0o777 for file in files} == {0o666 & ~mask}


def test_folders_of_which_it_is_unclear_what_they_hold_are_refused(tmp_path, tiny_llama):
    tiny_llama.save_pretrained(tmp_path, max_shard_size="10KB")
    shards = sorted(tmp_path.glob("*.safetensors"))
    index = json.loads((tmp_path / INDEX).read_text())
    files = list(index["weight_map"].values())
    first = next(file for file in files if files.count(file) > 1)
    shards.sort(key=lambda shard: shard.name != first)
    name = next(n for n, file in index["weight_map"].items() if file == first)

    def refused(match, weight_map=index["weight_map"]):
        (tmp_path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
        with pytest.raises(CheckpointError, match=match):
            load(tmp_path)

    without = {n: file for n, file in index["weight_map"].items() if n != name}
    refused(f"1 tensors are not where {INDEX} says: {name}", without)
    refused("tensors are not where", {**index["weight_map"], name: shards[1].name})
    refused("tensors are not where", {**index["weight_map"], "more": shards[1].name})
    refused(r"expected names of files in its folder, got '\.\./x\.safetensors'", {name: "../x.safetensors"})
    refused("expected names of files in its folder, got 5", {name: 5})
    whole = shards[1].read_bytes()
    save_file({**load_file(shards[1]), name: torch.ones(2)}, shards[1], metadata={"format": "pt"})
    refused(f"{name} is in .* and in .*")
    shards[1].write_bytes(whole)
    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    refused(f"both model.safetensors and {INDEX}")
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / INDEX).unlink()
    with pytest.raises(CheckpointError, match=f"expected {INDEX} beside model-00001"):
        load(tmp_path)


def test_the_state_of_a_training_is_no_model(tmp_path, tiny_llama):
    tiny_llama.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "training.safetensors")
    with pytest.raises(CheckpointError, match=r"found training\.safetensors, which are not read"):
        load(tmp_path)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path, tiny_llama, bad):
    model, spiking = brain(), to_spiking(tiny_llama)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] = bad
        spiking.model.norm.weight[2] = bad
    with pytest.raises(InputError, match=r"save: weights of model\.layers\.1\.mlp\.up_proj\.weight: .* at \(3, 4\)"):
        save(model, tmp_path / "folder")
    with pytest.raises(InputError, match=r"save: weights of model\.norm\.weight: expected finite, got (nan|inf)"):
        save(spiking, tmp_path / "m.safetensors")
    spiking = to_spiking(tiny_llama)
    spiking.model.layers[0].mlp.up_proj.scale[1] = bad
    with pytest.raises(InputError, match=r"save: weights of model\.layers\.0\.mlp\.up_proj\.scale"):
        save(spiking, tmp_path / "m.safetensors")
    assert not (tmp_path / "m.safetensors").exists()
    with torch.no_grad():
        tiny_llama.model.layers[0].self_attn.q_proj.weight[0, 1] = bad
    with pytest.raises(InputError, match=r"from_transformer: weights of model\.layers\.0\.self_attn\.q_proj\.weight"):
        from_transformer(tiny_llama, "gla,swa")


MAMBAS = {
    "mamba2": {"state_size": 8, "num_heads": 4, "head_dim": 12, "n_groups": 1, "expand": 2},
    "bamba": {
        "mamba_n_heads": 8,
        "mamba_d_head": 6,
        "mamba_d_state": 8,
        "mamba_n_groups": 1,
        "attn_layer_indices": [1],
    },
}


@pytest.mark.parametrize("kind", MAMBAS)
def test_a_configuration_with_infinity_comes_back(tmp_path, kind):
    sizes = {"vocab_size": 50, "hidden_size": 24, "num_hidden_layers": 2, "pad_token_id": 0}
    attention = {"intermediate_size": 40, "num_attention_heads": 4, "num_key_value_heads": 2} if kind == "bamba" else {}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes, **attention, **MAMBAS[kind])).eval()
    spiking = to_spiking(model)
    save(spiking, tmp_path / "m.safetensors")
    again = load(tmp_path / "m.safetensors").model
    assert torch.equal(logits(again), logits(spiking))
    if kind == "mamba2":
        assert tuple(again.config.time_step_limit) == (0.0, float("inf"))


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_could_not_be_read_again_does_not_replace_the_old_file(tmp_path, tiny_llama, monkeypatch, kind):
    model = to_spiking(tiny_llama) if kind == "file" else brain()
    path = tmp_path / ("m.safetensors" if kind == "file" else "folder")
    save(model, path)

    def refuse(*arguments, **fields):
        raise ValueError("no such field")

    if kind == "file":
        monkeypatch.setattr(single_file.AutoConfig, "for_model", refuse)
        match = "could not be loaded again, so nothing was written.*transformers cannot build.*no such field"
    else:
        model.config.vocab_size += 1
        match = "could not be loaded again, so nothing was written.*of another shape"
    with pytest.raises(InputError, match=match):
        save(model, path)
    monkeypatch.undo()
    load(path)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    "attention", ["flash_attention_2", "flash_attention_3", "kernels-community/flash-attn2", "sdpa"]
)
def test_a_file_saved_with_flash_attention_loads_without_it(tmp_path, tiny_llama, attention):
    model, path = to_spiking(tiny_llama), tmp_path / "m.safetensors"
    save(model, path)
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()[single_file.FORMAT])
    header["attention"] = attention
    save_file(load_file(path), path, metadata={single_file.FORMAT: json.dumps(header)})
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        again = load(path).model
    assert torch.equal(logits(again), logits(model))
    assert any(f"saved with the attention {attention!r}" in str(one.message) for one in told) == (attention != "sdpa")


def test_a_name_that_is_not_english(tmp_path, tiny_llama):
    for model, name in ((to_spiking(tiny_llama), "модель é 日本.safetensors"), (brain(), "папка 日本")):
        save(model, tmp_path / name)
        assert torch.equal(logits(load(tmp_path / name).model), logits(model))


def test_a_generation_configuration_that_transformers_would_not_write(tmp_path):
    model = brain()
    model.generation_config.temperature = 0.6  # without do_sample
    save(model, tmp_path / "m")
    assert load(tmp_path / "m").model.generation_config.temperature == 0.6
    for text in ("[]", "{", "5", '{"a":' * 5000, '{"max_new_tokens": -4}'):
        (tmp_path / "m" / "generation_config.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"generation_config\.json: is no generation configuration"):
            load(tmp_path / "m")


def test_a_tokenizer_that_is_not_the_models(tmp_path, tokenizer):
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=100, hidden_size=24, intermediate_size=40, num_hidden_layers=1, num_attention_heads=4)
    )
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"embedding has 100 rows.* tokenizer has 258 tokens.* with id 100"):
        load(tmp_path)
    with pytest.raises(InputError, match="save: the model's embedding has 100 rows"):
        save(to_spiking(model), tmp_path / "m.safetensors", tokenizer)
    longer = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<end>")
    longer.add_tokens(["<new>"])
    with pytest.warns(UserWarning, match=r"258 rows, but its tokenizer has 259 tokens, such as '<new>' with id 258"):
        save(brain(vocab_size=258), tmp_path / "folder", longer)


def test_replaced_folders_take_folders_of_a_tokenizer_along(tmp_path):
    (tmp_path / "m" / "templates").mkdir(parents=True)
    (tmp_path / "m" / "templates" / "old").write_text("old")
    with replace_folder.replaced(tmp_path / "m") as new:
        (new / "templates").mkdir()
        (new / "templates" / "new").write_text("new")
    assert [file.name for file in (tmp_path / "m" / "templates").iterdir()] == ["new"]
