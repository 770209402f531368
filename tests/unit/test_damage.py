"""Damaged files end in our errors: no traceback, and with a checksum never in another result."""

import json
import random
import struct

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from spikebrain import load, save, to_spiking
from spikebrain.errors import CheckpointError, SpikebrainError
from spikebrain.models.io import single_file
from spikebrain.models.spikingbrain import SpikingBrainForCausalLM, tiny_7b

IDS = torch.arange(20)[None]
NUM_MUTATIONS = 60


def mutated(content, rng, start, stop):
    """Return the bytes with one fault between two places: bits or bytes changed, lost, or too many."""
    place = rng.randrange(start, stop)
    before, after = content[:place], content[place:]
    return rng.choice(
        (
            before + bytes([after[0] ^ 1 << rng.randrange(8)]) + after[1:],
            before + rng.randbytes(min(4, len(after))) + after[4:],
            before + after[rng.randrange(1, 5) :],
            before + rng.choice((b"0", b"9", b'"', b"{", b"-", b"}")) + after,
            before,
        )
    )


def outcome(path):
    """Return logits, a tokenised text and the generation settings of a model."""
    loaded = load(path)
    with torch.no_grad():
        logits = loaded.model(IDS).logits
    text = None if loaded.tokenizer is None else loaded.tokenizer("a é")["input_ids"]
    return logits, text, loaded.model.generation_config.to_json_string()


def is_as_before(path, expected):
    found = outcome(path)
    return torch.equal(found[0], expected[0]) and found[1:] == expected[1:]


def damage(path, file, start=0, stop=None):
    """Yield for each mutation whether loading gave the same result; a refusal with our error counts as such."""
    whole, expected, rng = file.read_bytes(), outcome(path), random.Random(0)
    for _ in range(NUM_MUTATIONS):
        file.write_bytes(mutated(whole, rng, start, stop or len(whole)))
        try:
            same = is_as_before(path, expected)
        except SpikebrainError:
            same = True
        yield same
    file.write_bytes(whole)
    assert is_as_before(path, expected)


def header_size(file):
    return 8 + struct.unpack("<Q", file.read_bytes()[:8])[0]


@pytest.mark.slow
@pytest.mark.parametrize("part", ["header", "tensors"])
def test_a_file_of_ours(tmp_path, tiny_llama, tokenizer, part):
    path = tmp_path / "m.safetensors"
    save(to_spiking(tiny_llama), path, tokenizer)
    places = (0, header_size(path)) if part == "header" else (header_size(path), path.stat().st_size)
    assert all(damage(path, path, *places))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        *("config.json", "generation_config.json", "tokenizer.json"),
        *("model.safetensors.index.json", "model-00001-of-00001.safetensors"),
    ],
)
def test_a_folder_of_ours(tmp_path, tokenizer, name):
    model = SpikingBrainForCausalLM(tiny_7b(initializer_range=0.1, vocab_size=258)).eval()
    save(to_spiking(model), tmp_path, tokenizer)
    assert all(damage(tmp_path, tmp_path / name))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"])
def test_a_folder_of_other_people(model_folder, name):
    list(damage(model_folder, model_folder / name))  # has no checksum; anything but our errors would come through


def test_a_flipped_bit_is_named(tmp_path, tiny_llama):
    path = tmp_path / "m.safetensors"
    save(to_spiking(tiny_llama), path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.\S+ is not what was saved \(another checksum\)"):
        load(path)


def test_a_flipped_bit_in_a_folder_is_named(tmp_path):
    save(SpikingBrainForCausalLM(tiny_7b()), tmp_path)
    shard = tmp_path / "model-00001-of-00001.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.\S+ is not what was saved \(another checksum\)"):
        load(tmp_path)


def test_a_changed_configuration_is_refused_and_told_how_to_be_taken(tmp_path):
    save(SpikingBrainForCausalLM(tiny_7b()), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "window": config["window"] + 1}))
    with pytest.raises(CheckpointError, match=r": config\.json: not what was saved.*delete the names from model\.saf"):
        load(tmp_path)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    del index["metadata"]["sha256"]["config.json"]
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert load(tmp_path).model.settings.window == config["window"] + 1
    (tmp_path / "generation_config.json").unlink()
    with pytest.raises(CheckpointError, match=r": generation_config\.json: not what was saved.*or missing"):
        load(tmp_path)


def test_a_changed_description_is_refused(tmp_path, tiny_llama):
    path = tmp_path / "m.safetensors"
    save(to_spiking(tiny_llama), path)
    content = path.read_bytes()
    changed = content.replace(b'rms_norm_eps\\": 1e-06', b'rms_norm_eps\\": 1e-05')
    assert changed != content
    path.write_bytes(changed)
    with pytest.raises(CheckpointError, match="its description is not what was saved"):
        load(path)


def test_a_file_without_checksums_is_refused(tmp_path, tiny_llama):
    path = tmp_path / "m.safetensors"
    save(to_spiking(tiny_llama), path)
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()[single_file.FORMAT])
    del header["checksums"]
    save_file(load_file(path), path, metadata={single_file.FORMAT: json.dumps(header)})
    with pytest.raises(CheckpointError, match=r"has no checksum of .* Write the file with spikebrain\.save"):
        load(path)
