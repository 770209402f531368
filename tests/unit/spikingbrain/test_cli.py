"""Convert, distill, generate and report from the command line, on a tiny model."""

import json
import re
import sys
from dataclasses import replace

import pytest
import torch

from spikebrain import jobs, load
from spikebrain.models.spikingbrain import SpikingBrainForCausalLM


@pytest.mark.slow
def test_from_transformer_to_text(run, model_folder, text, tmp_path):
    ours, better = tmp_path / "ours", tmp_path / "better"
    code, out, err = run("convert", model_folder, "--out", ours, "--window", 16, "--calibrate", text)
    assert code == 0, err
    assert "2 layers" in out
    assert "Beyond 16 tokens the windows lose the first token" in err
    assert "`num_sinks` 1 keeps a token for it." in err
    model = load(ours).model
    assert isinstance(model, SpikingBrainForCausalLM)
    assert [str(plan) for plan in model.settings.layers] == ["gla", "swa"]
    assert model.settings.window == 16

    options = ("--context", 32, "--batch-size", 2, "--attention-steps", 2, "--logits-steps", 2)
    code, out, err = run("distill", model_folder, ours, "--text", text, "--out", better, *options)
    assert code == 0, err
    assert re.search(r"Trained on 256 tokens in [\d.]+ minutes: loss attention .* logits .*\.", out)
    assert len(json.loads((better / "loss.json").read_text())) == 4
    assert (better / "loss.png").stat().st_size > 3000

    code, out, err = run("generate", better, "A neuron", "--max-new-tokens", 5)
    assert code == 0, err
    assert out.startswith("A neuron ")
    # One state [2, 6, 6], and keys and values [2, 6] for the 12 tokens that ran (the last one written did not), with a
    # byte each that says whether they are text; all float32.
    assert "5 tokens" in out
    assert f"with a state of {4 * (72 + 12 * 24) + 12:,} bytes" in out
    assert "spikes per channel" not in out
    code, _, err = run("report", better, "--text", text, "--num-tokens", 64, "--context", 32, "--out", tmp_path / "r")
    assert code == 0, err
    exactness = json.loads((tmp_path / "r" / "report.json").read_text())["exactness"]
    assert exactness["num_mismatches"] == exactness["fused"]["num_mismatches"] == 0
    assert exactness["fused"]["num_checked"] > 0

    # What was trained is put on spikes as it is.
    spiking = tmp_path / "spiking"
    code, out, err = run("convert", better, "--spiking", "as-described", "--out", spiking)
    assert code == 0, err
    assert "2 layers" in out
    trained, on_spikes = load(better).model, load(spiking).model
    assert on_spikes.settings == replace(trained.settings, spiking=on_spikes.settings.spiking)
    assert torch.equal(on_spikes.model.norm.weight, trained.model.norm.weight)
    code, out, err = run("generate", spiking, "A neuron", "--max-new-tokens", 3)
    assert code == 0, err
    assert "spikes per channel and token" in out
    for arguments, given in (((), "--spiking none"), (("--spiking", "as-described", "--window", 8), "--window")):
        code, _, err = run("convert", better, *arguments, "--out", tmp_path / "no")
        assert code != 0
        assert "is a SpikingBrain model already" in err
        assert f"got {given}." in err


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
def test_on_a_gpu(run, model_folder, text, tmp_path):
    converted, used = {}, {}
    for device in ("cpu", "cuda"):
        torch.cuda.reset_peak_memory_stats()
        options = ("--calibrate", text, "--device", device, "--out", tmp_path / device)
        code, _, err = run("convert", model_folder, *options)
        assert code == 0, err
        converted[device], used[device] = load(tmp_path / device).model, torch.cuda.max_memory_allocated()
    assert used["cuda"] > used["cpu"]
    for cpu, cuda in zip(converted["cpu"].parameters(), converted["cuda"].parameters(), strict=True):
        torch.testing.assert_close(cpu, cuda, rtol=0.02, atol=1e-3)
    options = ("--context", 32, "--batch-size", 2, "--attention-steps", 2, "--logits-steps", 2, "--out", tmp_path / "b")
    assert run("distill", model_folder, tmp_path / "cuda", "--text", text, "--device", "cuda", *options)[0] == 0
    assert run("convert", tmp_path / "b", "--spiking", "as-described", "--out", tmp_path / "s")[0] == 0
    code, out, err = run("generate", tmp_path / "s", "A neuron", "--max-new-tokens", 5, "--device", "cuda")
    assert code == 0, err
    assert "spikes per channel and token" in out


@pytest.mark.slow
def test_temperatures_close_to_0_write_the_most_likely(run, model_folder, tmp_path):
    assert run("convert", model_folder, "--layout", "full,full", "--out", tmp_path / "a")[0] == 0
    texts = [run("generate", tmp_path / "a", "A", "--temperature", value)[1].split("\n")[0] for value in (0, 1e-300)]
    assert texts[0] == texts[1]


@pytest.mark.slow
def test_on_spikes(run, model_folder, text, tmp_path):
    code, _, err = run(
        "convert", model_folder, "--layout", "gla+swa,full", "--spiking", "as-described", "--out", tmp_path / "s"
    )
    assert code == 0, err
    code, out, err = run("generate", tmp_path / "s", "A neuron", "--max-new-tokens", 3, "--temperature", 1.0)
    assert code == 0, err
    assert re.search(r"[\d.]+ spikes per channel and token\.", out)
    code, _, err = run(
        "report", tmp_path / "s", "--text", text, "--num-tokens", 64, "--context", 32, "--out", tmp_path / "r"
    )
    assert code == 0, err
    assert json.loads((tmp_path / "r" / "report.json").read_text())["exactness"]["num_mismatches"] == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_calibration_windows_fit_the_positions(model_folder, text, tmp_path, monkeypatch):
    seen = []
    job = sys.modules["spikebrain.jobs.convert"]
    convert = job.from_transformer
    monkeypatch.setattr(
        job, "from_transformer", lambda *args, **kw: seen.append(kw["calibration"].shape) or convert(*args, **kw)
    )
    settings = jobs.ConvertSettings(str(model_folder), window=16, calibrate=text, calibrate_tokens=150, steps=1)
    converted = jobs.convert(settings, tmp_path / "ours")
    assert seen == [(2, 64)]  # the model has 64 positions
    assert converted.num_tokens % 64 == 0


def test_errors_are_one_message_and_exit_code_2(run, model_folder, text, tmp_path):
    out, ours = ("--out", tmp_path / "o"), tmp_path / "ours"
    assert run("convert", model_folder, "--out", ours)[0] == 0
    for arguments, message in [
        (("convert", model_folder, "--spiking", "often", *out), "--spiking: expected none"),
        (("convert", model_folder, "--layout", "gla", *out), "expected 2 plans"),
        (("convert", model_folder, "--calibrate", tmp_path / "no.txt", *out), "no.txt: cannot be read: No such file"),
        (("generate", model_folder, "a", "--max-new-tokens", 64), "fits the 64 positions of the LlamaForCausalLM, got"),
        (("generate", tmp_path / "none", "a"), "no such file or folder"),
        (("distill", model_folder, ours, "--text", text, "--minutes", 0, *out), "--minutes: expected a finite number"),
        (
            ("distill", model_folder, ours, "--text", text, "--logits-rate", "nan", *out),
            "--logits-rate: expected a finite number",
        ),
        (("distill", model_folder, ours, "--text", text, "--spiking", "often", *out), "--spiking: expected one of"),
        (("distill", model_folder, ours, "--text", tmp_path, *out), "cannot be read: Is a directory"),
        (("distill", model_folder, ours, "--sample", 0, *out), "--sample: expected an integer >= 1"),
        (
            ("distill", model_folder, ours, "--text", text, "--context", 10_000, *out),
            "Give a longer text, or at most --context 804.",
        ),
        (("distill", model_folder, model_folder, *out), "--text: expected a UTF-8 file to train on, --sample, or both"),
        (
            ("distill", model_folder, model_folder, "--text", text, "--spiking", "as-described", *out),
            "--spiking: has no effect",
        ),
        (
            ("distill", model_folder, ours, "--text", text, "--device", "gpu", *out),
            "--device: expected auto, cpu or cuda",
        ),
        (("generate", ours, "a", "--device", "cuda"), "there is no GPU that PyTorch can use"),
        (("generate", ours, "a", "--temperature", "nan"), "--temperature: expected a finite number >= 0, got nan"),
        (("generate", ours, "a", "--seed", 2**63), "--seed: expected an integer from 0 to 2^63 - 1"),
        (("convert", ours, "--spiking", "as-described", "--layout", "7b", *out), "got --layout."),
        (("convert", model_folder, "--out", model_folder), "is a model that is read, which would be lost"),
        (
            ("convert", model_folder, "--calibrate", text, "--calibrate-tokens", -9, *out),
            "--calibrate-tokens: expected 2 or more, got -9",
        ),
    ]:
        code, _, err = run(*arguments)
        assert code == 2
        assert message in err.replace("\n", " ")
        assert "Traceback" not in err
