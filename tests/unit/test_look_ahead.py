"""What is told before a model is loaded, with the words that would work."""

import sys
from dataclasses import replace

import pytest

from spikebrain import AdaptiveThreshold, SpikeSettings, jobs
from spikebrain.chip import load_description
from spikebrain.errors import InputError
from spikebrain.models.io import preview
from spikebrain.models.layers import choose_layers


@pytest.fixture
def unloaded(monkeypatch):
    """Jobs fail if they load a model."""
    for module in ("report", "inputs", "distill"):
        monkeypatch.setattr(sys.modules[f"spikebrain.jobs.{module}"], "load", lambda *_, **__: 1 / 0)


@pytest.fixture
def folders(model_folder, tmp_path):
    jobs.convert(jobs.ConvertSettings(str(model_folder)), tmp_path / "float")
    jobs.convert(jobs.ConvertSettings(str(tmp_path / "float"), spiking="as-described"), tmp_path / "spikes")
    return {"dense": model_folder, "float": tmp_path / "float", "spikes": tmp_path / "spikes"}


def test_a_preview_has_the_layers_and_no_weights(folders, tmp_path):
    found = {name: preview(path) for name, path in folders.items()}
    assert {name: seen is not None and seen.spikes for name, seen in found.items()} == {
        "dense": False,
        "float": False,
        "spikes": True,
    }
    for seen in found.values():
        assert all(parameter.is_meta for parameter in seen.model.parameters())
        assert seen.tokenizer("A")["input_ids"] == [32]
        assert len(choose_layers(seen.model, SpikeSettings(neuron=AdaptiveThreshold()), without_weights=True)[0]) >= 14
    assert preview("smollm2") is None
    (tmp_path / "config.json").write_text("{")
    assert preview(tmp_path) is None


@pytest.mark.usefixtures("unloaded")
def test_a_short_text(run, folders, tmp_path):
    short = tmp_path / "short.txt"
    short.write_text("A neuron " * 8)  # 72 bytes, of a token each
    said = "--text: expected at least {} tokens for one window, got 72 (short.txt). Give a longer text, or at most {}."
    out = ("--text", short, "--out", tmp_path / "o")
    for command, before, size, option in [
        ("report", ("dense",), 512, "--context 72"),
        ("report", ("spikes",), 512, "--context 72"),
        ("energy", ("dense", "--num-tokens", 100), 100, "--num-tokens 72"),
        ("simulate", ("float", "--num-tokens", 100), 100, "--num-tokens 72"),
        ("distill", ("dense", "float"), 256, "--context 72"),
    ]:
        code, _, err = run(command, *(folders.get(word, word) for word in before), *out)
        assert code == 2
        assert said.format(size, option) in err


@pytest.mark.slow
def test_the_words_for_a_short_text_work(run, model_folder, tmp_path):
    (tmp_path / "short.txt").write_text("A neuron " * 5)
    code, _, err = run(
        "report", model_folder, "--text", tmp_path / "short.txt", "--out", tmp_path / "o", "--context", 45
    )
    assert code == 0, err


@pytest.mark.usefixtures("unloaded")
def test_a_pattern_that_matches_nothing(run, folders, text, tmp_path):
    for command, size in (("report", ("--context", 32)), ("simulate", ("--num-tokens", 16))):
        for pattern, hint in (("self_attn", "*self_attn*"), ("q_proj*", "*q_proj*"), ("*.conv", "*self_attn*")):
            out = ("--layers", pattern, "--text", text, "--out", tmp_path / "o")
            code, _, err = run(command, folders["dense"], *size, *out)
            assert code == 2
            assert hint in err.partition("Patterns that match: ")[2]
    # A model that spikes already is known by its config.json.
    code, _, err = run("report", folders["spikes"], "--k", 3, "--context", 32, "--text", text, "--out", tmp_path / "o")
    assert code == 2
    assert "--k: has no effect on this model, which spikes already and keeps its own settings. Leave out --k." in err


@pytest.mark.usefixtures("unloaded")
def test_a_chip_that_is_too_small(folders, text, tmp_path):
    # 14 layers, of which 8 of attention, on a core each.
    chip = load_description("async-45nm")
    small = replace(chip, mesh=replace(chip.mesh, columns=4, rows=2, cores_per_tile=1))
    settings = jobs.SimulateSettings(str(folders["dense"]), small, text)
    with pytest.raises(InputError, match=r"14 layers need 14 cores .* `layers` '\*self_attn\*' fits\.$"):
        jobs.simulate(settings, tmp_path / "o")
    for fine in (replace(settings, layers="*self_attn*"), replace(settings, stream=True)):
        with pytest.raises(ZeroDivisionError):  # which stands for loading the model
            jobs.simulate(fine, tmp_path / "o")
