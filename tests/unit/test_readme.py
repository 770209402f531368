"""The README's Python prints what the README says it prints."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from spikebrain.errors import CheckpointError
from spikebrain.models.io import smollm2

README = (Path(__file__).parents[2] / "README.md").read_text()


@pytest.mark.model
def test_python_example(tmp_path):
    code, output = re.search(r"```python\n(.*?)```\n\n```\n(.*?)```", README, re.DOTALL).groups()  # pyright: ignore[reportOptionalMemberAccess]
    try:
        smollm2.download()
    except CheckpointError as error:
        pytest.skip(f"the default model is neither in the cache nor to be had: {error}")
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert run.stdout == output
