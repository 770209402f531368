"""Ordinary Transformers learn to run on spikes: losses fall, runs go on, and the result is what was trained."""

import copy
import json
import sys
from types import SimpleNamespace

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel, OPTConfig, OPTForCausalLM

from spikebrain import AdaptiveThreshold, DeadZoneThreshold, SpikeSettings, to_spiking
from spikebrain.errors import InputError, TrainingError
from spikebrain.models.conversion import from_transformer
from spikebrain.models.layers.spike_aware import SpikeAware, SpikeAwareLinear, spike_aware
from spikebrain.models.training import DistillSettings, Stage, distill, fit_steps
from spikebrain.models.training.distill import batch_of

SPIKES = SpikeSettings(
    weights="int4",
    group_size=8,
    coarse={"*mlp*": ((2, 3),)},
    neuron={"*down_proj": AdaptiveThreshold(4.0), "*": DeadZoneThreshold(6.0, dead_zone=0.4)},
    compact_scales=True,
)


def stage(**changes):
    sizes = {"context": 20, "learning_rate": 2e-3, "batch_size": 4, "warmup": 1, "steps": 5}
    return Stage(**{"objective": "logits", **sizes, **changes})


def settings(**changes):
    return DistillSettings(**{"stages": (stage(),), "spikes": SPIKES, **changes})


def losses_of(result):
    return [point.loss for point in result.losses]


def divergence(teacher, model, ids):
    with torch.no_grad():
        wanted, found = (one(ids).logits[:, :-1].log_softmax(-1) for one in (teacher, model))
    return float((wanted.exp() * (wanted - found)).sum(-1).mean())


def test_a_copy_of_the_teacher_learns_to_run_on_spikes(teacher, tokens):
    student, before = copy.deepcopy(teacher), to_spiking(teacher, SPIKES)
    result = distill(student, teacher, tokens, settings(stages=(stage(steps=30, batch_size=8),)))
    found = losses_of(result)
    assert sum(found[-3:]) < 0.7 * sum(found[:3])
    after = to_spiking(student, SPIKES)
    assert not any(isinstance(module, SpikeAwareLinear) for module in student.modules())
    ids = tokens[:400].view(-1, 20)
    assert divergence(teacher, after, ids) < 0.8 * divergence(teacher, before, ids)
    # The loss of the first step is that of the spiking model on the first batch.
    first = batch_of(tokens, stage(batch_size=8), 0, 0)
    assert found[0] == pytest.approx(divergence(teacher, before, first), rel=1e-3)
    with torch.no_grad(), spike_aware(student, SPIKES):
        aware = student(ids).logits
    with torch.no_grad():
        torch.testing.assert_close(aware, after(ids).logits, atol=2e-4, rtol=1e-3)
    assert not student.training
    assert all(p.requires_grad and p.grad is None for p in student.parameters())
    assert student.get_output_embeddings().weight is student.get_input_embeddings().weight


def test_without_spikes_a_copy_has_nothing_to_learn(teacher, tokens):
    assert losses_of(distill(copy.deepcopy(teacher), teacher, tokens, settings(spikes=None)))[0] < 1e-5


def test_silence_grows_from_nothing(teacher, tokens, monkeypatch):
    shares, grow = [], SpikeAware.grow
    monkeypatch.setattr(SpikeAware, "grow", lambda self, share: shares.append(share) or grow(self, share))
    result = distill(copy.deepcopy(teacher), teacher, tokens, settings(stages=(stage(growth=0.8), stage(steps=2))))
    assert shares == [0, 0.25, 0.5, 0.75, 1, 1, 1]
    without = SpikeSettings(
        weights="int4",
        group_size=8,
        compact_scales=True,
        neuron={"*down_proj": AdaptiveThreshold(4.0), "*": AdaptiveThreshold(6.0)},
    )
    first = batch_of(tokens, stage(), 0, 0)
    expected = divergence(teacher, to_spiking(teacher, without), first)
    assert losses_of(result)[0] == pytest.approx(expected, rel=1e-3)
    with pytest.raises(InputError, match=r"Stage\.growth: expected a number from 0 to 1, got 1\.5"):
        stage(growth=1.5)


def test_a_penalty_keeps_bytes_below_a_target(teacher, tokens):
    ids, spikes = tokens.view(-1, 20), SpikeSettings(neuron=DeadZoneThreshold(6.0, dead_zone=0.4))
    chosen = {"stages": (stage(steps=60, learning_rate=5e-3, batch_size=8),), "spikes": spikes}

    def read_after(**changes):
        student = copy.deepcopy(teacher)
        result = distill(student, teacher, tokens, settings(**chosen, **changes))
        with torch.no_grad(), spike_aware(student, spikes, counts_bytes=True) as aware:
            student(ids)
            return float(aware.read()), losses_of(result)

    free, losses = read_after()
    kept, penalised = read_after(read=0.92 * free, read_penalty=10.0)
    assert kept < 0.94 * free
    # The first loss holds 10 times the share that is read too much by then; all of the tokens read about as much.
    assert penalised[0] - losses[0] == pytest.approx(10 * 0.08 / 0.92, rel=0.2)
    assert penalised[-1] < 0.5 * penalised[0]
    assert read_after(read=2.0)[1] == losses
    for fields in ({"spikes": None}, {"gradient_checkpointing": True}):
        with pytest.raises(InputError, match=r"DistillSettings\.read: has no effect without spikes, and expects"):
            settings(read=0.3, **fields)
    with pytest.raises(InputError, match=r"DistillSettings\.read: expected a finite number > 0 or None, got 0"):
        settings(read=0.0)


@pytest.mark.parametrize("num_steps", [0, 2])
def test_going_on_gives_the_same_losses(teacher, tokens, tmp_path, num_steps, monkeypatch):
    chosen = settings(stages=(stage(growth=0.5, accumulation=2),))
    expected = distill(whole := copy.deepcopy(teacher), teacher, tokens, chosen)
    seen = []
    clock = SimpleNamespace(perf_counter=lambda: 1e9 if seen and sum(seen) >= num_steps else 0.0)
    monkeypatch.setattr(sys.modules["spikebrain.models.training.distill"], "time", clock)
    budgeted = settings(stages=chosen.stages, budget_s=1.0)
    first = distill(copy.deepcopy(teacher), teacher, tokens, budgeted, tmp_path, lambda title, total: seen.append)
    monkeypatch.undo()
    assert (first.finished, len(first.losses)) == (False, num_steps)
    student = copy.deepcopy(teacher)
    second = distill(student, teacher, tokens, chosen, tmp_path)
    assert losses_of(second) == losses_of(expected)
    assert all(torch.equal(p, q) for p, q in zip(student.parameters(), whole.parameters(), strict=True))
    other = settings(stages=chosen.stages, spikes=SpikeSettings(neuron=DeadZoneThreshold(6.0, dead_zone=0.3)))
    with pytest.raises(InputError, match="is the state of a training with other settings"):
        distill(student, teacher, tokens, other, tmp_path)


def test_a_job_is_json(tmp_path):
    job = settings().job()
    assert json.loads(json.dumps(job))["spikes"]["coarse"]["mapping"] == {"*mlp*": [[2, 3]]}
    assert settings(spikes=None).job()["spikes"] is None


def test_checkpointing_and_precision(teacher, tokens):
    plain = losses_of(distill(copy.deepcopy(teacher), teacher, tokens, settings()))
    ran, student = [], copy.deepcopy(teacher)
    student.model.layers[0].self_attn.register_forward_hook(lambda *_: ran.append(1))
    again = losses_of(distill(student, teacher, tokens, settings(gradient_checkpointing=True)))
    assert again == pytest.approx(plain, rel=1e-5)
    assert len(ran) == 2 + 5 + 5  # a look at its head, and each step twice
    assert not any(getattr(module, "gradient_checkpointing", False) for module in student.modules())
    half = losses_of(distill(copy.deepcopy(teacher), teacher, tokens, settings(precision="bfloat16")))
    assert half == pytest.approx(plain, rel=0.4)
    assert half != plain


def test_dropout_does_not_make_losses_random(tokens):
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "ffn_dim": 24,
        "num_attention_heads": 2,
        "word_embed_proj_dim": 16,
    }
    teacher = OPTForCausalLM(OPTConfig(vocab_size=61, max_position_embeddings=32, dropout=0.5, **sizes)).eval()
    chosen = settings(spikes=SpikeSettings(neuron=DeadZoneThreshold(6.0, dead_zone=0.3)))
    first, second = (losses_of(distill(copy.deepcopy(teacher).train(), teacher, tokens, chosen)) for _ in range(2))
    assert first == second
    assert len(set(first)) == 5


def test_layers_that_keep_their_weights_transposed_learn(tokens):
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=61, n_embd=32, n_layer=2, n_head=2, n_positions=32, initializer_range=0.3)
    teacher, ids = GPT2LMHeadModel(config).eval(), tokens[:400].view(-1, 20)
    spikes = SpikeSettings(
        weights="int4", compact_scales=True, group_size=16, coarse=((2, 3),), neuron=SPIKES.neuron["*"]
    )
    student = copy.deepcopy(teacher)
    before = divergence(teacher, to_spiking(student, spikes), ids)
    distill(student, teacher, tokens, settings(spikes=spikes, stages=(stage(steps=40, batch_size=8),)))
    after = to_spiking(student, spikes)
    assert divergence(teacher, after, ids) < 0.8 * before
    with torch.no_grad(), spike_aware(student, spikes):
        torch.testing.assert_close(student(ids).logits, after(ids).logits, atol=2e-3, rtol=1e-3)


def test_steps_that_fit_a_time(teacher, tokens):
    fitted = fit_steps(copy.deepcopy(teacher), teacher, tokens, settings(), 0.0, (1.0,))
    assert [one.steps for one in fitted.stages] == [1]


def test_a_hybrid_takes_settings_of_layers_too(teacher, tokens):
    student = from_transformer(teacher, "gla,swa")
    found = losses_of(distill(student, teacher, tokens, settings(stages=(stage(steps=12, learning_rate=1e-2),))))
    assert sum(found[-3:]) < sum(found[:3])
    assert student.settings.spiking is None
    named = DistillSettings(stages=(stage(steps=1),), spiking="as-described", k=2.0)
    by_hand = SpikeSettings(layers=("*_proj", "*.gk_proj.?"), neuron=AdaptiveThreshold(2.0), attention="as-described")
    students = [from_transformer(teacher, "gla,swa") for _ in range(2)]
    losses = [
        losses_of(distill(student, teacher, tokens, chosen))
        for student, chosen in zip(students, (named, settings(stages=(stage(steps=1),), spikes=by_hand)), strict=True)
    ]
    assert losses[0] == losses[1]


def test_weights_that_diverge_end_it(teacher, tokens):
    with pytest.raises(TrainingError, match=r"expected a finite loss, got (nan|inf) at step \d+ of stage 0 \(logits\)"):
        distill(copy.deepcopy(teacher), teacher, tokens, settings(stages=(stage(steps=30, learning_rate=1e38),)))


def test_refusals(teacher, tokens, as_users):
    other = copy.deepcopy(teacher)
    other.resize_token_embeddings(50)
    capped = Gemma2ForCausalLM(
        Gemma2Config(
            vocab_size=61,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            final_logit_softcapping=0.5,
            initializer_range=1.0,
            pad_token_id=0,
        )
    )
    for student, chosen, message in [
        (to_spiking(teacher, SPIKES), settings(), "got one that spikes, whose INT8 weights cannot learn"),
        (teacher, settings(stages=(stage(objective="attention"),)), "got 'attention' and 'all'"),
        (teacher, settings(stages=(stage(trainable="new"),)), "got 'logits' and 'new'"),
        (teacher, settings(spikes=None, spiking="as-described"), "expected `spikes` for a LlamaForCausalLM"),
        (teacher, settings(spikes=SpikeSettings(attention="as-described")), "with attention=None"),
        (teacher, settings(spikes=SpikeSettings(weights="stored")), 'expected weights="int8" or "int4"'),
        (other, settings(), "the teacher's vocabulary of 61 tokens, got 50"),
        (capped, settings(), r"distill\.student: .* got a Gemma2ForCausalLM, which changes them afterwards"),
    ]:
        with pytest.raises(InputError, match=message):
            distill(student, teacher, tokens, chosen)
    for fields in ({"spiking": "as-described"}, {"spikes": "int4"}):
        with pytest.raises(InputError, match=r"DistillSettings\.spikes: expected SpikeSettings\(\.\.\.\), without"):
            settings(**fields)
