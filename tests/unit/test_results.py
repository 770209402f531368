"""Where a model is expected, and a command's result is named: the error says what it is, and what reads it."""

import json

import pytest
from made_pages import JSON_OF

from spikebrain import load
from spikebrain.errors import CheckpointError, InputError
from spikebrain.jobs.energy import read_counts
from spikebrain.results import about_result


@pytest.fixture
def result(tmp_path):
    """Return a function that makes a folder as a command leaves it."""

    def made(kind, name=None):
        folder = tmp_path / kind
        folder.mkdir()
        stem = name or kind
        (folder / f"{stem}.json").write_text(json.dumps({"kind": kind}))
        page = f'<script type="application/json" id="data">{{"kind":"{kind}","format":1}}</script>'
        (folder / f"{stem}.html").write_text(page)
        (folder / "layers.csv").write_text("name\n")
        return folder

    return made


def test_what_energy_reads(result):
    folder = result("report")
    reads = f"spikebrain energy reads {folder / 'report.json'}."
    assert about_result(folder) == f" It holds the result of spikebrain report. {reads}"
    assert about_result(folder / "report.json") == f" It holds the figures of spikebrain report. {reads}"
    assert about_result(folder / "report.html") == f" It is the page of spikebrain report. {reads}"
    assert about_result(folder / "layers.csv") == f" It is part of the result of spikebrain report. {reads}"
    (folder / "report.json").unlink()
    assert about_result(folder / "report.html").endswith("energy reads the file report.json of such a run.")


@pytest.mark.parametrize(
    ("kind", "name", "command"),
    [("eval", None, "eval"), ("simulation", None, "simulate"), ("sweep", "results", "sweep")],
)
def test_what_no_command_reads(result, kind, name, command):
    said = about_result(result(kind, name))
    assert (
        said == f" It holds the result of spikebrain {command}. No command reads it: its .html file is for a browser."
    )


def test_what_is_no_result(tmp_path):
    (tmp_path / "a.json").write_text("[1]")
    (tmp_path / "b.json").write_text("{")
    (tmp_path / "c.html").write_bytes(b"\xff")
    (tmp_path / "d.json").write_text('{"kind": ["report"]}')
    for path in (*tmp_path.iterdir(), tmp_path, tmp_path / "missing.json"):
        assert about_result(path) == ""


def test_errors_of_models(result, run):
    folder = result("eval")
    for path in (folder, *folder.iterdir()):
        with pytest.raises(CheckpointError, match=r"expected a .* of spikebrain eval\. No command reads it"):
            load(path)
    for path in (folder, folder / "eval.html", folder / "layers.csv"):
        code, _, err = run("energy", path)
        assert code == 2
        assert "of spikebrain eval. No command reads it" in err
    with pytest.raises(
        InputError, match=r"expected figures of spikebrain report or spikebrain energy, got those of spik"
    ):
        read_counts(folder / "eval.json")
    code, _, err = run("generate", result("report"), "a")
    assert code == 2
    assert "spikebrain energy reads" in err


@pytest.mark.slow
@pytest.mark.parametrize("kind", JSON_OF)
def test_real_results_are_known(results, kind):
    assert "of spikebrain" in about_result(results[kind].parent)
    for suffix in (".json", ".html"):
        assert "of spikebrain" in about_result(results[kind].with_suffix(suffix))
