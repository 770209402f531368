"""Light training: losses fall, an interrupted run gives the same losses, spikes in the loop, refusals."""

import itertools
import json
import math
import os
import signal
import subprocess
import sys
import textwrap
from types import SimpleNamespace

import pytest
import torch
from fast_first import fast_first

from spikebrain.analysis import plot_losses
from spikebrain.errors import CheckpointError, InputError, TrainingError
from spikebrain.models.conversion import from_transformer, to_spiking
from spikebrain.models.training import DistillResult, DistillSettings, LossPoint, Stage, distill, fit_steps, sample_from
from spikebrain.models.training.distill import batch_of
from spikebrain.models.training.state import FILE_NAME


def stages(**changes):
    common = {"context": 20, "learning_rate": 1e-2, "batch_size": 4, "warmup": 1, **changes}
    return (
        Stage(objective="attention", steps=3, trainable="attention", **common),
        Stage(objective="logits", steps=4, accumulation=2, **common),
    )


SETTINGS = DistillSettings(stages=stages())


def losses_of(result):
    return [point.loss for point in result.losses]


@pytest.mark.parametrize("trainable", fast_first(["all", "new", "attention"]))
@pytest.mark.parametrize("objective", ["attention", "logits"])
def test_losses_fall_and_only_what_trains_changes(teacher, tokens, objective, trainable):
    student = from_transformer(teacher, "gla,gla+full/moe", num_experts=3, num_sinks=2, equal_experts=False)
    before = {name: p.detach().clone() for name, p in student.named_parameters()}
    stage = Stage(objective=objective, steps=20, trainable=trainable, context=20, learning_rate=0.03, warmup=2)
    result = distill(student, teacher, tokens, DistillSettings(stages=(stage,)))
    found = losses_of(result)
    assert sum(found[-3:]) < 0.99 * sum(found[:3])
    assert result.finished
    assert result.num_tokens == 20 * 8 * 20
    changed = {name for name, p in student.named_parameters() if not torch.equal(p, before[name])}
    attention = {name for name in before if ".attn." in name}
    assert ("model.layers.0.attn.q_proj.weight" in changed) == (trainable != "new")
    assert ("model.layers.0.mlp.up_proj.weight" in changed) == (trainable == "all")
    assert "model.layers.0.attn.g_norm.weight" in changed
    assert trainable == "all" or changed <= attention | {"model.sinks", "model.layers.1.mlp.router.weight"}
    assert not student.training
    assert all(p.requires_grad and p.grad is None for p in student.parameters())


def test_what_is_new_may_learn_faster(teacher, tokens):
    def change(new_rate):
        student = from_transformer(teacher, "7b")
        before = [x.detach().clone() for x in (student.model.layers[0].attn.g_norm.weight, student.model.norm.weight)]
        stage = Stage(
            objective="logits", steps=1, context=20, learning_rate=1e-3, new_rate=new_rate, warmup=0, batch_size=2
        )
        distill(student, teacher, tokens, DistillSettings(stages=(stage,)))
        after = (student.model.layers[0].attn.g_norm.weight, student.model.norm.weight)
        return [(x.detach() - y).abs().mean().item() for x, y in zip(after, before, strict=True)]

    # Adam's first step is the learning rate itself.
    assert change(1.0) == pytest.approx([1e-3, 1e-3], rel=0.02)
    assert change(5.0) == pytest.approx([5e-3, 1e-3], rel=0.02)


def test_batches_take_every_text_once_before_any_again():
    tokens, stage = torch.arange(70), Stage(objective="logits", context=10, steps=1, learning_rate=1.0, batch_size=3)
    firsts = torch.cat([batch_of(tokens, stage, 5, i)[:, 0] for i in range(7)]).tolist()
    assert [sorted(firsts[i : i + 7]) for i in (0, 7, 14)] == [[0, 10, 20, 30, 40, 50, 60]] * 3
    assert firsts[:7] != firsts[7:14]


def test_learning_rate():
    stage = Stage(objective="logits", context=10, steps=8, learning_rate=1.0, warmup=1)
    assert stage.learning_rate_at(0) == pytest.approx(0.5)
    assert stage.learning_rate_at(4) == pytest.approx(0.5)  # half way down the cosine
    assert stage.learning_rate_at(7) == pytest.approx(0.5 * (1 + math.cos(math.pi * 7 / 8)))


def test_accumulation_is_a_larger_batch(teacher, tokens):
    def weights(**sizes):
        student = from_transformer(teacher, "7b")
        stage = Stage(objective="logits", steps=2, context=20, learning_rate=1e-2, **sizes)
        distill(student, teacher, tokens, DistillSettings(stages=(stage,)))
        return student.model.layers[0].attn.q_proj.weight

    torch.testing.assert_close(weights(batch_size=6), weights(batch_size=2, accumulation=3), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("num_steps", fast_first([3, 0, 2, 5]))
def test_going_on_gives_the_same_losses(teacher, tokens, tmp_path, num_steps, monkeypatch):
    expected = distill(whole := from_transformer(teacher, "7b"), teacher, tokens, SETTINGS)
    # A clock that jumps over the budget after so many steps.
    seen = []

    def stop_after(title, total):
        return seen.append

    clock = SimpleNamespace(perf_counter=lambda: 1e9 if seen and sum(seen) >= num_steps else 0.0)
    monkeypatch.setattr(sys.modules["spikebrain.models.training.distill"], "time", clock)
    budgeted = DistillSettings(stages=stages(), budget_s=1.0)
    first = distill(from_transformer(teacher, "7b"), teacher, tokens, budgeted, tmp_path, stop_after)
    monkeypatch.undo()
    assert not first.finished
    assert len(first.losses) == num_steps
    student = from_transformer(teacher, "7b")
    second = distill(student, teacher, tokens, SETTINGS, tmp_path)
    assert second.finished
    assert losses_of(second) == losses_of(expected)
    assert all(torch.equal(p, q) for p, q in zip(student.parameters(), whole.parameters(), strict=True))
    assert [p["loss"] for p in json.loads((tmp_path / "loss.json").read_text())] == losses_of(expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["loss.json", FILE_NAME]


def test_an_interrupted_run_keeps_its_steps(teacher, tokens, tmp_path, listens_to_interrupts):
    steps, handler = [], signal.getsignal(signal.SIGINT)

    def interrupt(title, total):
        def advance(done):
            steps.append(done)
            if sum(steps) == 3:
                signal.raise_signal(signal.SIGINT)

        return advance

    with pytest.raises(KeyboardInterrupt):
        distill(from_transformer(teacher, "7b"), teacher, tokens, SETTINGS, tmp_path, interrupt)
    assert sum(steps) == 3
    assert signal.getsignal(signal.SIGINT) is handler
    student = from_transformer(teacher, "7b")
    kept = json.loads((tmp_path / "loss.json").read_text())
    assert len(kept) == 3
    result = distill(student, teacher, tokens, SETTINGS, tmp_path, lambda title, total: steps.append)
    whole = from_transformer(teacher, "7b")
    assert losses_of(result) == losses_of(distill(whole, teacher, tokens, SETTINGS))
    assert all(torch.equal(p, q) for p, q in zip(student.parameters(), whole.parameters(), strict=True))


@pytest.mark.slow
def test_a_killed_run_goes_on(teacher, tokens, tmp_path):
    script = """
        import os, signal, sys
        from pathlib import Path
        sys.path[:0] = [sys.argv[2], str(Path(sys.argv[2]).parent)]
        from conftest import make_teacher
        from test_distill import SETTINGS, torch
        import dataclasses
        from spikebrain.models.conversion import from_transformer
        from spikebrain.models.training import distill
        teacher, steps = make_teacher(), []
        tokens = torch.randint(0, 61, (600,), generator=torch.Generator().manual_seed(4))
        def kill(title, total):
            def advance(done):
                steps.append(done)
                if sum(steps) == 5:
                    os.kill(os.getpid(), signal.SIGKILL)
            return advance
        settings = dataclasses.replace(SETTINGS, save_every_s=0.0)
        distill(from_transformer(teacher, "7b"), teacher, tokens, settings, Path(sys.argv[1]), kill)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path), os.path.dirname(__file__)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == -signal.SIGKILL, run.stderr
    (tmp_path / f".{FILE_NAME}.77.partial").write_bytes(b"half a file")
    result = distill(from_transformer(teacher, "7b"), teacher, tokens, SETTINGS, tmp_path)
    expected = distill(from_transformer(teacher, "7b"), teacher, tokens, SETTINGS)
    assert losses_of(result) == pytest.approx(losses_of(expected), rel=1e-6)


@pytest.mark.slow
def test_precision_and_checkpointing(teacher, tokens):
    plain = losses_of(distill(from_transformer(teacher, "7b"), teacher, tokens, SETTINGS))
    student = from_transformer(teacher, "7b")
    again = DistillSettings(stages=stages(), gradient_checkpointing=True)
    assert losses_of(distill(student, teacher, tokens, again)) == pytest.approx(plain, rel=1e-5)
    assert not student.model.gradient_checkpointing
    half = DistillSettings(stages=stages(), precision="bfloat16")
    found = losses_of(distill(from_transformer(teacher, "7b"), teacher, tokens, half))
    assert found == pytest.approx(plain, rel=0.2)
    assert found != plain


def test_sampling_from_the_teacher(teacher):
    text = sample_from(teacher, 50, length=12, batch_size=2, seed=1)
    assert text.shape == (50,)
    assert torch.equal(text, sample_from(teacher, 50, length=12, batch_size=2, seed=1))
    assert not torch.equal(text, sample_from(teacher, 50, length=12, batch_size=2, seed=2))
    # Close to greedy decoding at a low temperature.
    cold = sample_from(teacher, 12, length=12, temperature=1e-4)[None]
    written = teacher.generate(cold[:, :1], max_new_tokens=11, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert torch.equal(cold, written)
    with pytest.raises(InputError, match=r"sample_from\.temperature: expected a finite number > 0, got 0"):
        sample_from(teacher, 5, temperature=0.0)


@pytest.mark.slow
def test_steps_that_fit_a_time(teacher, tokens, monkeypatch):
    # A clock that goes on by 0.4 s whenever `distill` looks: at its start, where a stage begins and at its
    # end: 0.8 s for one step, so that it times four, of 0.2 s each.
    student, ticks = from_transformer(teacher, "7b"), itertools.count()
    clock = SimpleNamespace(perf_counter=lambda: next(ticks) * 0.4)
    monkeypatch.setattr(sys.modules["spikebrain.models.training.distill"], "time", clock)
    # The timing takes 1 s by its own clock, which is part of the time.
    seconds = itertools.count()
    planning = SimpleNamespace(perf_counter=lambda: float(next(seconds)))
    monkeypatch.setattr(sys.modules["spikebrain.models.training.planning"], "time", planning)
    before, told = [p.detach().clone() for p in student.parameters()], []

    def tell(title, total):
        told.append((title, total))
        return told.append

    fitted = fit_steps(student, teacher, tokens, SETTINGS, 1002.0, (0.25, 0.75), tell)
    assert told == [("timing", 2), 1, 1]
    assert [stage.steps for stage in fitted.stages] == [1251, 3753]  # 1001 * 0.25 / 0.2 and 1001 * 0.75 / 0.2
    assert [stage.objective for stage in fitted.stages] == ["attention", "logits"]
    assert all(torch.equal(p, q) for p, q in zip(student.parameters(), before, strict=True))
    # One that goes on by 2 s: 4 s a step, which is long enough to be timed once. A tenth of 801 s is 40 s a stage. Two
    # steps of 4 texts may take 32 s, so they are timed; two of 8 texts may take 64 s, so those count as 32 s each.
    clock.perf_counter = lambda: next(ticks) * 2.0
    fitted = fit_steps(student, teacher, tokens, SETTINGS, 801.0, (0.5, 0.5))
    assert [stage.steps for stage in fitted.stages] == [100, 12]  # 400 / 4 and 400 / 32
    monkeypatch.undo()
    assert [stage.steps for stage in fit_steps(student, teacher, tokens, SETTINGS, 0.0, (0.5, 0.5)).stages] == [1, 1]
    with pytest.raises(InputError, match="2 shares, one per stage"):
        fit_steps(student, teacher, tokens, SETTINGS, 1.0, (1.0,))


def test_curve(tmp_path):
    result = DistillResult(tuple(LossPoint(0, i, 1.0 / (i + 1), 0.1) for i in range(5)), False, 1.0, 10)
    plot_losses(result, stages(), tmp_path / "loss.png")
    assert (tmp_path / "loss.png").stat().st_size > 3000
    with pytest.raises(InputError, match="at least one step"):
        plot_losses(DistillResult((), False, 0.0, 0), stages(), tmp_path / "loss.png")


def test_not_a_number_ends_it(teacher, tokens):
    student = from_transformer(teacher, "7b")
    with torch.no_grad():
        student.model.layers[0].attn.g_norm.weight[0] = math.nan
    with pytest.raises(TrainingError, match=r"got nan at step 0 of stage 0 \(attention\)"):
        distill(student, teacher, tokens, SETTINGS)
    assert student.settings.spiking is None
    assert not student.training


def test_refusals(teacher, tokens, tmp_path):
    student = from_transformer(teacher, "7b")
    distill(student, teacher, tokens, SETTINGS, tmp_path)
    for arguments, message in [
        ((student, teacher, tokens[:-1], SETTINGS, tmp_path), "training with other settings, tokens or sizes"),
        ((to_spiking(student), teacher, tokens, SETTINGS), "whose INT8 weights cannot learn"),
        ((student, teacher, tokens[:10], SETTINGS), "at least 20 ids"),
        ((student, teacher, tokens + 60, SETTINGS), "expected ids from 0 to 60"),
    ]:
        with pytest.raises(InputError, match=message):
            distill(*arguments)
    (tmp_path / FILE_NAME).write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="cannot be read"):
        distill(student, teacher, tokens, SETTINGS, tmp_path)
    for fields, message in [
        ({"objective": "both"}, "Stage.objective: expected one of"),
        ({"context": 1}, "Stage.context: expected an integer >= 2, got 1"),
        ({"learning_rate": math.nan}, "Stage.learning_rate"),
        ({"trainable": "none"}, "Stage.trainable"),
        ({"new_rate": 0.0}, "Stage.new_rate"),
    ]:
        with pytest.raises(InputError, match=message):
            Stage(**{"objective": "logits", "context": 8, "steps": 1, "learning_rate": 1.0, **fields})
    with pytest.raises(InputError, match=r"DistillSettings\.stages"):
        DistillSettings(stages=())
