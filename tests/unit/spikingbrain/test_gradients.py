"""Training steps: nothing in them waits for a GPU, and captured ones learn as those that run kernel by kernel."""

import copy
import sys
from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import spikebrain as sb
from spikebrain.models.conversion import from_transformer
from spikebrain.models.training import DistillSettings, Stage, distill
from spikebrain.models.training.distill import _prepared
from spikebrain.models.training.gradients import Gradients, why_not_captured
from spikebrain.models.training.objectives import hidden_of, layers_of, match_layers, match_logits
from spikebrain.models.training.writer import Writer
from spikebrain.neuro.faults import marked_faults

MIXTURE = {"num_experts": 3, "num_sinks": 2}
WAITING = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::bincount", "aten::equal")


class Waits(TorchDispatchMode):
    """Counts the operations whose result, on a GPU, the host would wait for."""

    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().split(".")[0]
        indices = args[1] if name in ("aten::index", "aten::index_put") else ()
        if name in WAITING or any(x is not None and x.dtype == torch.bool for x in indices):
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def captured():
    """Let faults be marked, as while a graph is captured."""
    with marked_faults():
        yield


def stage_of(objective, trainable="all", **changes):
    sizes = {"steps": 12, "context": 20, "learning_rate": 0.02, "batch_size": 4, "warmup": 1}
    return Stage(objective=objective, trainable=trainable, **{**sizes, **changes})


@pytest.mark.parametrize("spiking", [None, "as-described", "as-released"])
@pytest.mark.parametrize("objective", ["attention", "logits"])
@pytest.mark.parametrize("layout", ["gla,swa", "gla,gla+full/moe"])
def test_what_the_student_does_waits_for_nothing(teacher, tokens, layout, objective, spiking, captured):
    student = from_transformer(teacher, layout, **(MIXTURE if "moe" in layout else {}))
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(".experts." not in name)
    settings = DistillSettings(stages=(stage_of(objective, "attention"),), spiking=spiking)
    ids = tokens[:80].view(4, 20)
    known = layers_of(teacher, ids) if objective == "attention" else hidden_of(teacher, ids)
    with _prepared(student, teacher, settings), Waits() as waits:
        if objective == "attention":
            match_layers(student, known, ids, 1.0)
        else:
            match_logits(student, known, ids, 1.0, head=teacher.lm_head, temperature=1.0, ce_weight=0.5)
    assert not waits.found
    with _prepared(student, teacher, settings), Waits() as waits:
        bool(torch.ones(1))
    assert waits.found  # the mode does see what waits


@pytest.mark.parametrize("neuron", [sb.AdaptiveThreshold(), sb.DeadZoneThreshold(), sb.LargestMagnitude()])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 1e30])
def test_what_cannot_be_checked_becomes_nan(bad, neuron, captured):
    x = torch.ones(2, 3)
    x[1, 1] = bad
    with Waits() as waits:
        found = neuron(x).activation()
    assert not waits.found
    assert not torch.isfinite(found[1]).all()
    assert torch.isfinite(found[0]).all()


def test_equal_experts_that_do_not_learn_stay_one(teacher, tokens):
    student = from_transformer(teacher, "gla,gla+full/moe", **MIXTURE)
    ids = tokens[:40].view(2, 20)
    with torch.no_grad():
        expected, found = student.eval()(ids).logits, student.train()(ids).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    result = distill(student, teacher, tokens, DistillSettings(stages=(stage_of("logits", "attention"),)))
    losses = [point.loss for point in result.losses]
    assert sum(losses[-3:]) < sum(losses[:3])
    assert student.settings.equal_experts
    steps = {part: DistillSettings(stages=(stage_of("logits", part),)) for part in ("attention", "all")}
    assert why_not_captured(student, steps["attention"]) is None
    assert "expert" in str(why_not_captured(student, steps["all"]))
    assert "expert" in str(why_not_captured(sb.unshare_experts(student), steps["attention"]))
    assert "again" in str(why_not_captured(student, replace(steps["all"], gradient_checkpointing=True)))


def test_a_writer_draws_by_the_probabilities_of_the_teacher(teacher):
    writer = Writer(teacher, 5, 12, torch.float32)
    text = writer.write(3)
    assert torch.equal(writer.write(3), text)
    assert not torch.equal(writer.write(4), text)
    generator = torch.Generator().manual_seed(3)
    expected = torch.randint(61, (5,), generator=generator)[:, None]
    for _ in range(11):
        noise = torch.ones(5, 61).exponential_(generator=generator)
        with torch.no_grad():
            probability = teacher(input_ids=expected).logits[:, -1].softmax(-1)
        expected = torch.cat([expected, (probability / noise).argmax(-1, keepdim=True)], 1)
    assert torch.equal(text, expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("spiking", [None, "as-described"])
@pytest.mark.parametrize("objective", ["attention", "logits"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_captured_step_learns_the_same(teacher, tokens, objective, spiking, accumulation, monkeypatch):
    teacher = teacher.cuda()
    stage = stage_of(objective, "attention", accumulation=accumulation)
    settings = DistillSettings(stages=(stage,), spiking=spiking)
    first = from_transformer(teacher, "gla,gla+full/moe", **MIXTURE)
    other, captured = copy.deepcopy(first), []
    replay = sys.modules[Gradients.__module__]._Graph.replay
    monkeypatch.setattr(f"{Gradients.__module__}._Graph.replay", lambda *args: captured.append(1) or replay(*args))
    found = [point.loss for point in distill(first, teacher, tokens, settings).losses]
    assert len(captured) == 12 * accumulation - 4
    monkeypatch.setattr(f"{Gradients.__module__}.why_not_captured", lambda *args: "of this test")
    expected = [point.loss for point in distill(other, teacher, tokens, settings).losses]
    assert found == pytest.approx(expected, rel=1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_writer_on_a_gpu_follows_the_teacher(teacher):
    teacher = teacher.cuda()
    rows = Writer(teacher, 64, 150, torch.float32).write(0)  # two graphs
    with torch.no_grad():
        own, random = (
            float(teacher(input_ids=ids.cuda(), labels=ids.cuda()).loss)
            for ids in (rows, torch.randint(0, 61, rows.shape))
        )
    assert own < random - 0.2
