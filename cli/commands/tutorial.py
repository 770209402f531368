"""The command `spikebrain tutorial`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..answer import Answer
from ..panels import HELP, OUTPUT
from ..progress import Screen

PANEL = HELP


def tutorial(
    screen: Screen,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Write the notebook there instead of opening it.", show_default="none", rich_help_panel=OUTPUT
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Write over a file that is there.", rich_help_panel=OUTPUT)
    ] = False,
) -> Answer:
    """Open a notebook that leads from one neuron to a whole model on spikes.

    It is a marimo notebook, which is also a Python script: --out keeps a copy. It needs marimo; the copy does not.
    """
    from ... import jobs

    if out is None:
        exit_code = jobs.open_tutorial(screen)
        figure = "Closed the tutorial." if exit_code == 0 else f"marimo ended with exit code {exit_code}."
        return Answer(figure, {"out": None, "exit_code": exit_code}, exit_code=exit_code, next=("spikebrain", "report"))
    jobs.copy_tutorial(out, force=force)
    why = "a notebook in the browser; python runs it as a script"
    return Answer("Copied the tutorial.", {"out": str(out)}, out=out, next=("marimo", "edit", out), why=why)
