"""The evaluation: scores against the model's own probabilities, lm-eval's errors, resuming, and bad input."""

import json
import math
import shutil
import sys
from pathlib import Path

import pytest
import torch
from task_files import NAMES, write_tasks

from spikebrain import AdaptiveThreshold, IntegrateAndFire, SpikeSettings, jobs, measure_perplexity, save, to_spiking
from spikebrain.analysis.perplexity import split_windows
from spikebrain.errors import ActivationError, InputError
from spikebrain.jobs import eval_run
from spikebrain.jobs.eval_journal import Journal
from spikebrain.lazy import install_command

needs_lm_eval = pytest.mark.skipif("not __import__('importlib').util.find_spec('lm_eval')", reason="lm-eval is absent")


@pytest.fixture
def data(tmp_path):
    return write_tasks(tmp_path / "data")


def settings(model_folder, **options):
    return jobs.EvalSettings(str(model_folder), device="cpu", **options)


def all_tasks(model_folder, data, **options):
    return settings(model_folder, tasks=NAMES, data=data, k=(2.0, 3.0), batch_size=4, **options)


def log_probability(model, tokenizer, context, answer):
    ids = torch.tensor(tokenizer.encode(context + answer))
    with torch.inference_mode():
        log_p = model(ids[None]).logits[0].double().log_softmax(-1)
    start = len(tokenizer.encode(context))
    return sum(float(log_p[i - 1, ids[i]]) for i in range(start, len(ids)))


@pytest.mark.slow
@needs_lm_eval
def test_scores_are_the_models(model_folder, data, tiny_llama, tokenizer, text, tmp_path):
    found = jobs.evaluate(all_tasks(model_folder, data, text=(text,), context=16), tmp_path / "out")
    assert list(found["stages"]) == ["float", "int8", "k=2", "k=3"]
    assert json.loads((tmp_path / "out" / "eval.json").read_text()) == json.loads(json.dumps(found))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"eval.html", "eval.json"}
    for stage, model in [("float", tiny_llama), ("k=3", to_spiking(tiny_llama))]:
        rows = {task: stages[stage] for task, stages in found["samples"].items()}
        by_hand = [
            [log_probability(model, tokenizer, f"Ann told {i} Bo. {who}", answer) for who in ("Ann", "Bo")]
            for i, answer in enumerate([" ran.", ".", " slept.", " sat.", " won."])
        ]
        assert rows["winogrande"]["loglikelihoods"] == [pytest.approx(pair, abs=1e-3) for pair in by_hand]
        assert rows["winogrande"]["acc"] == [float((a < b) == i % 2) for i, (a, b) in enumerate(by_hand)]
        endings = ("is up.", "is off.", "has a cube.", "fell.")
        for i in range(5):
            mine = [log_probability(model, tokenizer, f"Roof: He is {i}", f" {ending}") for ending in endings]
            per_character = [value / len(ending) for value, ending in zip(mine, endings, strict=True)]
            assert rows["hellaswag"]["acc"][i] == (mine.index(max(mine)) == i % 4)
            assert rows["hellaswag"]["acc_norm"][i] == (per_character.index(max(per_character)) == i % 4)
            last = log_probability(model, tokenizer, f"He saw {i} and", " ran")
            assert rows["lambada"]["perplexity"][i] == pytest.approx(last, abs=1e-3)
    figures = found["tasks"]["lambada"]["metrics"]["perplexity"]["float"]
    values = found["samples"]["lambada"]["float"]["perplexity"]
    assert figures["value"] == pytest.approx(math.exp(-sum(values) / 5))
    ids = torch.tensor(tokenizer.encode(text.read_text()))
    perplexity = found["texts"][str(text)]["perplexity"]
    assert perplexity["float"]["value"] == pytest.approx(measure_perplexity(tiny_llama, split_windows(ids, 16)))
    ratio = perplexity["k=2"]["value"] / perplexity["float"]["value"]
    assert perplexity["k=2"]["difference"] == pytest.approx(ratio - 1)


@pytest.mark.slow
@needs_lm_eval
def test_figures_are_lm_evals_and_differences_are_paired(model_folder, data, tmp_path):
    from lm_eval.api.metrics import mean_stderr  # noqa: PLC0415

    found = jobs.evaluate(all_tasks(model_folder, data), tmp_path / "out")
    for task in NAMES:
        for metric, stages in found["tasks"][task]["metrics"].items():
            if metric == "perplexity":
                continue
            samples = {stage: found["samples"][task][stage][metric] for stage in stages}
            for stage, figures in stages.items():
                assert figures["value"] == pytest.approx(sum(samples[stage]) / 5)
                assert figures["stderr"] == pytest.approx(mean_stderr(samples[stage]))
                if stage != "float":
                    pairs = [a - b for a, b in zip(samples[stage], samples["float"], strict=True)]
                    assert figures["difference"] == pytest.approx(sum(pairs) / 5)
                    assert figures["difference_stderr"] == pytest.approx(mean_stderr(pairs))
    chosen = [found["tasks"][task]["metrics"]["acc_norm" if task == "hellaswag" else "acc"]["k=2"] for task in NAMES]
    assert found["average"]["k=2"]["value"] == pytest.approx(sum(row["value"] for row in chosen) / 5)
    assert found["average"]["k=2"]["stderr"] == pytest.approx(math.hypot(*(row["stderr"] for row in chosen)) / 5)


@pytest.mark.slow
@needs_lm_eval
def test_a_killed_run_goes_on_where_it_stopped(model_folder, data, text, tmp_path, monkeypatch):
    whole = settings(
        model_folder, tasks=("piqa", "lambada"), data=data, k=(2.0, 3.0), text=(text,), context=64, layer_tokens=9
    )
    monkeypatch.setattr(eval_run, "_DOCUMENTS", 2)
    expected = jobs.evaluate(whole, tmp_path / "once")
    from spikebrain.jobs.eval_scoring import Scorer  # noqa: PLC0415

    calls, plain = [], Scorer.score

    def score(self, task, documents):
        if len(calls) % 8 == 7:
            calls.append("killed")
            raise KeyboardInterrupt
        calls.append((task, len(documents)))
        return plain(self, task, documents)

    monkeypatch.setattr(Scorer, "score", score)
    out, interruptions = tmp_path / "out", 0
    while True:
        try:
            found = jobs.evaluate(whole, out)
            break
        except KeyboardInterrupt:
            interruptions += 1
            journal = out / "unfinished.jsonl"
            with journal.open("ab") as file:
                file.write(b"\n" + journal.read_bytes().split(b"\n")[-1][:50])  # as one that was killed while it wrote
    assert interruptions == 3
    assert len(calls) - interruptions == 4 * 2 * 3  # stages x tasks x portions of 2, 2 and 1: nothing ran twice
    for name in ("texts", "tasks", "average", "layers", "samples", "window_nlls"):
        assert found[name] == expected[name]
    assert not journal.exists()


def test_parts_of_another_job_stay(tmp_path):
    (first := Journal.of_job(tmp_path, {"k": 2})).add((("piqa", 0), [1.5]), (("piqa", 1), [2.5]))
    second = Journal.of_job(tmp_path, {"k": 3})
    assert (second.parts, len(second.others)) == ({}, 2)
    second.add((("piqa", 0), [7.0]))
    assert Journal.of_job(tmp_path, {"k": 3}).parts == {("piqa", 0): [7.0]}
    second.remove()
    again = Journal.of_job(tmp_path, {"k": 2})
    assert (again.parts, again.others) == (first.parts, [])
    again.remove()
    assert not again.path.exists()


@pytest.mark.slow
@needs_lm_eval
def test_a_faulty_task_leaves_the_others(run, model_folder, data, tmp_path):
    labels = data / "piqa" / "valid-labels.lst"
    good = labels.read_text()
    labels.write_text(good.replace("1", "7", 1))
    (data / "lambada" / "lambada_openai.jsonl").write_text('{"context": "' + "x" * 80 + '", "continuation": "a"}\n')
    out = tmp_path / "out"
    where = ("--data", data, "--out", out, "--device", "cpu")
    code, _, err = run("eval", model_folder, "--tasks", "piqa,arc_easy,lambada", *where)
    assert code == 2
    assert "valid-labels.lst, line 2: this line: expected a label from 0 to 1, got 7" in err
    assert "expected at most the model's 64 positions, got 81 tokens" in err
    found = json.loads((out / "eval.json").read_text())
    assert found["tasks"].keys() == {"arc_easy"}
    assert found["faults"].keys() == {"piqa", "lambada"}
    labels.write_text(good)
    code, shown, err = run("eval", model_folder, "--tasks", "piqa,arc_easy", *where)
    assert code == 0
    assert "Going on with the run that was interrupted: 3 parts were done" in err
    assert "piqa, acc_norm %" in shown
    assert "SpikingBrain-7B-W8ASpike" in shown


@pytest.mark.slow
@needs_lm_eval
def test_a_model_that_gives_nan_is_said(tiny_llama, tokenizer):
    from spikebrain.jobs.eval_scoring import Scorer  # noqa: PLC0415

    with torch.no_grad():
        tiny_llama.model.norm.weight.fill_(math.nan)
    with pytest.raises(ActivationError, match="lambada: expected finite log-likelihoods"):
        Scorer(tiny_llama, tokenizer, 2).score("lambada", [{"query": "He", "answer": " ran"}])


@needs_lm_eval
def test_scoring_leaves_the_model_as_it_is(tiny_llama, tokenizer):
    """lm-eval ties weights anew, also of a head on spikes."""
    from spikebrain.jobs.eval_scoring import Scorer  # noqa: PLC0415

    spiking = to_spiking(tiny_llama, SpikeSettings(include_head=True))
    ids = torch.arange(9)[None]
    with torch.inference_mode():
        before = spiking(ids).logits
        Scorer(spiking, tokenizer, 2)
        assert torch.equal(spiking(ids).logits, before)


@pytest.mark.slow
def test_a_spiking_model_is_compared_with_its_own_weights(tiny_llama, tokenizer, text, tmp_path):
    save(to_spiking(tiny_llama), tmp_path / "spikes.safetensors", tokenizer=tokenizer)
    found = jobs.evaluate(settings(tmp_path / "spikes.safetensors", text=(text,), context=16), tmp_path / "out")
    assert list(found["stages"]) == ["int8", "spiking"]
    assert "difference" in found["texts"][str(text)]["perplexity"]["spiking"]


@pytest.mark.slow
def test_any_neuron(run, model_folder, tiny_llama, tokenizer, text, tmp_path):
    """A neuron has its k in its stages if it has one; another neuron is another evaluation."""
    out = tmp_path / "out"
    base = ("--text", text, "--num-tokens", 32, "--context", 16, "--out", out, "--device", "cpu")
    code, shown, err = run("eval", model_folder, *base, "--neuron", "integrate-and-fire", "--layer-tokens", 8)
    assert code == 0, err
    found = json.loads((out / "eval.json").read_text())
    assert list(found["stages"]) == ["float", "int8", "spiking"] == [*found["layers"], *found["stages"]][-3:]
    neuron = repr(IntegrateAndFire())
    assert found["stages"]["spiking"] == f"int8 weights, spike trains of {neuron}"
    assert (found["settings"]["neuron"], found["settings"]["k"]) == ([neuron], [None])
    assert neuron in (out / "eval.html").read_text()
    assert neuron in shown
    assert "--neuron integrate-and-fire" in shown.splitlines()[-1]  # what to try next
    ids = torch.tensor(tokenizer.encode(text.read_text()))[:32]
    expected = measure_perplexity(
        to_spiking(tiny_llama, SpikeSettings(neuron="integrate-and-fire")), split_windows(ids, 16)
    )
    assert found["texts"][str(text)]["perplexity"]["spiking"]["value"] == pytest.approx(expected)
    code, _, err = run("eval", model_folder, *base, "--neuron", "integrate-and-fire", "--k", "2,3")
    assert code == 2
    assert f"--k: has no effect on --neuron {neuron}, which has none. Leave out --k." in err
    code, _, err = run("eval", model_folder, *base, "--neuron", "leaky")
    assert code == 2
    assert "--neuron: expected one of adaptive-threshold, " in err


def test_stages_of_a_neuron():
    def stages(**options):
        chosen = jobs.EvalSettings(text=(Path("a"),), **options)
        return [(k, chosen.spike_settings(k).neuron) for k in chosen.each_k()]

    assert stages() == stages(neuron="adaptive-threshold") == stages(k=(3.0,)) == [(3.0, AdaptiveThreshold())]
    assert stages(neuron=AdaptiveThreshold(k=4.0)) == [(4.0, AdaptiveThreshold(k=4.0))]
    neuron = AdaptiveThreshold(ceiling=9.0)
    assert stages(neuron=neuron, k=(2.0, {"*down_proj": 4.0})) == [
        (2.0, AdaptiveThreshold(k=2.0, ceiling=9.0)),
        ({"*down_proj": 4.0}, {"*down_proj": AdaptiveThreshold(k=4.0, ceiling=9.0), "*": neuron}),
    ]
    assert stages(neuron="integrate-and-fire") == [(None, IntegrateAndFire())]


@pytest.mark.slow
def test_another_neuron_does_not_go_on(model_folder, text, tmp_path, monkeypatch):
    """What was finished with one neuron does not count for another."""

    def interrupt(*arguments):
        raise KeyboardInterrupt

    short = {"text": (text,), "num_tokens": 32, "context": 16}
    with monkeypatch.context() as patched:
        patched.setattr(eval_run, "layer_errors", interrupt)
        with pytest.raises(KeyboardInterrupt):
            jobs.evaluate(settings(model_folder, **short, layer_tokens=8), tmp_path / "out")
    lines = (tmp_path / "out" / "unfinished.jsonl").read_bytes().count(b"\n")
    own = jobs.evaluate(settings(model_folder, **short, neuron=AdaptiveThreshold(ceiling=0.01)), tmp_path / "out")
    assert (tmp_path / "out" / "unfinished.jsonl").read_bytes().count(b"\n") == lines
    again = jobs.evaluate(settings(model_folder, **short), tmp_path / "out")
    values = [found["texts"][str(text)]["perplexity"] for found in (own, again)]
    assert values[0]["float"] == values[1]["float"]
    assert values[0]["k=3"]["value"] != values[1]["k=3"]["value"]


@pytest.mark.slow
def test_worst_layers_are_named(run, model_folder, text, tmp_path):
    command = ("eval", model_folder, "--text", text, "--context", 16, "--layer-tokens", 16, "--k", "2,4")
    code, shown, _ = run(*command, "--out", tmp_path / "out", "--device", "cpu")
    assert code == 0
    found = json.loads((tmp_path / "out" / "eval.json").read_text())["layers"]
    assert found.keys() == {"k=2", "k=4"}
    worst = max(found["k=2"], key=lambda layer: layer["kl_nats"])["name"]
    assert f"\n{worst}" in shown


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "^tasks: expected at least one task or text"),
        ({"tasks": ("piqa", "boolq")}, "^tasks: expected some of winogrande, .*; got 'boolq'"),
        ({"tasks": ("piqa", "piqa")}, "^tasks: expected each value once, got 'piqa' twice"),
        ({"tasks": ("piqa",)}, "^data: expected the folder with the files of the tasks, got none"),
        ({"text": ("a",), "k": ()}, "^k: expected at least one value"),
        ({"text": ("a",), "k": (2.0, 0.0)}, "k: expected a finite number > 0"),
        ({"text": ("a",), "neuron": "leaky"}, "^neuron: expected .* names adaptive-threshold, .*; got 'leaky'"),
        ({"text": ("a",), "neuron": "integrate-and-fire", "k": (2.0,)}, "^k: has no effect on `neuron` IntegrateAnd"),
        ({"text": ("a",), "neuron": AdaptiveThreshold(4.0), "k": (2.0,)}, "^k: expected one k, got 2.0 beside"),
        ({"text": ("a",), "k": (2.0, 2.0)}, "^k: expected each value once, got '2.0' twice"),
        ({"text": ("a",), "context": 1}, "^context: expected an integer >= 2, got 1"),
        ({"text": ("a",), "limit": 3}, "^limit: has no effect without `tasks`"),
        ({"tasks": ("piqa",), "data": ".", "context": 8}, "^context: has no effect without `text`"),
    ],
)
def test_bad_settings(options, message, as_users):
    with pytest.raises(InputError, match=message):
        jobs.EvalSettings(**options)


def test_what_is_missing_is_said(run, model_folder, data, text, tmp_path, monkeypatch):
    out = ("--out", tmp_path / "out", "--device", "cpu")
    assert (
        "'--k': expected a number such as 3, or PATTERN=NUMBER such as *down_proj=4; got 'x'."
        in run("eval", model_folder, "--text", text, "--k", "2,x", *out)[2]
    )
    shutil.copytree(model_folder, tmp_path / "mute")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "mute" / name).unlink()
    assert "expected a model with a tokenizer" in run("eval", tmp_path / "mute", "--text", text, *out)[2]
    monkeypatch.setitem(sys.modules, "lm_eval.evaluator", None)  # what Python does with a module that is not there
    code, _, err = run("eval", model_folder, "--tasks", "piqa", "--data", data, *out)
    assert code == 2
    assert "--tasks: needs lm_eval.evaluator, which cannot be imported" in err
    assert install_command("eval") in err
