"""The command line. Every module of `commands` is a command, whose function of the same name is called.

The modules here and the commands import no room: help and messages about options shall not wait for PyTorch. A command
imports what it needs when it runs.
"""

from __future__ import annotations

import io
import sys
from typing import Annotated

import typer

from .. import interrupt
from ..errors import SpikebrainError
from ..version import __version__
from .contents import Contents
from .panels import OTHERS

app = typer.Typer(
    cls=Contents,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"spikebrain {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Print the version.", rich_help_panel=OTHERS
        ),
    ] = False,
) -> None:
    """Run language models on integer spike trains.

    Begin with `spikebrain report`. `spikebrain COMMAND --help` lists the options of a command.
    """


def main() -> None:
    """Entry point: bad input ends with one message and exit code 2, Ctrl-C with one line and 130."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a console that cannot write a character shows its number
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except KeyboardInterrupt:
        interrupt.end_interrupted()
    except SpikebrainError as error:
        _print_error(str(error))
        sys.exit(2)
    except RuntimeError as error:
        torch = sys.modules.get("torch")  # if it is not there, it is not its error
        if torch is None or not isinstance(error, torch.OutOfMemoryError):
            raise
        remedy = "Use --device cpu, or less text at a time."
        _print_error(f"the GPU's memory is full. {remedy} {error}")
        sys.exit(2)


def _print_error(message: str) -> None:
    # Not typer.echo, which writes UTF-8 to a console of another encoding.
    label = typer.style("error: ", fg="red", bold=True) if sys.stderr.isatty() else "error: "
    print(f"{label}{message}", file=sys.stderr)
