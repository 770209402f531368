"""The command line. Every module of `commands` is a command, whose function of the same name is called."""

from __future__ import annotations

import importlib
import io
import pkgutil
import sys

import torch
import typer
from rich.console import Console
from rich.text import Text

from .. import interrupt
from ..errors import SpikebrainError
from . import commands
from .messages import speaks_of_options

app = typer.Typer(
    help="Run language models on integer spike trains.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

for module in pkgutil.iter_modules(commands.__path__):
    function = getattr(importlib.import_module(f"{commands.__name__}.{module.name}"), module.name)
    app.command(module.name.replace("_", "-"))(speaks_of_options(function))


@app.callback()
def _root() -> None:
    """Run language models on integer spike trains."""


def main() -> None:
    """Entry point: bad input ends with one message and exit code 2, Ctrl-C with one line and 130."""
    interrupt.raise_on_interrupt()
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
    except torch.OutOfMemoryError as error:
        remedy = "Use --device cpu, or less text at a time."
        Console(stderr=True, soft_wrap=True, markup=False).print(f"error: the GPU's memory is full. {remedy} {error}")
        sys.exit(2)
