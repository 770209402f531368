"""Training as a command and a job: steps that fit the time, interruptions, other options later, and the folder."""

import json
import os
import shutil
import stat
import sys
from types import SimpleNamespace

import pytest
import torch
from fast_first import fast_first
from safetensors.torch import load_file, save_file
from transformers import GPT2Config

from spikebrain import jobs, load
from spikebrain.cli.commands.distill import _ends
from spikebrain.models.training import texts_at_once
from spikebrain.models.training.state import FILE_NAME

JOB = sys.modules["spikebrain.jobs.distill"]


@pytest.fixture
def student(model_folder, tmp_path):
    jobs.convert(jobs.ConvertSettings(str(model_folder)), tmp_path / "student")
    return tmp_path / "student"


@pytest.fixture
def interrupted(run, monkeypatch, capsys):
    """Return a function that runs a training, stopped after its last step and before its model is written."""

    def interrupted(*arguments):
        with monkeypatch.context() as patched:
            patched.setattr(JOB, "save_student", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                run("distill", *arguments)
        capsys.readouterr()

    return interrupted


@pytest.mark.slow
def test_sampled_text_and_steps_that_fit_the_time(run, interrupted, model_folder, student, tmp_path):
    out = tmp_path / "b"
    options = ("--sample", 200, "--context", 20, "--minutes", 1e-9, "--out", out)
    interrupted(model_folder, student, *options)
    assert json.loads((out / "plan.json").read_text())["steps"] == {"attention": 1, "logits": 1}
    (out / f".{FILE_NAME}.77.partial").write_bytes(b"half a file")
    # The same command goes on: it samples and times nothing, and has nothing left to train.
    code, shown, err = run("distill", model_folder, student, *options)
    assert code == 0, err
    assert "160 tokens" in shown  # one step of each stage is the least, of 4 texts of 20 tokens
    assert "Sampling" not in err
    assert "Timing" not in err
    assert "Going on with an interrupted training: 1 steps of attention and 1 steps of logits." in err
    # What the training needed is gone, and the model is not written over.
    kept = {path.name for path in out.iterdir()}
    assert kept >= {"config.json", "loss.json", "loss.png", "samples.json", "tokenizer.json"}
    assert not kept & {"plan.json", FILE_NAME}
    assert not [name for name in kept if name.endswith(".partial")]
    code, _, err = run("distill", model_folder, student, *options)
    assert code == 2
    assert f"--out {out}: holds config.json, generation_config.json" in err
    assert "or pass --force to write over what it holds" in err
    code, _, err = run("distill", model_folder, student, *options, "--force")
    assert code == 0, err
    assert "Sampling" not in err  # the teacher would write the same
    assert "Timing a few steps" in err


@pytest.mark.parametrize(
    ("later", "named"),
    [
        (("--seed", 5), "--seed: {} holds a training that was begun with 0, not 5."),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [
                (("--minutes", 2e-9), "--minutes: {} holds a training that was begun with 1e-09, not 2e-09."),
                (("--logits-steps", 3), "--logits-steps: {} holds a training that was begun with None, not 3."),
                (("--batch-size", 2), "--batch-size: {} holds a training that was begun with 4, not 2."),
                (("--learning-rate", 1), "--learning-rate: {} holds a training that was begun with 0.001, not 1.0."),
                (
                    ("--spiking", "as-described"),
                    "--spiking: {} holds a training that was begun with None, not as-described.",
                ),
                (("--text", "TEXT"), "--text: {} holds a training that was begun with another."),
            ]
        ),
    ],
)
def test_later_options_win_or_are_refused(run, interrupted, model_folder, student, text, tmp_path, later, named):
    out, more = tmp_path / "b", tmp_path / "more.txt"
    more.write_text("Nothing spikes here. " * 9)
    options = ("--text", text, "--context", 20, "--minutes", 1e-9, "--out", out)
    interrupted(model_folder, student, *options)
    later = [more if word == "TEXT" else word for word in later]
    code, _, err = run("distill", model_folder, student, *options, *later)
    assert code == 2
    assert f"error: {named.format(out)} Give the same to go on with it, name another folder, or pass --force" in err
    assert "Timing" not in err
    # Nothing was lost.
    assert (out / FILE_NAME).exists()
    # Without a state, nothing is lost by another plan.
    (out / FILE_NAME).unlink()
    code, _, err = run("distill", model_folder, student, *options, *later)
    assert code == 0, err
    assert "Going on" not in err
    if later[0] == "--logits-steps":
        assert [point["stage"] for point in json.loads((out / "loss.json").read_text())] == [0, 1, 1, 1]


@pytest.mark.slow
def test_force_starts_again(run, interrupted, model_folder, student, text, tmp_path):
    steps = ("--attention-steps", 1, "--logits-steps", 2, "--text", text, "--context", 20, "--out", tmp_path / "b")
    interrupted(model_folder, student, *steps)
    code, _, err = run("distill", model_folder, student, *steps, "--seed", 3, "--force")
    assert code == 0, err
    clean = jobs.DistillRun(
        str(model_folder), student, (text,), attention_steps=1, logits_steps=2, context=20, seed=3, device="cpu"
    )
    expected = jobs.distill(clean, tmp_path / "c").model
    found = load(tmp_path / "b").model
    assert all(torch.equal(p, q) for p, q in zip(found.parameters(), expected.parameters(), strict=True))


@pytest.mark.slow
def test_an_interrupted_training_is_of_its_models_alone(run, interrupted, model_folder, tmp_path):
    """Another student, and another teacher's samples, are not taken for those of before."""
    other = tmp_path / "teacher"
    shutil.copytree(model_folder, other)
    weights = load_file(other / "model.safetensors")
    save_file({name: tensor * 1.01 for name, tensor in weights.items()}, other / "model.safetensors", {"format": "pt"})
    for name, teacher, seed in (("a", model_folder, 0), ("b", model_folder, 1), ("c", other, 0)):
        jobs.convert(jobs.ConvertSettings(str(teacher), seed=seed), tmp_path / name)
    options = ("--context", 32, "--batch-size", 2, "--attention-steps", 1, "--logits-steps", 0, "--out", tmp_path / "d")
    options = ("--sample", 128, "--device", "cpu", *options)
    interrupted(model_folder, tmp_path / "a", *options)
    for teacher, student, named in ((model_folder, "b", "STUDENT"), (other, "c", "TEACHER")):
        code, _, err = run("distill", teacher, tmp_path / student, *options)
        assert code == 2
        assert f"{named}: {tmp_path / 'd'} holds a training that was begun with another." in err
    assert run("distill", model_folder, tmp_path / "a", *options)[0] == 0
    (tmp_path / "d" / "samples.json").unlink()
    code, _, err = run("distill", other, tmp_path / "c", *options, "--force")
    assert code == 0
    assert "Sampling" in err


@pytest.mark.slow
def test_seconds_of_before_an_interruption_count(model_folder, student, text, tmp_path, monkeypatch):
    clock = SimpleNamespace(perf_counter=lambda: 0.0)
    monkeypatch.setattr(JOB, "time", clock)
    training = sys.modules["spikebrain.models.training.distill"]
    ticks = iter(range(0, 10**6, 7))
    monkeypatch.setattr(training, "time", SimpleNamespace(perf_counter=lambda: float(next(ticks))))
    run = jobs.DistillRun(str(model_folder), student, (text,), context=20, attention_steps=1, logits_steps=1)
    with monkeypatch.context() as patched:
        patched.setattr(JOB, "save_student", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            jobs.distill(run, tmp_path / "b")
    # The clock goes on by 7 s whenever it is asked: at the start, and in each stage where it begins, after its step and
    # where it is saved. So the state was written after 6 * 7 s; the second call asks at its start and at its end.
    assert jobs.distill(run, tmp_path / "b").result.seconds == 42 + 7


def test_files_are_for_whom_the_umask_says(run, model_folder, student, text, tmp_path):
    before = os.umask(0o027)
    try:
        steps = ("--attention-steps", 1, "--logits-steps", 1, "--text", text, "--context", 20)
        assert run("distill", model_folder, student, *steps, "--out", tmp_path / "b")[0] == 0
        assert run("convert", tmp_path / "b", "--spiking", "as-described", "--out", tmp_path / "s.safetensors")[0] == 0
    finally:
        os.umask(before)
    modes = {
        path.name: stat.S_IMODE(path.stat().st_mode)
        for path in (*(tmp_path / "b").iterdir(), tmp_path / "s.safetensors")
    }
    assert {"model-00001-of-00001.safetensors", "loss.json", "s.safetensors"} <= modes.keys()
    assert set(modes.values()) == {0o640}


@pytest.mark.slow
def test_what_a_gpu_changes(run, model_folder, student, text, tmp_path, monkeypatch):
    steps = ("--attention-steps", 1, "--logits-steps", 1, "--device", "cpu", "--out", tmp_path / "b")
    material = ("--text", text, "--text", text, "--sample", 50)
    sizes = ("--context", 20, "--accumulation", 2, "--checkpointing")
    code, out, err = run("distill", model_folder, student, *material, *sizes, *steps)
    assert code == 0, err
    assert "320 tokens" in out  # two stages of one step, of two batches of 4 texts of 20 tokens
    num_tokens = 50 + 2 * 12 * len("A neuron fires when its potential passes the threshold, and rests. ")
    assert f"Training on {num_tokens:,} tokens on cpu" in err
    assert "4 texts of 20 at a time, rates 0.001 and 0.0001, float32" in err

    # 2 layers, keys and values, 1 head of 8 channels, 2 bytes: 64 a token. A quarter of the memory is for them.
    config = SimpleNamespace(num_hidden_layers=2, num_key_value_heads=1, hidden_size=32, num_attention_heads=4)
    teacher = SimpleNamespace(device=torch.device("cuda"), dtype=torch.bfloat16, config=config)
    for free, texts in ((64 * 100 * 4 * 3 + 5, 3), (10**12, 2048), (10, 1)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 2 * free))
        assert texts_at_once(teacher, 100) == texts
    # Without groups of heads, as in GPT-2: 4 heads of 8 channels, 256 bytes a token.
    teacher.config = GPT2Config(n_layer=2, n_embd=32, n_head=4)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (256 * 100 * 4 * 3 + 5, 10**12))
    assert texts_at_once(teacher, 100) == 3


def test_losses_go_from_start_to_end():
    assert _ends([3.0, 2.0, 1.0]) == "3 -> 1"
    assert _ends([5.0]) == "5 -> 5"
    # Means over a tenth of 20 steps, two each.
    assert _ends([4.0, 2.0, *[9.0] * 16, 1.0, 2.0]) == "3 -> 1.5"
    assert _ends([float(i) for i in range(1000)]) == "4.5 -> 994.5"


@pytest.mark.parametrize("command", fast_first(["convert", "distill"]))
def test_folders_that_cannot_be_written(command, run, model_folder, student, text, tmp_path, monkeypatch):
    sources = (model_folder, student, "--text", text) if command == "distill" else (model_folder,)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("years of work")
    (tmp_path / "file").write_text("x")
    for out, message in [
        (tmp_path / "full", "holds thesis.tex already. Name a new folder, or pass --force"),
        (tmp_path / "file", "expected a folder, got a file. Name another."),
        (tmp_path / "file" / "below", "cannot be written: Not a directory. Name another folder."),
        (model_folder, "is a model that is read, which would be lost"),
        (model_folder / ".." / model_folder.name, "is a model that is read, which would be lost"),
    ]:
        for force in ((), ("--force",)) if "is read" in message else ((),):
            code, _, err = run(command, *sources, "--out", out, *force)
            assert code == 2
            assert f"error: --out {out}: {message}" in err
    assert (tmp_path / "full" / "thesis.tex").read_text() == "years of work"
    monkeypatch.chdir(tmp_path)
    steps = ("--attention-steps", 1, "--logits-steps", 0, "--context", 20) if command == "distill" else ()
    for out in ("new/er", "full"):
        code, _, err = run(command, *sources, *steps, "--out", out, "--force")
        assert code == 0, err
        assert load(tmp_path / out).model.settings.num_layers == 2
