"""The command line. Every module of `commands` is a command, whose function of the same name is called.

The modules here and the commands import no room: help and messages about options shall not wait for PyTorch. A command
imports what it needs when it runs.
"""

from __future__ import annotations

import functools
import importlib
import io
import pkgutil
import sys
from collections.abc import Callable
from typing import Annotated, Any, TypeVar, cast

import typer
from rich.console import Console
from rich.text import Text

from .. import interrupt
from ..errors import SpikebrainError
from ..version import __version__
from . import commands
from .messages import speaks_of_options

F = TypeVar("F", bound=Callable[..., Any])

app = typer.Typer(
    help="Run language models on integer spike trains.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _with_jobs(command: F) -> F:
    """Return a command that imports all jobs, which takes seconds, before Ctrl-C means to clean up."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        importlib.import_module("...jobs", __name__)
        interrupt.raise_on_interrupt()
        return command(*args, **kwargs)

    return cast(F, run)


for module in pkgutil.iter_modules(commands.__path__):
    function = getattr(importlib.import_module(f"{commands.__name__}.{module.name}"), module.name)
    app.command(module.name.replace("_", "-"))(speaks_of_options(_with_jobs(function)))


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"spikebrain {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Run language models on integer spike trains."""


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
        Console(stderr=True, soft_wrap=True).print(Text.assemble(("error: ", "bold red"), str(error)))
        sys.exit(2)
    except RuntimeError as error:
        torch = sys.modules.get("torch")  # if it is not there, it is not its error
        if torch is None or not isinstance(error, torch.OutOfMemoryError):
            raise
        remedy = "Use --device cpu, or less text at a time."
        Console(stderr=True, soft_wrap=True, markup=False).print(f"error: the GPU's memory is full. {remedy} {error}")
        sys.exit(2)
