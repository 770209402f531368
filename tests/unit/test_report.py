"""The main job from the command line, on a tiny model: what it writes, and that it goes on."""

import csv
import json
import math

import pytest
import torch
from typer.testing import CliRunner

from spikebrain import SpikeSettings, Ternary, save, to_spiking
from spikebrain.analysis import perplexity
from spikebrain.backends import Cpu
from spikebrain.backends.cpu import backend as cpu_backend
from spikebrain.cli.app import app
from spikebrain.errors import InputError
from spikebrain.jobs.inputs import read_text
from spikebrain.jobs.resume import FILE_NAME

TEXT = "It reports firing rates, sparsity, accuracy and energy. " * 8


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(TEXT.encode())
    return path


@pytest.fixture
def run(model_folder, text, tmp_path):
    """Run `spikebrain report` on the tiny model and return report.json."""

    def run(*options, model=model_folder, out="out"):
        arguments = ["report", str(model), "--text", str(text), "--num-tokens", "150", "--context", "40"]
        arguments += ["--device", "cpu"]  # unless options say otherwise
        result = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / out), *map(str, options)])
        if result.exception:
            raise result.exception
        run.screen = result.output
        return json.loads((tmp_path / out / "report.json").read_text())

    return run


@pytest.fixture
def interrupted(run, monkeypatch):
    """Run a report that is interrupted after some windows, on one thread."""
    real, threads = perplexity._nll, torch.get_num_threads()

    def interrupted(stop_after, *options, **more):
        seen = []

        def stop(model, window):
            if len(seen) == stop_after:
                raise KeyboardInterrupt
            seen.append(window)
            return real(model, window)

        with monkeypatch.context() as patch:
            patch.setattr(perplexity, "_nll", stop)
            torch.set_num_threads(1)
            with pytest.raises((KeyboardInterrupt, SystemExit)):
                run(*options, **more)

    yield interrupted
    torch.set_num_threads(threads)


@pytest.mark.slow
def test_files_and_keys(run, tmp_path):
    found = run()
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "histogram.png",
        "layers.csv",
        "raster.png",
        "report.html",
        "report.json",
        "waterfall.png",
    ]
    keys = "kind format model settings text perplexity spikes codes layers energy exactness environment seconds"
    keys += " histograms rasters"
    assert list(found) == keys.split()
    assert set(found["perplexity"]) == {"float", "int8", "spiking"}
    assert set(found["spikes"]) == {
        "mean_spikes",
        "mean_count",
        "silent_fraction",
        "fraction_le_7",
        "fraction_gt_16",
        "window3_sparsity",
        "train_sparsity",
        "firing_rate",
        "max_count",
        "num_timesteps",
    }
    assert set(found["energy"]["paper"]) >= {
        "fp16_mac_pj",
        "int8_mac_pj",
        "spike_mac_pj",
        "saving_vs_fp16",
        "saving_vs_int8",
        "ratio_vs_fp16",
        "ratio_vs_int8",
    }
    assert found["text"]["num_tokens"] == 150
    assert found["exactness"]["num_checked"] == 14 * 4 * 32  # layers x windows x sample
    assert found["exactness"]["num_mismatches"] == 0
    # A token has 2 x (24 + 12 + 12 + 24 + 40 + 40 + 24) outputs; each of 4 windows runs two tokens alone as well.
    assert found["exactness"]["fused"] == {
        "num_checked": (150 + 4 * 2) * 352,
        "num_mismatches": 0,
        "first_mismatch": None,
    }
    assert found["energy"]["paper"]["spike_mac_pj"] == pytest.approx(0.03 * found["spikes"]["mean_spikes"])
    with (tmp_path / "out" / "layers.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == [layer["name"] for layer in found["layers"]]
    assert len(rows) == 14
    assert float(rows[3]["mean_spikes"]) == found["layers"][3]["mean_spikes"]
    for shown in (
        "Perplexity",
        "silent channels",
        "Left out",
        "Nothing is measured",
        "Exactness: 0 of 1,792",
        "0 of 55,616",
    ):
        assert shown in run.screen


@pytest.mark.slow
def test_perplexity_by_its_definition(run, tiny_llama, tokenizer):
    ids = torch.tensor(tokenizer(TEXT)["input_ids"])[:150]
    losses = []
    with torch.no_grad():
        for window in (ids[:40], ids[40:80], ids[80:120], ids[120:150]):
            log_p = tiny_llama(window[None]).logits[0, :-1].double().log_softmax(-1)
            losses += (-log_p[torch.arange(len(window) - 1), window[1:]]).tolist()
    assert len(losses) == 39 * 3 + 29
    expected = math.exp(sum(losses) / len(losses))
    assert run()["perplexity"]["float"] == pytest.approx(expected, rel=1e-5)


def comparable(found):
    return {key: value for key, value in found.items() if key not in ("environment", "seconds")}


@pytest.mark.slow
def test_same_input_same_report_with_any_number_of_threads(run):
    before = torch.get_num_threads()
    try:
        found = []
        for num_threads in (1, 2, 5):
            torch.set_num_threads(num_threads)
            found.append(run(out=f"out{num_threads}"))
            assert torch.get_num_threads() == num_threads
    finally:
        torch.set_num_threads(before)
    assert comparable(found[0]) == comparable(found[1]) == comparable(found[2])
    assert [f["environment"]["num_threads"] for f in found] == [1, 2, 5]


@pytest.mark.slow
def test_perplexity_falls_to_that_of_int8_as_k_grows(run):
    found = [run("--k", k)["perplexity"] for k in (1, 4, 1000)]
    gaps = [abs(f["spiking"] - f["int8"]) for f in found]
    assert gaps[2] < gaps[1]
    assert gaps[2] < 1e-3 * found[2]["int8"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA GPU")
def test_on_a_gpu(run):
    cpu, gpu = run(), run("--device", "cuda")
    assert gpu["settings"]["device"] == "cuda"
    assert gpu["environment"]["gpu"] == torch.cuda.get_device_name()
    assert gpu["exactness"] == cpu["exactness"]
    assert gpu["perplexity"] == pytest.approx(cpu["perplexity"], rel=1e-3)
    assert gpu["spikes"]["mean_spikes"] == pytest.approx(cpu["spikes"]["mean_spikes"], rel=1e-3)
    assert run("--device", "auto", "--backend", "cpu")["settings"]["device"] == "cpu"


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ["binary", "ternary", "bitwise", "twos-complement", "signed-digit"])
def test_codes_change_the_spikes_and_nothing_else(run, encoder):
    usual, other = run(), run("--encoder", encoder)
    assert other["perplexity"] == usual["perplexity"]
    assert other["spikes"]["mean_count"] == usual["spikes"]["mean_count"]
    assert other["exactness"]["num_mismatches"] == 0
    assert other["codes"] == usual["codes"]
    if encoder in ("ternary", "signed-digit"):  # the spikes of a count do not depend on the train's length
        assert other["spikes"]["mean_spikes"] == usual["codes"][encoder]["mean_spikes"]


@pytest.mark.slow
def test_options(run):
    found = run("--backend", "reference", "--layers", "*.mlp.*", "--group-size", 8, "--seed", 5)
    assert found["settings"]["backend"] == "reference"
    assert (found["settings"]["group_size"], found["settings"]["seed"]) == (8, 5)
    assert found["model"]["num_spiking_layers"] == 6
    assert found["exactness"]["num_mismatches"] == 0
    assert run("--layers", "*.mlp.*", "--group-size", 8, "--seed", 5)["perplexity"] == found["perplexity"]


@pytest.mark.slow
def test_a_wrong_backend_is_caught(run, monkeypatch):
    exact = Cpu._accumulate
    monkeypatch.setattr(Cpu, "_accumulate", lambda *arguments: exact(*arguments) + 1)
    found = run()
    assert found["exactness"]["num_mismatches"] == found["exactness"]["num_checked"]
    assert "expected" in found["exactness"]["first_mismatch"]
    assert "1,792 of 1,792" in run.screen


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kernel", "where", "num_mismatches"),
    [
        # By multiplied counts run the three windows of 40 tokens, 14 layers; one output of each token is wrong.
        ("_count_layer", "whole call", 3 * 40 * 14),
        # By events run the window of 30 tokens, and two tokens of each of the four windows alone.
        ("run_layer", "alone", (30 + 4 * 2) * 14),
    ],
)
def test_a_wrong_fused_kernel_is_caught(run, monkeypatch, kernel, where, num_mismatches):
    exact = getattr(cpu_backend, kernel)

    def wrong(*arguments):
        y = exact(*arguments)
        y[..., 0] = torch.nextafter(y[..., 0], torch.tensor(torch.inf))  # by the last bit
        return y

    monkeypatch.setattr(cpu_backend, kernel, wrong)
    found = run()["exactness"]
    assert found["num_mismatches"] == 0
    assert found["fused"]["num_mismatches"] == num_mismatches
    assert f"({where}), output 0: expected" in found["fused"]["first_mismatch"]
    assert f"{num_mismatches:,} of 55,616" in run.screen


@pytest.mark.slow
def test_layers_without_a_fused_kernel_are_not_counted(run, monkeypatch):
    found = run("--group-size", 8)["exactness"]["fused"]
    assert found["num_checked"] > 0
    assert found["num_mismatches"] == 0
    monkeypatch.setattr(Cpu, "fused", lambda self, *args, **options: None)
    assert run("--group-size", 16)["exactness"]["fused"]["num_checked"] == 0
    assert "no fused kernel" in run.screen


@pytest.mark.slow
def test_converted_model(run, tiny_llama, tokenizer, tmp_path):
    usual = run("--encoder", "ternary")
    path = tmp_path / "converted.safetensors"
    save(to_spiking(tiny_llama, SpikeSettings(encoder=Ternary())), path, tokenizer)
    found = run(model=path)
    assert found["perplexity"] == usual["perplexity"] | {"float": None}
    assert found["spikes"] == usual["spikes"]
    assert (found["settings"]["encoder"], found["settings"]["k"]) == ("ternary", 3.0)


def test_default_text():
    text, source = read_text(None)
    assert len(text) > 100_000
    assert source.startswith("pydoc_data.topics of Python 3.")


@pytest.mark.slow
def test_short_text_is_used_whole(run):
    found = run("--num-tokens", 10_000)
    assert found["text"]["num_tokens"] == len(TEXT)
    assert f"only {len(TEXT)} tokens" in run.screen


@pytest.mark.slow
@pytest.mark.parametrize("stop_after", [1, 5, 9, 11])
def test_an_interrupted_run_goes_on(run, interrupted, monkeypatch, tmp_path, stop_after):
    options = ("--backend", "cpu", "--encoder", "signed-digit")
    whole = run(*options, out="whole")
    interrupted(stop_after, *options)
    real = perplexity._nll
    assert (tmp_path / "out" / FILE_NAME).exists() is (stop_after > 0)
    rest = []
    monkeypatch.setattr(perplexity, "_nll", lambda *arguments: rest.append(1) or real(*arguments))
    found = run(*options)
    assert comparable(found) == comparable(whole)
    assert len(rest) == 12 - stop_after  # three stages of four windows
    assert f"{stop_after} windows were done" in run.screen
    assert not (tmp_path / "out" / FILE_NAME).exists()


@pytest.mark.slow
def test_progress_of_another_job_or_a_torn_file_is_not_used(run, monkeypatch, tmp_path):
    usual = run()
    (tmp_path / "out" / FILE_NAME).write_text('{"key": "another", "nlls": {"float": [1.0]}, "recorded": {}, "checked"')
    assert comparable(run()) == comparable(usual)
    (tmp_path / "out" / FILE_NAME).write_text('{"key": "x", "nlls": {"float": [1.0]}, "recorded": {}, "checked": {}}')
    assert comparable(run()) == comparable(usual)


# Bad input: one message that names the argument or file and the remedy, exit code 2, no traceback.


def test_bad_layers_are_told_before_anything_is_measured(run, monkeypatch):
    monkeypatch.setattr(perplexity, "_nll", lambda *arguments: pytest.fail("measured first"))
    with pytest.raises(InputError, match="found none"):
        run("--layers", "*.conv")


@pytest.mark.slow
def test_names_that_look_like_markup(model_folder, run, tmp_path):
    odd = model_folder.rename(tmp_path / "[bold]$m_{$")
    found = run(model=odd, out="[/out]$")
    assert found["model"]["source"] == "[bold]$m_{$"
    assert "[bold]$m_{$: 14 layers" in run.screen


@pytest.mark.slow
def test_out_beside_the_model_resumes(run, interrupted, model_folder):
    out = str(model_folder)
    interrupted(5, out=out)
    run(out=out)
    assert "5 windows were done" in run.screen


@pytest.mark.slow
def test_huge_counts_leave_out_the_rate_codes(run):
    found = run("--k", 1e6)
    assert found["codes"]["ternary"] is None
    assert found["codes"]["binary"] is None
    assert found["codes"]["bitwise"]["num_timesteps"] >= 20
    assert found["exactness"]["num_mismatches"] == 0
    assert "too many" in run.screen


@pytest.mark.slow
def test_converted_half_precision_model(run, tiny_llama, tokenizer, tmp_path):
    save(to_spiking(tiny_llama.bfloat16()), tmp_path / "half.safetensors", tokenizer)
    found = run(model=tmp_path / "half.safetensors")
    assert found["perplexity"]["int8"] == pytest.approx(found["perplexity"]["spiking"], rel=0.1)
    assert found["settings"]["layers"] == "as converted"
    assert found["exactness"]["fused"]["num_checked"] > 0  # outputs in bfloat16
    assert found["exactness"]["fused"]["num_mismatches"] == 0
