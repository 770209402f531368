"""Texts that the teacher writes while the student trains: none twice, and the same ones after an interruption."""

import json
import shutil
import sys

import pytest
import torch

from spikebrain import jobs, load
from spikebrain.errors import InputError
from spikebrain.models.conversion import from_transformer
from spikebrain.models.training import DistillSettings, Stage, WrittenText, distill, fit_steps

JOB = sys.modules["spikebrain.jobs.distill"]


def stages(**changes):
    common = {"context": 12, "learning_rate": 1e-2, "batch_size": 3, "warmup": 1, **changes}
    return (
        Stage(objective="attention", steps=3, trainable="attention", **common),
        Stage(objective="logits", steps=4, accumulation=2, **{**common, "context": 16}),
    )


def losses_of(result):
    return [point.loss for point in result.losses]


def test_no_text_is_written_twice(teacher):
    written = WrittenText(teacher, at_once=4, seed=2)
    rows = torch.cat([written.batch(0, 10, 3 * i, 3) for i in range(5)])
    assert rows.shape == (15, 10)
    assert len(rows.unique(dim=0)) == 15
    other = torch.cat([written.batch(1, 10, 0, 8), WrittenText(teacher, at_once=4, seed=3).batch(0, 10, 0, 7)])
    assert len(torch.cat([rows, other]).unique(dim=0)) == 30
    # In any order, and from another object: text number 9 is text number 9.
    again = WrittenText(teacher, at_once=4, seed=2)
    assert torch.equal(again.batch(0, 10, 9, 2), rows[9:11])
    assert torch.equal(again.batch(0, 10, 0, 1), rows[:1])
    assert again.seconds_per_text[10] > 0


def test_portions_without_texts_are_refused(teacher):
    for at_once in (0, -1):
        with pytest.raises(InputError, match=f"WrittenText.at_once: expected an integer >= 1 or None, got {at_once}"):
            WrittenText(teacher, at_once=at_once)


def test_the_teacher_writes_by_its_own_probabilities(teacher):
    """Tokens after the first follow the teacher: its loss on them is far below that on random tokens."""
    rows = WrittenText(teacher, at_once=64).batch(0, 16, 0, 64)
    with torch.no_grad():
        own, random = (
            float(teacher(input_ids=ids, labels=ids).loss) for ids in (rows, torch.randint(0, 61, rows.shape))
        )
    assert own < random - 0.2


def test_an_interrupted_training_reads_the_same_texts(teacher, tmp_path):
    def train(out=None, budget_s=None, student=None):
        student = student or from_transformer(teacher, "gla,swa")
        settings = DistillSettings(stages=stages(), budget_s=budget_s)
        return student, distill(student, teacher, WrittenText(teacher, at_once=5), settings, out)

    whole, expected = train()
    steps, student = 0, None
    while student is None or not found.finished:
        student, found = train(tmp_path / "a", 0.05)
        steps += 1
        assert steps < 100
    assert losses_of(found) == losses_of(expected)
    assert all(torch.equal(p, q) for p, q in zip(student.parameters(), whole.parameters(), strict=True))
    with pytest.raises(InputError, match="other settings, tokens or sizes"):
        distill(student, teacher, WrittenText(teacher, at_once=6), DistillSettings(stages=stages()), tmp_path / "a")


def test_writing_counts_when_steps_are_fitted_to_the_time(teacher):
    written = WrittenText(teacher, at_once=64)
    student = from_transformer(teacher, "gla,swa")
    written.batch(0, 12, 0, 1)
    written.batch(0, 16, 0, 1)
    written.seconds_per_text = {12: 50.0, 16: 1.0}
    settings = fit_steps(student, teacher, written, DistillSettings(stages=stages()), 1000.0, (0.5, 0.5))
    # A step of stage 0 takes 3 texts of 50 s, one of stage 1 takes 6 texts of 1 s, training itself far less.
    assert [stage.steps for stage in settings.stages] == [3, pytest.approx(80, abs=3)]


def test_the_command_trains_on_it_and_goes_on(run, model_folder, tmp_path, monkeypatch):
    student, out = tmp_path / "student", tmp_path / "b"
    jobs.convert(jobs.ConvertSettings(str(model_folder)), student)
    steps = ("--attention-steps", 1, "--logits-steps", 2, "--context", 16)
    options = ("--fresh", *steps, "--device", "cpu", "--seed", 4)
    with monkeypatch.context() as patched:
        patched.setattr(JOB, "save_student", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run("distill", model_folder, student, *options, "--out", out)
    assert json.loads((out / "plan.json").read_text())["at_once"] >= 1
    code, shown, err = run("distill", model_folder, student, *options, "--out", out)
    assert code == 0, err
    assert "tokens that the teacher writes meanwhile" in err
    assert "Going on with an interrupted training" in err
    assert "192 tokens" in shown  # three steps of 4 texts of 16 tokens
    assert run("distill", model_folder, student, *options, "--out", tmp_path / "c")[0] == 0
    found, expected = (load(tmp_path / name).model for name in ("b", "c"))
    assert all(torch.equal(p, q) for p, q in zip(found.parameters(), expected.parameters(), strict=True))
    for more in (("--sample", 100), ("--text", tmp_path / "no.txt")):
        code, _, err = run("distill", model_folder, student, *options, *more, "--out", tmp_path / "d")
        assert code == 2
        assert "--fresh: expected no --text and no --sample beside it" in err


def test_a_teacher_of_another_tokenizer_is_refused_before_work(run, model_folder, tmp_path):
    other, student = tmp_path / "other", tmp_path / "student"
    shutil.copytree(model_folder, other)
    content = json.loads((other / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    first, second = sorted(vocabulary)[:2]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (other / "tokenizer.json").write_text(json.dumps(content))
    jobs.convert(jobs.ConvertSettings(str(other)), student)
    code, _, err = run("distill", model_folder, student, "--fresh", "--out", tmp_path / "b")
    assert code == 2
    assert "STUDENT: expected the teacher's tokenizer, got another" in err
    assert not (tmp_path / "b").exists()
