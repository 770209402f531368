"""Where tests of Triton's kernels run: on a GPU (-m gpu), and in Triton's interpreter on a CPU."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

# Triton reads the variable when kernels are defined, so the interpreter runs in a process of its own.
INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"
DEVICES = [
    pytest.param("cpu", marks=pytest.mark.skipif(not INTERPRETING, reason="runs with TRITON_INTERPRET=1, from below")),
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(INTERPRETING or not torch.cuda.is_available(), reason="this machine has no CUDA GPU"),
        ],
    ),
]


def run_in_interpreter(*arguments: str) -> None:
    """Run pytest in a process in which Triton interprets its kernels, and expect it to pass."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not gpu", "-p", "no:cacheprovider", *arguments]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert run.returncode == 0, run.stdout + run.stderr
    assert " passed" in run.stdout
