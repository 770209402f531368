"""An ordinary Transformer is trained by the command: options or a calibrated folder say how, and the result spikes."""

import json
import shutil
import sys
from dataclasses import replace

import pytest
import torch
from test_stored_weights import write_typed
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, MixtralConfig, MixtralForCausalLM

import spikebrain as sb
from spikebrain import (
    AdaptiveThreshold,
    DeadZoneThreshold,
    SpikeSettings,
    from_transformer,
    jobs,
    load,
    save,
    spikingbrain_settings,
    to_spiking,
)
from spikebrain.errors import InputError
from spikebrain.jobs.distill_student import FLOAT, student_of
from spikebrain.jobs.progress import Silent

JOB = sys.modules["spikebrain.jobs.distill"]
IDS = torch.arange(40, 60)[None]
BY_LAYER = SpikeSettings(
    weights="int4",
    group_size=8,
    coarse={"model.layers.1.mlp.up_proj": ((2, 3),)},
    neuron={"model.layers.0.*": AdaptiveThreshold(4.0), "*": DeadZoneThreshold(6.0, dead_zone=0.3)},
)


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


@pytest.fixture
def calibrated(tiny_llama, tokenizer, tmp_path):
    save(to_spiking(tiny_llama, BY_LAYER), tmp_path / "calibrated", tokenizer)
    return tmp_path / "calibrated"


def test_options_say_how_it_spikes(run, model_folder, text, tmp_path):
    out = tmp_path / "trained"
    sizes = ("--text", text, "--context", 20, "--batch-size", 2, "--logits-steps", 3, "--out", out)
    options = ("--k", "*down_proj=4", "--k", 6, "--dead-zone", 0.3, "--weights", "int4", "--group-size", 8)
    options += ("--coarse", "2:3", "--compact-scales", "--skip", "*q_proj", "--growth", 0.5, "--budget", "read=0.2")
    code, shown, err = run("distill", model_folder, model_folder, *sizes, *options)
    assert code == 0, err
    assert "Trained on 120 tokens" in shown
    assert "loss logits" in shown
    assert f"spikebrain report {out}" in shown
    assert "rates 5e-05, float32" in err
    expected = SpikeSettings(
        weights="int4",
        group_size=8,
        coarse=((2, 3),),
        compact_scales=True,
        skip=("*q_proj",),
        neuron={
            "*down_proj": DeadZoneThreshold(4.0, dead_zone=0.3),
            "*": DeadZoneThreshold(6.0, dead_zone=0.3),
        },
    )
    found = load(out)
    assert found.model.conversion.settings == expected
    assert found.tokenizer is not None
    floats = load(out / FLOAT).model
    assert not torch.equal(floats.model.norm.weight, load(model_folder).model.model.norm.weight)
    torch.testing.assert_close(logits(found.model), logits(to_spiking(floats, expected)))
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(out)), logits(found.model))
    with torch.no_grad(), sb.spike_aware(floats, expected):
        torch.testing.assert_close(floats(IDS).logits, logits(found.model), atol=1e-4, rtol=1e-3)
    kept = {path.name for path in out.iterdir()}
    assert kept >= {"config.json", "loss.json", "loss.png", FLOAT}
    assert not kept & {"plan.json", "training.safetensors"}
    assert len(json.loads((out / "loss.json").read_text())) == 3


def test_a_folder_on_spikes_says_how_and_is_trained_on(run, model_folder, calibrated, text, tmp_path, monkeypatch):
    seen = []
    train = JOB.train
    monkeypatch.setattr(
        JOB, "train", lambda student, *rest: seen.append(JOB.fingerprint(student)) or train(student, *rest)
    )
    sizes = ("--text", text, "--context", 20, "--batch-size", 2, "--logits-steps", 2)
    first, second = tmp_path / "first", tmp_path / "second"
    code, _, err = run("distill", model_folder, calibrated, *sizes, "--out", first)
    assert code == 0, err
    assert load(first).model.conversion.settings == BY_LAYER
    assert run("distill", model_folder, first, *sizes, "--out", second)[0] == 0
    teacher, trained = (JOB.fingerprint(load(path).model) for path in (model_folder, first / FLOAT))
    assert seen == [teacher, trained]
    for option in (("--k", 3), ("--dead-zone", 0.1), ("--coarse", "2:4"), ("--compact-scales",)):
        code, _, err = run("distill", model_folder, calibrated, *sizes, *option, "--out", tmp_path / "no")
        assert code == 2
        assert f"{option[0]}: has no effect on {calibrated}, which spikes already and keeps its own settings" in err


def test_an_interrupted_training_goes_on_with_the_same_settings_alone(
    run, model_folder, calibrated, text, tmp_path, monkeypatch
):
    out = tmp_path / "trained"
    command = ("distill", model_folder, model_folder, "--text", text, "--context", 20, "--batch-size", 2)
    command += ("--logits-steps", 2, "--out", out)
    with monkeypatch.context() as patched:
        patched.setattr(JOB, "save_student", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(*command, "--dead-zone", 0.3, "--coarse", "2:3")
    for options, named in [
        (("--dead-zone", 0.2, "--coarse", "2:3"), "--dead-zone: {} holds a training that was begun with 0.3, not 0.2."),
        (("--dead-zone", 0.3), "--coarse: {} holds a training that was begun with [[2, 3]], not None."),
    ]:
        code, _, err = run(*command, *options)
        assert code == 2
        assert f"error: {named.format(out)}" in err
    code, _, err = run("distill", model_folder, calibrated, *command[3:], "--dead-zone", 0.3, "--coarse", "2:3")
    assert code == 2
    assert "which spikes already and keeps its own settings" in err
    code, _, err = run(*command, "--dead-zone", 0.3, "--coarse", "2:3")
    assert code == 0, err
    assert "Going on with an interrupted training: 2 steps of logits." in err


def test_float_weights_of_another_training_are_refused(run, model_folder, calibrated, tiny_llama, tokenizer, tmp_path):
    sizes = ("--fresh", "--context", 20, "--batch-size", 2, "--logits-steps", 2, "--learning-rate", 1e-2)
    assert run("distill", model_folder, calibrated, *sizes, "--out", tmp_path / "trained")[0] == 0
    assert run("distill", model_folder, tmp_path / "trained", *sizes, "--out", tmp_path / "further")[0] == 0
    # What `calibrate --force` does there: another model, beside the float weights of the training.
    save(to_spiking(tiny_llama, BY_LAYER), tmp_path / "trained", tokenizer)
    code, _, err = run("distill", model_folder, tmp_path / "trained", *sizes, "--out", tmp_path / "no")
    assert code == 2
    assert "STUDENT: expected float weights in" in err
    assert f"Delete {tmp_path / 'trained' / FLOAT}, and the teacher's are taken." in err
    shutil.rmtree(tmp_path / "trained" / FLOAT)
    assert run("distill", model_folder, tmp_path / "trained", *sizes, "--out", tmp_path / "no")[0] == 0


@pytest.mark.parametrize("kind", ["Q4_1", "Q8_0", "Q4_0"])
def test_stored_weights_become_such_as_learn(tokenizer, tmp_path, kind):
    teacher = load(write_typed(tmp_path / "m.gguf", tokenizer, lambda name: kind)).model
    stored = SpikeSettings(weights="stored", coarse={"*up_proj": ((2, 4),)}, neuron=DeadZoneThreshold(8.0))
    save(to_spiking(teacher, stored), tmp_path / "folder", tokenizer)
    run, said, told = jobs.DistillRun("t", tmp_path / "folder", sample=1), [], Silent()
    told.say = said.append
    if kind == "Q4_0":
        with pytest.raises(InputError, match="student: expected stored weights of one kind, of 4 bits with minima"):
            student_of(run, teacher, told)
        return
    student = student_of(run, teacher, told)
    weights, group_size = ("int4", None) if kind == "Q4_1" else ("int8", 32)
    assert student.spikes == replace(stored, weights=weights, group_size=group_size, compact_scales=True)
    assert student.model is not teacher
    assert said[-1] == f"Stored weights do not learn: they become {weights} in groups of 32, with compact scales."
    assert bool(torch.isfinite(logits(to_spiking(student.model, student.spikes))).all())


@pytest.mark.parametrize("of", ["a Transformer", "a SpikingBrain model"])
def test_a_teacher_without_a_tokenizer(run, model_folder, tiny_llama, tokenizer, tmp_path, of):
    tiny_llama.save_pretrained(tmp_path / "teacher")
    student = model_folder
    if of == "a SpikingBrain model":
        student = tmp_path / "hybrid"
        save(from_transformer(tiny_llama), student, tokenizer)
    sizes = ("--fresh", "--context", 20, "--batch-size", 2, "--logits-steps", 1)
    sizes += ("--attention-steps", 0) if student != model_folder else ()
    code, _, err = run("distill", tmp_path / "teacher", student, *sizes, "--out", tmp_path / "out")
    assert code == 0, err
    assert load(tmp_path / "out").tokenizer.get_vocab() == tokenizer.get_vocab()


def test_a_text_with_more_tokens_than_the_student_has_positions(run, model_folder, tokenizer, tmp_path):
    sizes = {"vocab_size": 258, "n_embd": 24, "n_layer": 1, "n_head": 4, "n_positions": 16}
    GPT2LMHeadModel(GPT2Config(**sizes)).save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    training = ("--fresh", "--context", 17, "--logits-steps", 1, "--out", tmp_path / "out")
    for models in ((model_folder, tmp_path / "gpt2"), (tmp_path / "gpt2", model_folder)):
        code, _, err = run("distill", *models, *training)
        assert code == 2
        assert "A window of 17 tokens: expected at most the model's 16 positions. Lower --context." in err


def test_students_that_do_not_fit(run, model_folder, calibrated, text, tmp_path, tiny_llama, tokenizer):
    out = ("--text", text, "--context", 20, "--out", tmp_path / "no")
    narrow = type(tiny_llama)(type(tiny_llama.config)(**{**tiny_llama.config.to_dict(), "intermediate_size": 32}))
    narrow.save_pretrained(tmp_path / "narrow")
    tokenizer.save_pretrained(tmp_path / "narrow")
    shallow = type(tiny_llama)(type(tiny_llama.config)(**{**tiny_llama.config.to_dict(), "num_hidden_layers": 1}))
    shallow.save_pretrained(tmp_path / "shallow")
    save(to_spiking(tiny_llama), tmp_path / "plain", tokenizer)
    hybrid = from_transformer(tiny_llama)
    save(hybrid, tmp_path / "float", tokenizer)
    save(to_spiking(hybrid, spikingbrain_settings("as-described")), tmp_path / "hybrid", tokenizer)
    for arguments, message in [
        ((tmp_path / "narrow", calibrated), "STUDENT: expected a model on spikes that was made of the teacher, got"),
        ((tmp_path / "shallow", calibrated), "weights [24, 24], where the teacher has no such layer. Name its own"),
        ((calibrated, calibrated), f"TEACHER: expected a float model, got {calibrated}, which spikes. Name the model"),
        ((tmp_path / "float", tmp_path / "float"), "TEACHER: expected a Transformer, got"),
        (
            (model_folder, tmp_path / "hybrid"),
            "STUDENT: expected a SpikingBrain model without spikes, got",
        ),
        ((model_folder, model_folder, "--budget", "read=nan"), "--budget: expected a finite number above 0 for read,"),
        ((model_folder, model_folder, "--budget", "read=0"), "--budget: expected a finite number above 0 for read,"),
        (
            (model_folder, model_folder, "--logits-steps", 0),
            "--logits-steps: expected more than 0, the only steps of",
        ),
        ((model_folder, model_folder, "--weights", "stored"), "--weights: expected int8 or int4, which follow from"),
        ((model_folder, model_folder, "--coarse", "2:x"), "expected BITS:UP_TO, such as 2:4 for counts up to 4"),
        (
            (model_folder, model_folder, "--budget", "spikes=1"),
            "--budget: expected read, got 'spikes'.",
        ),
        ((model_folder, model_folder, "--growth", 0.5), "--growth: has no effect without a dead zone or coarse rows"),
        ((model_folder, tmp_path / "plain", "--growth", 0.5), "--growth: has no effect without a dead zone or coarse"),
        ((model_folder, model_folder, "--growth", 2), "expected a number from 0 to 1, got 2"),
        ((model_folder, model_folder, "--spiking", "as-described"), "--spiking: has no effect on"),
        ((model_folder, model_folder, "--logits-steps", 1, "--minutes", 1), "--minutes: has no effect where"),
    ]:
        code, _, err = run("distill", *arguments, *out)
        assert code == 2, arguments
        assert message in err, arguments
        assert not (tmp_path / "no").exists() or not any((tmp_path / "no").iterdir())


def test_fused_experts_are_left_out_by_an_option(run, tokenizer, tmp_path):
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = MixtralConfig(vocab_size=258, num_key_value_heads=1, num_local_experts=2, **sizes)
    MixtralForCausalLM(config).save_pretrained(tmp_path / "moe")
    tokenizer.save_pretrained(tmp_path / "moe")
    training = ("--fresh", "--context", 8, "--batch-size", 2, "--logits-steps", 1, "--out", tmp_path / "out")
    code, _, err = run("distill", tmp_path / "moe", tmp_path / "moe", *training)
    assert code == 2
    assert "Leave them out with --skip '*.experts.*'." in err
    code, _, err = run("distill", tmp_path / "moe", tmp_path / "moe", *training, "--skip", "*.experts.*")
    assert code == 0, err
