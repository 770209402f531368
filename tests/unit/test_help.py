"""Help by purpose, completion, and what a help text must not wait for."""

import json
import os
import re
import subprocess
import sys
import time
import warnings
from typing import ClassVar

import pytest
import torch
import typer
from safetensors.torch import save_file
from transformers.utils import logging
from typer.testing import CliRunner

from spikebrain.backends import BACKENDS
from spikebrain.chip import MAPPINGS, ORDERS, chip_names
from spikebrain.cli import complete
from spikebrain.cli.app import app
from spikebrain.cli.contents import command_names, function_of, module_of
from spikebrain.cli.hush import others_silent
from spikebrain.cli.panels import COMMANDS, OPTIONS
from spikebrain.cli.progress import Screen
from spikebrain.coding import ENCODERS
from spikebrain.energy import table_names
from spikebrain.neuro import NEURONS


def shown(*typed):
    return CliRunner().invoke(app, [*typed, "--help"]).output


def test_commands_are_listed_by_purpose():
    lines = shown().splitlines()
    titles = [line.removesuffix(":") for line in lines if line in [f"{title}:" for title in COMMANDS]]
    assert titles == [title for title in COMMANDS if title in titles]
    for name in command_names():
        panel = module_of(name).PANEL
        assert panel in COMMANDS
        at = next(i for i, line in enumerate(lines) if line.startswith(f"  {name} "))
        assert [line for line in lines[:at] if line.endswith(":")][-1] == f"{panel}:"
        first = function_of(name).__doc__.splitlines()[0]
        assert first.endswith(".")
        assert len(first) <= 80


@pytest.mark.parametrize("name", command_names())
def test_options_are_listed_by_what_they_are_about(name):
    command = typer.main.get_command(app).commands[name]  # pyright: ignore[reportAttributeAccessIssue]
    panels = {param.name: getattr(param, "rich_help_panel", None) for param in command.params}
    assert {name for name, panel in panels.items() if panel not in OPTIONS} <= {"help"}
    assert panels["as_json"] == panels["quiet"] == "Output"
    text = shown(name)
    assert "[default: (" not in text
    assert "[default: none]" not in text
    titles = [line.removesuffix(":") for line in text.splitlines() if line.removesuffix(":") in OPTIONS]
    assert titles == [title for title in OPTIONS if title in titles]
    for param in command.params:
        # Older versions of Typer write arguments in capitals, and those that may be missing in brackets.
        assert any(f"{option} " in text.lower().replace("]", " ") for option in param.opts), param.opts


def test_a_wrong_command_says_what_is_like_it():
    found = CliRunner().invoke(app, ["reprot"])
    assert found.exit_code == 2
    assert "report" in found.output


@pytest.mark.slow
def test_help_takes_a_fraction_of_an_import_of_pytorch():
    def seconds(*words):
        began = time.perf_counter()
        subprocess.run([sys.executable, *words], capture_output=True, check=True)
        return time.perf_counter() - began

    torch_s = min(seconds("-c", "import torch") for _ in range(2))
    assert min(seconds("-m", "spikebrain.cli", "--help") for _ in range(3)) < torch_s / 2
    assert min(seconds("-c", "import spikebrain") for _ in range(3)) < torch_s / 2


def test_completed_words_are_those_that_can_be_used():
    for completes, names in [
        (complete.chips, chip_names()),
        (complete.tables, table_names()),
        (complete.encoders, ENCODERS),
        (complete.neurons, NEURONS),
        (complete.backends, BACKENDS),
        (complete.mappings, MAPPINGS),
        (complete.orders, ORDERS),
    ]:
        assert {*names} <= {*completes("")}
    assert complete.encoders("bit") == ["bitwise", "bitwise-bidirectional"]
    assert complete.words("cpu", "cuda", "auto")("c") == ["cpu", "cuda"]


def test_models_and_layers_are_completed_from_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small" / "one").mkdir(parents=True)
    (tmp_path / "notes.txt").write_text("")
    assert complete.models("") == ["small", "smollm2"]
    assert complete.models("small/") == ["small/one"]
    assert complete.models("none/") == []
    names = {f"model.layers.{i}.mlp.up_proj.weight": torch.zeros(1) for i in range(3)}
    save_file({**names, "model.norm.bias": torch.zeros(1)}, tmp_path / "small" / "model.safetensors")

    class Context:
        params: ClassVar = {"model": "small"}

    assert complete.layers_of(Context, "") == ["*up_proj", "model.layers.*.mlp.up_proj"]
    (tmp_path / "small" / "model.safetensors").write_bytes(b"\xff" * 20)
    assert complete.layers_of(Context, "") == []
    (tmp_path / "small" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a.q.weight": "x"}}))
    assert complete.layers_of(Context, "") == ["*q", "a.q"]
    Context.params = {}
    assert complete.layers_of(Context, "") == []


@pytest.mark.slow
def test_a_shell_is_told_words():
    asked = {"_SPIKEBRAIN_COMPLETE": "complete_bash", "COMP_WORDS": "spikebrain energy --table jou", "COMP_CWORD": "3"}
    code = "import sys; sys.argv = ['spikebrain']; from spikebrain.cli import main; main()"
    words = [sys.executable, "-c", code]
    run = subprocess.run(words, capture_output=True, text=True, check=False, env={**os.environ, **asked})
    assert run.stdout.split() == ["jouppi_7nm"]


# What a command shows while it runs


def test_long_work_tells_so_where_no_bar_can_be_drawn(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    screen = Screen(None)  # pyright: ignore[reportArgumentType]
    short, long = screen.bar("short", 2, "tokens"), screen.bar("spiking", 3000, "tokens")
    short(2)
    for second in (10, 29, 31, 45, 70):
        now[0] = second
        long(500)
    now[0] = 75
    long(500)
    assert capsys.readouterr().err.splitlines() == [
        "spiking: 1,500/3,000 tokens, 31 s",
        "spiking: 2,500/3,000 tokens, 70 s",
        "spiking: 3,000/3,000 tokens, 75 s",
    ]
    screen.say("done")
    assert capsys.readouterr() == ("", "done\n")


def test_quiet_is_quiet(capsys):
    screen = Screen(None, quiet=True)  # pyright: ignore[reportArgumentType]
    screen.say("a")
    screen.write("b")
    screen.bar("c", 1, "d")(1)
    Screen(None, streams=False).write("e")  # pyright: ignore[reportArgumentType]
    assert capsys.readouterr() == ("", "")


def test_warnings_of_others_stay_off_and_ours_are_remarks(monkeypatch):
    monkeypatch.setattr(sys, "warnoptions", [])
    before, said = logging.get_verbosity(), []
    with others_silent(said.append):
        warnings.simplefilter("always")
        warnings.warn_explicit("others", UserWarning, "/elsewhere/file.py", 1)
        inside = complete._PACKAGE / ".venv" / "lib" / "site-packages" / "file.py"
        warnings.warn_explicit("others", UserWarning, str(inside), 1)
        warnings.warn_explicit("ours", UserWarning, complete.__file__, 1)
        assert logging.get_verbosity() == logging.ERROR
        assert not logging.is_progress_bar_enabled()
    assert said == ["ours"]
    assert logging.get_verbosity() == before


def test_no_word_of_the_paper_only_stands_on_a_screen():
    """Words that newcomers stumbled over; code names and equations are for files and docstrings."""
    root = complete._PACKAGE
    for path in [*(root / "cli").rglob("*.py"), root / "energy" / "waterfall.py"]:
        for text in re.findall(r'"[^"\n]*"', path.read_text().replace('"""', "")):
            assert not re.search(r"eq\. 24|even at|arithmetic alone|Of the |As many steps|Taken for granted", text), (
                path
            )
