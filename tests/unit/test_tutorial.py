"""The tutorial ships with the package, is copied, opened, and runs as a script."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from spikebrain.jobs.tutorial import NOTEBOOK


def test_a_copy(run, tmp_path):
    out = tmp_path / "mine.py"
    code, shown, _ = run("tutorial", "--out", out)
    assert code == 0
    assert "Copied the tutorial." in shown
    assert f"marimo edit {out}" in shown
    assert out.read_text() == NOTEBOOK.read_text()
    code, _, err = run("tutorial", "--out", out)
    assert code == 2
    assert "is there already. Name another file, or pass --force" in err
    assert run("tutorial", "--out", out, "--force")[0] == 0
    code, _, err = run("tutorial", "--out", tmp_path / "mine.ipynb")
    assert code == 2
    assert "--out" in err
    assert "expected a name that ends in .py" in err


def test_without_marimo(run, monkeypatch):
    def without(name):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr("spikebrain.lazy.import_module", without)
    code, _, err = run("tutorial")
    assert code == 2
    assert "needs marimo" in err
    assert "[tutorial]" in err


def test_a_copy_is_opened_so_that_the_package_stays_as_it_is(run, monkeypatch):
    opened = []

    def call(words, check):
        opened.append((words[1:4], words[4], Path(words[4]).read_text()))
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr("spikebrain.lazy.import_module", lambda name: None)
    monkeypatch.setattr(subprocess, "run", call)
    code, shown, err = run("tutorial")
    assert code == 0, err
    ((words, path, text),) = opened
    assert words == ["-m", "marimo", "edit"]
    assert path != str(NOTEBOOK)
    assert text == NOTEBOOK.read_text()
    assert "Closed the tutorial." in shown


@pytest.mark.slow
def test_it_runs_as_a_script():
    pytest.importorskip("marimo", reason="the extra `tutorial` is not installed")
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    found = subprocess.run([sys.executable, NOTEBOOK], capture_output=True, text=True, check=False, env=environment)
    assert found.returncode == 0, found.stderr
    assert "[[1, -1, 5, 0]]" in found.stdout  # counts worked out by hand: mean 1.55, threshold 0.775
    assert "additions only" in found.stdout
