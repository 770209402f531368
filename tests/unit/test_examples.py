"""Each example prints what is recorded beside it, where "..." stands for what depends on the machine."""

import doctest
import os
import subprocess
import sys
from pathlib import Path

import pytest

from spikebrain.errors import CheckpointError
from spikebrain.models.io import smollm2

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))


def marked(path):
    marks = [pytest.mark.slow, *([pytest.mark.model] if "smollm2" in path.read_text() else [])]
    return pytest.param(path, marks=marks, id=path.stem)


def test_there_are_examples():
    assert len(EXAMPLES) >= 11


@pytest.mark.parametrize("example", [marked(path) for path in EXAMPLES])
def test_prints_what_is_recorded(example, tmp_path):
    if "smollm2" in example.read_text():
        try:
            smollm2.download()
        except CheckpointError as error:
            pytest.skip(f"the default model is neither in the cache nor to be had: {error}")
    environment = {**os.environ, "COLUMNS": "120", "PYTHONWARNINGS": "ignore"}
    run = subprocess.run(
        [sys.executable, example, tmp_path], capture_output=True, text=True, check=False, cwd=tmp_path, env=environment
    )
    assert run.returncode == 0, run.stderr
    recorded = example.with_suffix(".out").read_text()
    assert doctest.OutputChecker().check_output(recorded, run.stdout, doctest.ELLIPSIS), run.stdout
