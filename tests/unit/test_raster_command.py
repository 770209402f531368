"""`spikebrain raster`: pictures and pages of a model on a text, and of what it goes on to write."""

import json
import os
import subprocess
import sys

import pytest

from spikebrain import jobs, pages
from spikebrain.errors import InputError

PROJ = "model.layers.?.mlp.down_proj"


@pytest.mark.slow
def test_a_prompt_and_what_is_written_after_it(run, model_folder, tmp_path):
    out = tmp_path / "r.svg"
    typed = (model_folder, "--prompt", "A neuron", "--max-new-tokens", 3, "--layers", PROJ, "--out", out, "--json")
    code, shown, err = run("raster", *typed)
    assert code == 0, err
    found = json.loads(shown)
    # Eight letters are eight tokens; the last of three new ones is not read again.
    assert found["num_tokens"] == 10
    assert "".join(found["tokens"][:8]) == "AĠneuron"  # as this tokenizer writes a space
    codes = [panel["code"].partition(",")[0] for panel in found["panels"]]
    assert codes == ["binary", "ternary", "bitwise-bidirectional"] * 2
    assert {panel["layer"] for panel in found["panels"]} == {PROJ.replace("?", "0"), PROJ.replace("?", "1")}
    svg = out.read_text()
    for panel in found["panels"]:
        assert panel["code"] in svg


def test_every_kind_of_file_and_the_next_thing_to_try(run, model_folder, text, tmp_path):
    short = (model_folder, "--text", text, "--num-tokens", 4, "--encoder", "as-run", "--layers", "*0.mlp.down_proj")
    code, shown, err = run("raster", *short, "--out", tmp_path / "r.png", "--num-neurons", 5)
    assert code == 0, err
    assert "Drew 5 of 40 neurons over 4 tokens; spikes: BidirectionalBitwise " in shown
    assert "5 of 40 neurons are shown, evenly spread." in shown
    assert f"--out {tmp_path / 'r.html'}" in shown
    assert run("raster", *short, "--out", tmp_path / "r.html")[0] == 0
    assert (tmp_path / "r.png").read_bytes()[:4] == b"\x89PNG"
    (drawn,) = pages.read_page(tmp_path / "r.html")["rasters"]
    assert (len(drawn["tokens"]), len(drawn["panels"][0]["neurons"])) == (4, 40)
    code, _, err = run("raster", *short, "--out", tmp_path / "r.html")
    assert code == 2
    assert "is there already. Name another file, or pass --force" in err
    assert run("raster", *short, "--out", tmp_path / "r.html", "--force")[0] == 0


def test_bad_input(run, model_folder, text, tmp_path):
    out = ("--out", tmp_path / "r.png")
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    (tmp_path / "closed").mkdir(mode=0o500)
    for options, message in [
        (("--text", text, "--layers", "*dwn_proj", *out), "--layers '*dwn_proj': expected a pattern that matches"),
        (("--text", text, "--layers", "*dwn_proj", *out), "Patterns that match: *down_proj*"),
        (("--text", text, "--layers", "*", *out), "--layers: expected at most 8 layers in one raster, got 14"),
        (("--text", text, "--out", tmp_path / "r.pdf"), "expected a name that ends in .png, .svg, .html"),
        (("--text", empty, *out), "--text: expected at least 12 tokens for one window, got 0"),
        (("--prompt", "", *out), "Expected a value for --prompt, got an empty text."),
        (("--prompt", "A", "--encoder", "morse", *out), "--encoder: expected one of"),
        (("--prompt", "A", "--max-new-tokens", -1, *out), "--max-new-tokens: expected an integer >= 0, got -1"),
        (("--prompt", "A", "--num-neurons", 0, *out), "--num-neurons: expected an integer >= 1, got 0"),
        (
            ("--prompt", "A", "--num-neurons", 3, "--potential-of", 1, *out),
            "--potential-of: expected one of the neurons",
        ),
        (("--prompt", "A", "--out", text / "r.png"), "expected a folder, got a file"),
    ]:
        code, _, err = run("raster", model_folder, *options)
        assert code == 2, options
        assert message in err, err
        assert not out[1].exists()
    if os.geteuid() != 0:
        code, _, err = run("raster", model_folder, "--prompt", "A", "--out", tmp_path / "closed" / "r.png")
        assert code == 2
        assert "cannot be written: Permission denied" in err


def test_the_library_names_arguments(model_folder, tmp_path):
    with pytest.raises(InputError, match=r"^num_tokens: has no effect beside `prompt`"):
        jobs.RasterSettings(prompt="A", num_tokens=3)
    settings = jobs.RasterSettings(str(model_folder), prompt="A neuron", encoders=(None,), layers=PROJ)
    found = jobs.raster(settings, tmp_path / "r.html")
    assert len(found.raster.panels) == 2
    assert found.text == ""


@pytest.mark.slow
def test_a_spikingbrain_model_with_sinks(run, model_folder, tmp_path):
    sizes = {"layout": "swa,full", "window": 4, "num_sinks": 2}
    jobs.convert(jobs.ConvertSettings(str(model_folder), **sizes, spiking="as-described"), tmp_path / "sb")
    typed = (tmp_path / "sb", "--prompt", "neuron", "--max-new-tokens", 2, "--json", "--out", tmp_path / "r.svg")
    code, shown, err = run("raster", *typed)
    assert code == 0, err
    assert json.loads(shown)["tokens"][:8] == ["sink", "sink", *"neuron"]


@pytest.mark.slow
def test_no_display_is_needed(model_folder, tmp_path):
    environment = {**os.environ, "MPLBACKEND": "TkAgg"}
    environment.pop("DISPLAY", None)
    typed = ["raster", str(model_folder), "--prompt", "A neuron", "--out", str(tmp_path / "r.png")]
    run = subprocess.run(
        [sys.executable, "-m", "spikebrain.cli", *typed], capture_output=True, text=True, check=False, env=environment
    )
    assert run.returncode == 0, run.stderr
