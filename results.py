"""What a path holds if a command wrote it: for whoever expected something else there."""

from __future__ import annotations

import json
import re
from pathlib import Path

# The command that writes each kind of figures.
COMMANDS = {
    "report": "report",
    "energy": "energy",
    "simulation": "simulate",
    "eval": "eval",
    "sweep": "sweep",
    "raster": "raster",
}
# What `spikebrain energy` reads.
WITH_COUNTS = ("report", "energy")
_FILES = ("report.json", "energy.json", "simulation.json", "eval.json", "results.json")
_BESIDE = (".csv", ".png", ".parquet", ".html")
_IN_A_PAGE = re.compile(r'<script type="application/json" id="data">\{"kind":"(\w+)"')


def about_result(path: Path) -> str:
    """Return sentences about the result that a path is, holds or lies beside, each after a space; "" if there is none.

    Args:
        path: of a file or folder that exists.
    """
    kind = _kind(path)
    if kind is not None:
        file, what = path, "is the page" if path.suffix == ".html" else "holds the figures"
    else:
        folder = path if path.is_dir() else path.parent if path.suffix in _BESIDE else None
        found = [] if folder is None else [(folder / name, _kind(folder / name)) for name in _FILES]
        file, kind = next(((one, of) for one, of in found if of is not None), (path, None))
        what = "holds the result" if path.is_dir() else "is part of the result"
    if kind is None:
        return ""
    told = f" It {what} of spikebrain {COMMANDS[kind]}."
    if kind not in WITH_COUNTS:
        return f"{told} No command reads it: its .html file is for a browser."
    beside = file.with_suffix(".json")
    return f"{told} spikebrain energy reads {beside if beside.exists() else f'the file {kind}.json of such a run'}."


def _kind(path: Path) -> str | None:
    """Return the kind of the figures that a JSON file or a page holds."""
    if path.suffix not in (".json", ".html") or not path.is_file():
        return None
    try:
        text = path.read_text("utf-8")
        if path.suffix == ".html":
            found = _IN_A_PAGE.search(text)
            kind = found[1] if found else None
        else:
            content = json.loads(text)
            kind = content.get("kind") if isinstance(content, dict) else None
    except (OSError, ValueError, RecursionError):
        return None
    return kind if isinstance(kind, str) and kind in COMMANDS else None
