"""The real model against the golden figures, by the documented command (docs/results.md), for one of its five k."""

import subprocess
import sys
from pathlib import Path

import pytest

from spikebrain.errors import CheckpointError
from spikebrain.models.io import smollm2

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "golden_smollm2.py"


@pytest.mark.model
def test_golden_figures(shared, tmp_path):
    try:
        smollm2.download()
    except CheckpointError as error:
        pytest.skip(f"the default model is neither in the cache nor to be had: {error}")
    golden = shared / "golden" / "smollm2_wikitext2.json"
    text = shared / "data" / "wikitext2_raw_test" / "wiki.test.raw"
    run = subprocess.run(
        [sys.executable, SCRIPT, golden, text, "--k", "3"], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert run.returncode == 0, run.stdout + run.stderr
    # Two perplexities, and for k = 3 a perplexity and eight statistics.
    assert "11 figures, 0 outside their tolerance" in run.stdout
