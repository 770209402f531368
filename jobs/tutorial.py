"""The tutorial: a marimo notebook that comes with the package."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from ..errors import InputError
from ..files import write_whole
from ..lazy import optional
from .inputs import require_writable
from .progress import SILENT, Progress

NOTEBOOK = Path(__file__).parents[1] / "tutorial" / "tutorial.py"


def copy_tutorial(out: Path, *, force: bool = False) -> None:
    """Write the notebook, to keep and to change.

    Args:
        out: *.py to write.
        force: write over a file that is there.
    Raises:
        InputError: there is a file already, or it cannot be written.
    """
    if out.suffix != ".py":
        raise InputError(f"out {out}: expected a name that ends in .py, since the notebook is a Python file.")
    require_writable(out.parent)
    if out.exists() and not force:
        raise InputError(f"out {out}: is there already. Name another file, or pass force=True to write over it.")
    write_whole(out, NOTEBOOK.read_text(encoding="utf-8"))


def open_tutorial(progress: Progress = SILENT) -> int:
    """Open a copy of the notebook in the browser, and wait until marimo ends.

    Args:
        progress: told where changes go.
    Returns:
        The exit code of marimo.
    Raises:
        InputError: marimo is not installed.
    """
    optional("marimo", "tutorial", "tutorial")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / NOTEBOOK.name
        copy_tutorial(copy)
        progress.say("Ctrl-C ends the tutorial and drops what you changed in it. A copy of your own stays.")
        return subprocess.run([sys.executable, "-m", "marimo", "edit", str(copy)], check=False).returncode
