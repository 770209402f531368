"""Every command prints its answer in three ways, and ends with a command that works."""

import json
import math
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from spikebrain.chip import load_description
from spikebrain.chip.description import CHIPS
from spikebrain.cli.answer import Answer, print_answer
from spikebrain.cli.contents import command_names, function_of
from spikebrain.cli.messages import option_names
from spikebrain.cli.typed import Typed
from spikebrain.cli.words import as_ratio, less_or_more, unused
from spikebrain.energy import load_table
from spikebrain.energy.table import TABLES
from spikebrain.files import finite, read_json, write_json


def no_constants(name):
    raise AssertionError(f"{name} is no JSON")


def strict(text):
    return json.loads(text, parse_constant=no_constants)


def run_next(run, out):
    """Run the command that a command ends with."""
    *_, figure, last = out.splitlines()
    assert figure.endswith(".")
    line, _, why = last.removeprefix("Next: ").partition("   # ")
    assert last.startswith("Next: ")
    assert why
    words = shlex.split(line)
    assert words[0] == "spikebrain"
    return run(*words[1:])


def test_the_three_ways(capsys):
    answer = Answer(
        "Half.", {"share": 0.5, "rest": math.nan}, lambda console: console.print("table"), next=("a", "b c"), why="more"
    )
    print_answer(answer, as_json=False, quiet=False)
    assert capsys.readouterr().out == "table\nHalf.\nNext: a 'b c'   # more\n"
    print_answer(answer, as_json=False, quiet=True)
    assert capsys.readouterr().out == "Half.\n"
    for quiet in (False, True):
        print_answer(answer, as_json=True, quiet=quiet)
        assert strict(capsys.readouterr().out) == {"share": 0.5, "rest": None}


def test_files_hold_no_constants_that_json_lacks(tmp_path):
    write_json(tmp_path / "a.json", {"a": [math.inf, (1.5, -math.inf)], "b": "NaN"})
    assert (
        strict((tmp_path / "a.json").read_text())
        == read_json(tmp_path / "a.json")
        == {"a": [None, [1.5, None]], "b": "NaN"}
    )
    assert finite([{"c": True}]) == [{"c": True}]


def test_a_line_of_a_pipe_is_never_broken(capsys):
    answer = Answer("x " * 300 + "end.", {}, lambda console: console.print("y " * 299 + "y"))
    print_answer(answer, as_json=False, quiet=False)
    assert [len(line) for line in capsys.readouterr().out.splitlines()] == [599, 604]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize(
    "ways",
    [
        pytest.param("as_json=True, quiet=False", marks=pytest.mark.slow),  # imports PyTorch
        "as_json=False, quiet=True",
        "as_json=0, quiet=0",
    ],
)
def test_standard_output_on_a_full_disk(ways):
    script = f"""
from spikebrain.cli.answer import Answer, print_answer
from spikebrain.errors import InputError
try:
    print_answer(Answer("x" * 9000, dict(a="x" * 9000), lambda console: console.print("y")), {ways})
except InputError as error:
    raise SystemExit(str(error))
"""
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-c", script]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "standard output: cannot be written: No space left on device. Send it to another place.\n"


@pytest.mark.parametrize("name", command_names())
def test_every_command_can_be_asked_for_its_own_words(name):
    names = option_names(function_of(name))
    assert not {"--json", "--quiet", "-q"} & {*names.values()}


@pytest.mark.slow
def test_a_report_in_three_ways_and_what_follows(run, model_folder, text, tmp_path):
    short = ("report", model_folder, "--text", text, "--num-tokens", 32, "--context", 16, "--device", "cpu")
    out = tmp_path / "my report"
    code, said, _ = run(*short, "--out", out)
    assert code == 0
    assert said.splitlines()[-2].startswith("On spikes: perplexity ")
    assert said.splitlines()[-1].startswith(f"Next: spikebrain energy '{out}'")
    found = read_json(out / "report.json")
    assert "% over float)" in said
    assert f"{found['spikes']['mean_spikes']:.2f} spikes per channel and token" in said
    code, shown, _ = run_next(run, said)
    assert code == 0
    assert shown.splitlines()[-2].startswith("A token costs ")
    code, shown, _ = run_next(run, shown)  # another table
    assert code == 0
    code, shown, _ = run_next(run, shown)  # its assumptions
    assert code == 0
    assert "Assumptions:\n- " in shown
    assert run_next(run, shown)[0] == 0
    code, quiet, err = run(*short, "--out", out, "--quiet")
    assert (code, err) == (0, "")
    assert quiet == said.splitlines()[-2] + "\n"
    code, shown, err = run(*short, "--out", out, "--json")
    assert "Loading" in err
    shown, found = strict(shown), read_json(out / "report.json")
    assert shown == found


@pytest.mark.slow
def test_from_a_model_to_text_by_the_commands_that_follow(run, model_folder, text, tmp_path):
    code, said, _ = run("convert", model_folder, "--layout", "gla,swa", "--window", 16, "--out", tmp_path / "it")
    assert code == 0
    assert f"distill {model_folder} {tmp_path / 'it'} --sample 20000 --out {tmp_path / 'it-trained'}" in said
    train = ("distill", model_folder, tmp_path / "it", "--text", text, "--context", 32, "--device", "cpu")
    train += ("--attention-steps", 1, "--logits-steps", 1, "--out", tmp_path / "it-trained")
    code, said, err = run(*train)
    assert code == 0, err
    code, said, err = run_next(run, said)  # generate
    assert code == 0, err
    assert said.splitlines()[-2].startswith("Wrote ")
    code, said, err = run_next(run, said)  # convert --spiking
    assert code == 0, err
    spiking = tmp_path / "it-trained-spiking"
    assert said.splitlines()[-1].startswith(f"Next: spikebrain report {spiking}")
    code, shown, _ = run("generate", spiking, "A neuron", "--max-new-tokens", 3, "--json")
    found = strict(shown)
    assert found["prompt"] + found["text"] == run("generate", spiking, "A neuron", "--max-new-tokens", 3, "-q")[1][:-1]
    assert found["spikes"]["per_channel"] > 0
    assert len(found["token_ids"]) == 8 + found["num_new_tokens"]
    code, shown, _ = run(
        "convert", tmp_path / "it-trained", "--spiking", "as-described", "--out", tmp_path / "b", "--json"
    )
    assert strict(shown)["spiking"] == "as-described"


def test_doctor_and_export(run, model_folder, text, tmp_path, as_users, capsys):
    code, said, _ = run("doctor")
    assert code == 0
    assert said.splitlines()[-2] == "Layers run on cpu: by cpu for 1 token, by cpu for 512 tokens."
    assert set(strict(run("doctor", "--json")[1])) >= {"versions", "devices", "extras"}
    short = ("--text", text, "--num-tokens", 16, "--device", "cpu")
    code, said, _ = run("export", model_folder, *short, "--out", tmp_path / "it.npz")
    assert code == 0
    assert said.splitlines()[-2] == "Exported a recording: 14 spiking layers, 16 tokens."
    words = shlex.split(said.splitlines()[-1].removeprefix("Next: ").partition("   # ")[0])
    assert words[:2] == ["python", "-c"]
    exec(words[2])
    assert capsys.readouterr().out.startswith("Recording of LlamaForCausalLM: 14 layers, 16 tokens\n")
    pytest.importorskip("perfetto", reason="needs perfetto, of the extra timeline")
    _, said, _ = run("export", model_folder, *short, "--out", tmp_path / "it.pftrace")
    assert said.splitlines()[-1] == "Next: python -m webbrowser https://ui.perfetto.dev   # open the file there"
    assert strict(run("export", model_folder, *short, "--out", tmp_path / "b.npz", "--json")[1])["num_tokens"] == 16


@pytest.mark.slow
def test_eval_and_sweep(run, model_folder, text, tmp_path):
    pytest.importorskip("optuna", reason="pip install 'spikebrain[sweep]'")
    typed = ("eval", model_folder, "--text", text, "--context", 16, "--device", "cpu", "--num-tokens", 64)
    k = ("--k", "2,3", "--k", "*down_proj=4,*=3")
    code, said, err = run(*typed, *k, "--out", tmp_path / "e")
    assert code == 0, err
    found = read_json(tmp_path / "e" / "eval.json")
    assert [*found["stages"]] == ["float", "int8", "k=2", "k=3", "k=*down_proj=4,*=3"]
    assert found["settings"]["k"] == [2.0, 3.0, {"*down_proj": 4.0, "*": 3.0}]
    assert said.splitlines()[-1].startswith("Next: spikebrain eval ")
    assert "--layer-tokens 256" in said
    assert said.splitlines()[-2].startswith("On spikes (k=*down_proj=4,*=3), against float: ")
    sweep = ("sweep", "--model", model_folder, "--text", text, "--num-tokens", 32, "--context", 16, "--device", "cpu")
    code, shown, err = run(*sweep, "-o", "k=2,3", "--out", tmp_path / "s", "--json")
    assert code == 0, err
    assert [row["settings"] for row in strict(shown)["rows"]] == [{"k": 2.0}, {"k": 3.0}]
    code, said, err = run(*sweep, "-o", "k=2,3", "--out", tmp_path / "s")
    assert code == 0, err
    assert said.splitlines()[-2].startswith("Best perplexity: k=")
    assert f"--out {tmp_path / 's-2'}" in said.splitlines()[-1]
    assert run_next(run, said)[0] == 0


def test_templates_are_files_that_can_be_used(run, tmp_path):
    for command, load in (("energy", load_table), ("simulate", load_description)):
        code, shown, err = run(command, "--template")
        assert (code, err) == (0, "")
        assert shown.startswith("#")
        (tmp_path / "mine.toml").write_text(shown)
        assert load(tmp_path / "mine.toml").name == "mine"


@pytest.mark.slow
def test_took_is_what_the_user_waited_imports_included():
    script = "import time; t = time.perf_counter(); from spikebrain.cli import clock; time.sleep(0.3); import torch; "
    script += "print(clock.took(), time.perf_counter() - t)"
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert said[0] == "Took"
    assert said[2] == "s."
    assert float(said[1]) == pytest.approx(float(said[3]), abs=0.2)


@pytest.mark.parametrize(
    ("command", "option", "name", "files"),
    [("energy", "--table", "jouppi_7nm", TABLES), ("simulate", "--chip", "loihi", CHIPS)],
)
def test_a_template_is_what_was_asked_for(run, tmp_path, command, option, name, files):
    code, shown, err = run(command, "--template", option, name)
    assert (code, err) == (0, "")
    assert shown == (files.folder / f"{name}.toml").read_text("utf-8")
    (tmp_path / "mine.toml").write_text(shown)
    assert run(command, option, tmp_path / "mine.toml", "--template")[1] == shown
    assert "got 'nowhere'" in run(command, "--template", option, "nowhere")[2]
    # Options at their usual values, too, since they were typed.
    for others, named in [
        (["--text", "book.txt", "--k", "3"], ["--text", "--k"]),
        (["--json"], ["--json"]),
        (["-q"], ["--quiet"]),
        (["smollm2"], ["MODEL" if command == "simulate" else "SOURCE"]),
        (["--mode", "decode"] if command == "simulate" else ["--neuron", "adaptive-threshold"], ["--"]),
    ]:
        code, shown, err = run(command, "--template", *others)
        assert (code, shown) == (2, "")
        assert "has no effect with --template, which prints a file and runs nothing. Leave out" in err
        assert all(name in err for name in named)


def test_the_same_command_again():
    def command(screen, model: str, text=None, skip=None, fast=False, k=3.0):
        pass

    import inspect  # noqa: PLC0415

    names = {"model": "MODEL", "text": "--text", "skip": "--skip", "fast": "--fast", "k": "--k"}
    values = {"skip": ["*a", "*b"], "k": 3.0, "model": "my model", "fast": True, "text": None}
    typed = Typed("run", inspect.signature(command), names, values)
    words = ("spikebrain", "run", "my model", "--skip", "*a", "--skip", "*b", "--fast")
    assert typed.again() == words
    assert typed.again(fast=None, k=2.0) == (*words[:-1], "--k", "2.0")
    assert typed.again(fast=False) == words[:-1]
    assert typed.same("k", "skip", "model") == ("--skip", "*a", "--skip", "*b", "my model")


def test_ratios_in_words(tmp_path):
    assert less_or_more(6.42, "energy than INT8") == "6.42x less energy than INT8"
    assert less_or_more(1 / 74.953, "energy than INT8") == "75 times more energy than INT8"
    assert less_or_more(1 / 5390, "than additions") == "5,390 times more than additions"
    assert less_or_more(None, "energy than INT8").startswith("no energy to compare")
    assert [as_ratio(value) for value in (41.875, 0.5, 0.0133, 0.0)] == ["41.88x", "0.50x", "0.013x", "0.00x"]
    assert unused(tmp_path / "a") == tmp_path / "a"
    (tmp_path / "a").mkdir()
    (tmp_path / "a-2").mkdir()
    assert unused(tmp_path / "a") == tmp_path / "a-3"
