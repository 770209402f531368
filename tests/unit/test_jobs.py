"""Jobs from Python: they print nothing, need no console, and name arguments where the command line names options."""

import ast
from pathlib import Path

import pytest

from spikebrain import jobs
from spikebrain.cli.contents import command_names, function_of
from spikebrain.cli.messages import in_options, option_names
from spikebrain.errors import InputError
from spikebrain.models.training import RECIPES, Recipe

ROOT = Path(__file__).parents[2]


class Listener:
    """Remembers what a job says."""

    def __init__(self):
        self.said, self.bars = [], {}

    def say(self, text):
        self.said.append(text)

    def bar(self, title, total, unit):
        self.bars[title] = [0, total, unit]

        def advance(done):
            self.bars[title][0] += done

        return advance


@pytest.mark.parametrize("file", sorted((ROOT / "jobs").glob("*.py")), ids=lambda file: file.name)
def test_jobs_know_no_console(file):
    for node in ast.walk(ast.parse(file.read_text())):
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        assert not any(module.split(".")[0] in ("rich", "typer") for module in modules)
        assert not (isinstance(node, ast.Name) and node.id == "print")


@pytest.mark.parametrize("room", ["analysis", "backends", "chip", "coding", "energy", "jobs", "models", "neuro"])
def test_messages_of_the_library_name_no_options(room):
    """Text with --option in it: messages and docstrings alike. pip's own arguments are no message."""
    for file in sorted((ROOT / room).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and file.name != "smollm2.py":
                words = node.value.replace("(", " ").split()
                options = [word for word in words if word.startswith("--") and word.strip("-")]  # not a table's rule
                assert not options, f"{file}:{node.lineno}"


def test_every_module_of_commands_is_a_command():
    assert {"report", "generate"} <= {*command_names()}
    assert all(callable(function_of(name)) for name in command_names())


def test_arguments_become_options():
    assert option_names(function_of("doctor")) == {}
    options = option_names(function_of("energy"))
    assert (options["source"], options["reads_per"], options["k"]) == ("SOURCE", "--reads-per", "--k")
    for message, expected in [
        ("DigitalEnergy.reads_per: expected 1", "--reads-per: expected 1"),
        ("text a: b.txt: cannot be read", "--text a: b.txt: cannot be read"),
        ("out: is full. Lower `num_tokens` or `context`.", "--out: is full. Lower --num-tokens or `context`."),
        # What only looks like one.
        ("A text of 3: k: no", "A text of 3: k: no"),
        ("text too short", "text too short"),
        ("model.layers.1.k: expected finite", "model.layers.1.k: expected finite"),
        ("kernel: k", "kernel: k"),
    ]:
        assert in_options(message, options) == expected
    assert in_options("too large (stream=True)", {"stream": "--stream"}) == "too large (--stream)"


@pytest.mark.slow
def test_report_tells_its_progress_and_prints_nothing(model_folder, text, tmp_path, capsys):
    listener = Listener()
    settings = jobs.ReportSettings(str(model_folder), text, num_tokens=64, context=32, device="cpu")
    found = jobs.report(settings, tmp_path / "out", listener)
    assert found["text"]["num_tokens"] == 64
    assert listener.bars == {title: [64, 64, "tokens"] for title in ("float", "INT8 weights", "spiking")}
    assert listener.said == [f"Loading {model_folder}"]
    assert capsys.readouterr() == ("", "")


@pytest.mark.slow
def test_from_a_transformer_to_text_in_python(model_folder, text, tmp_path, capsys):
    settings = jobs.ConvertSettings(str(model_folder), window=16, calibrate=text, spiking=None, device="cpu")
    listener = Listener()
    assert jobs.convert(settings, tmp_path / "a", listener).model.settings.window == 16
    assert {unit for _, _, unit in listener.bars.values()} == {"parts"}
    run = jobs.DistillRun(
        str(model_folder), tmp_path / "a", (text,), attention_steps=0, logits_steps=2, context=32, device="cpu"
    )
    trained = jobs.distill(run, tmp_path / "b")
    assert [stage.objective for stage in trained.settings.stages] == ["logits"]
    assert trained.settings.stages[0].learning_rate == pytest.approx(1e-4)
    assert len(trained.result.losses) == 2
    pieces = []
    written = jobs.generate(
        jobs.GenerateSettings(tmp_path / "b", "A neuron", max_new_tokens=4, device="cpu"), pieces.append
    )
    assert written.num_new_tokens == len(written.ids) - 8 == 4
    assert "".join(pieces).endswith(written.text)
    assert written.spikes is None
    assert written.cache_bytes > 0
    # The same seed draws the same tokens.
    drawn = [
        jobs.generate(jobs.GenerateSettings(tmp_path / "b", "A", 8, temperature=1.0, device="cpu", seed=seed)).text
        for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert capsys.readouterr() == ("", "")


def test_recipes():
    recipe = Recipe.for_device("cpu", context=64, learning_rate=None)
    assert (recipe.context, recipe.learning_rate) == (64, RECIPES["cpu"].learning_rate)
    settings = recipe.settings(attention_steps=3, seed=5)
    assert [(stage.objective, stage.steps, stage.trainable) for stage in settings.stages] == [
        ("attention", 3, "attention"),
        ("logits", 1, "all"),
    ]
    assert [stage.learning_rate for stage in settings.stages] == pytest.approx([1e-3, 1e-4])
    assert settings.seed == 5
    assert recipe.shares(settings) == (0.5, 0.5)
    alone = recipe.settings(attention_steps=0)
    assert recipe.shares(alone) == (1.0,)
    assert Recipe.for_device("cuda").shares(settings) == pytest.approx((0.1, 0.9))
    for arguments, message in [
        ({"attention_steps": -1}, "attention_steps: expected an integer >= 0"),
        ({"attention_steps": 0, "logits_steps": 0}, "got 0 for both"),
    ]:
        with pytest.raises(InputError, match=message):
            recipe.settings(**arguments)
    with pytest.raises(InputError, match=r"Recipe\.logits_rate: expected a finite number > 0, got 0"):
        Recipe.for_device("cpu", logits_rate=0.0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({}, "text: expected a UTF-8 file to train on, `sample`, or both"),
        ({"sample": 0}, "sample: expected an integer >= 1, got 0"),
        ({"sample": 5, "minutes": 0.0}, "minutes: expected a finite number > 0, got 0"),
    ],
)
def test_training_needs_a_text_and_time(tmp_path, wrong, message):
    with pytest.raises(InputError, match=message):
        jobs.DistillRun("teacher", tmp_path, **wrong)
