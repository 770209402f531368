"""How a command runs: with a screen, with --json and --quiet, with errors that name what was typed."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer

from .. import interrupt
from ..errors import SpikebrainError
from .answer import Answer, check_open, print_answer
from .messages import in_options, option_names
from .panels import OUTPUT
from .progress import Screen
from .typed import Typed

_JSON = Annotated[
    bool,
    typer.Option(
        "--json",
        help="Print one JSON document instead; all else goes to standard error.",
        rich_help_panel=OUTPUT,
    ),
]
_QUIET = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print only the answer, and errors.", rich_help_panel=OUTPUT)
]
_EVERYWHERE = {"as_json": _JSON, "quiet": _QUIET}
_TYPED = {"as_json": "--json", "quiet": "--quiet"}


def _as_typed(names: Mapping[str, str], values: Mapping[str, Any]) -> Mapping[str, str]:
    """Return what was typed for each argument; patterns of neurons are those of --k."""
    as_patterns = {"neuron": names["k"]} if any("=" in k for k in values.get("k") or ()) else {}
    return {**names, **_TYPED, **as_patterns}


def runnable(command: Callable[..., Answer]) -> Callable[..., None]:
    """Return a command as Typer shall see it: without its screen, and with the options that all commands have.

    Args:
        command: takes a `Screen` and its own options, and returns what it found.
    """
    signature = inspect.signature(command, eval_str=True)
    names = option_names(command)

    @functools.wraps(command)
    def run(ctx: typer.Context, *, as_json: bool, quiet: bool, **values: Any) -> None:
        given = [name for name in ctx.params if getattr(ctx.get_parameter_source(name), "name", "") == "COMMANDLINE"]
        typed = Typed(command.__name__.replace("_", "-"), signature, names, values, given)
        try:
            check_open()
            importlib.import_module("...jobs", __name__)  # takes seconds, before Ctrl-C means to clean up
            interrupt.raise_on_interrupt()
            with Screen(typed, streams=not as_json, quiet=quiet) as screen:
                answer = command(screen, **values)
        except KeyboardInterrupt:
            interrupt.end_interrupted()
        except SpikebrainError as error:
            raise type(error)(in_options(str(error), _as_typed(names, values))) from error
        print_answer(answer, as_json=as_json, quiet=quiet)
        raise typer.Exit(answer.exit_code)

    kept = [parameter for name, parameter in signature.parameters.items() if name != "screen"]
    kind = inspect.Parameter.KEYWORD_ONLY
    kept.append(inspect.Parameter("ctx", kind, annotation=typer.Context))
    kept += [inspect.Parameter(name, kind, default=False, annotation=hint) for name, hint in _EVERYWHERE.items()]
    run.__signature__ = signature.replace(parameters=kept)  # pyright: ignore[reportAttributeAccessIssue]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in kept}
    return run
