"""What is to be matched, against its formulas."""

import pytest
import torch

from spikebrain.models.conversion import from_transformer
from spikebrain.models.training import objectives
from spikebrain.models.training.objectives import equals_teacher, hidden_of, layers_of, match_layers, match_logits


def test_a_model_equal_to_its_teacher_has_no_loss(teacher, tokens):
    student, ids = from_transformer(teacher, "full,swa"), tokens[:60].view(2, 30)
    assert match_layers(student, layers_of(teacher, ids), ids, 1.0) < 1e-10
    assert (
        abs(
            match_logits(
                student, hidden_of(teacher, ids), ids, 1.0, head=teacher.lm_head, temperature=2.0, ce_weight=0.0
            )
        )
        < 1e-6
    )
    with torch.no_grad():
        nll = teacher(ids, labels=ids).loss.item()
    found = match_logits(
        student, hidden_of(teacher, ids), ids, 1.0, head=teacher.lm_head, temperature=1.0, ce_weight=0.5
    )
    assert found == pytest.approx(0.5 * nll, rel=1e-4)


def test_loss_of_the_logits_against_its_formula(teacher, tokens):
    student, ids = from_transformer(teacher, "7b"), tokens[:60].view(2, 30)
    with torch.no_grad():
        p, q = ((model(ids).logits[:, :-1] / 2.0).softmax(-1) for model in (teacher, student))
    expected = 4.0 * (p * (p / q).log()).sum(-1).mean()  # temperature^2 is 4
    found = match_logits(
        student, hidden_of(teacher, ids), ids, 1.0, head=teacher.lm_head, temperature=2.0, ce_weight=0.0
    )
    assert found == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize(
    ("layout", "experts"), [("7b", {}), ("gla,swa/moe", {"num_experts": 2, "equal_experts": False})]
)
def test_gradients_of_the_logits_are_those_of_the_whole_text_at_once(teacher, tokens, monkeypatch, layout, experts):
    monkeypatch.setattr(objectives, "_TOKENS", 7)  # 58 predictions: eight portions, and two left
    student, ids = from_transformer(teacher, layout, **experts).train(), tokens[:60].view(2, 30)
    loss = match_logits(
        student, hidden_of(teacher, ids), ids, 0.5, head=teacher.lm_head, temperature=2.0, ce_weight=0.25
    )
    found = {name: p.grad for name, p in student.named_parameters()}
    student.zero_grad()
    output = student(ids, labels=ids)
    with torch.no_grad():
        wanted = (teacher(ids).logits[:, :-1] / 2).softmax(-1)
    kl = (wanted * (wanted.log() - (output.logits[:, :-1] / 2).log_softmax(-1))).sum(-1).mean()
    nll = torch.nn.functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    expected = 4 * kl + 0.25 * nll
    aux = student.model(ids, use_cache=False).aux_loss
    if experts:
        expected = expected + student.settings.aux_loss_weight * aux
    (0.5 * expected).backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for name, parameter in student.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-3, atol=1e-6, msg=name)


def test_loss_of_the_layers_against_its_formula(teacher, tokens):
    student, ids = from_transformer(teacher, "gla,full"), tokens[:60].view(2, 30)
    with torch.no_grad():
        x = teacher.model.embed_tokens(ids)
        target = teacher.model(ids, output_hidden_states=True).hidden_states[1]
        found = student.model(ids, output_hidden_states=True).hidden_states[1]
        wanted = {}
        teacher.model.layers[0].self_attn.o_proj.register_forward_hook(lambda m, i, o: wanted.__setitem__("o", o))
        student.model.layers[0].attn.register_forward_hook(lambda m, i, o: wanted.__setitem__("a", o))
        teacher(ids), student(ids)
    attended = (wanted["a"] - wanted["o"]).square().sum() / wanted["o"].square().sum()
    hidden = (found - target).square().sum() / (target - x).square().sum()
    # The second layer is the teacher's: it is no part of the mean.
    loss = match_layers(student, layers_of(teacher, ids), ids, 1.0)
    assert loss.item() == pytest.approx(float(attended + hidden), rel=1e-4)
    # Nor does it get gradients, which would be noise that Adam scales up.
    got = [[p.grad is not None for p in layer.parameters()] for layer in student.model.layers]
    assert all(got[0])
    assert not any(got[1])
    # The hidden state says nothing more where attention alone learns.
    student.model.layers[0].mlp.requires_grad_(False)
    assert match_layers(student, layers_of(teacher, ids), ids, 1.0).item() == pytest.approx(float(attended), rel=1e-4)


def test_which_layers_are_the_teachers(teacher):
    student = from_transformer(teacher, "gla,swa", window=9)  # a token sees itself and 9 before it
    assert not equals_teacher(student, 0, 5)
    assert equals_teacher(student, 1, 10)
    assert not equals_teacher(student, 1, 11)
    assert not equals_teacher(from_transformer(teacher, "gla,swa", num_sinks=1), 1, 5)
    assert not equals_teacher(from_transformer(teacher, "gla,full/moe", num_experts=2), 1, 5)
