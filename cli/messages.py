"""Errors of jobs name arguments of Python; here they become the options of the command that was typed."""

from __future__ import annotations

import re
import typing
from collections.abc import Callable, Mapping
from typing import Any

from typer.models import ArgumentInfo, OptionInfo

# "k: ...", "AdaptiveThreshold.k: ..." and "text book.txt: ..." at the start of a message.
_SUBJECT = re.compile(r"^(?:\w+\.)?(\w+)(?=(?: [^:]*)?:)")
# `num_tokens` and stream=True anywhere in it.
_MENTION = re.compile(r"`(\w+)`|\b(\w+)=True\b")


def in_options(message: str, options: Mapping[str, str]) -> str:
    """Return a message about arguments as one about options.

    Args:
        message: begins with the argument that is wrong, and may mention others in backticks or as name=True.
        options: what is typed for an argument, by its name.

    >>> options = {"k": "--k", "num_tokens": "--num-tokens", "text": "--text"}
    >>> in_options("AdaptiveThreshold.k: expected a finite number > 0, got 0.", options)
    '--k: expected a finite number > 0, got 0.'
    >>> in_options("text a.txt: is too short. Lower `num_tokens`.", options)
    '--text a.txt: is too short. Lower --num-tokens.'
    """
    message = _SUBJECT.sub(lambda found: options.get(found[1], found[0]), message)
    return _MENTION.sub(lambda found: options.get(found[1] or found[2], found[0]), message)


def option_names(command: Callable[..., Any]) -> dict[str, str]:
    """Return what is typed for each argument of a command, by its name: an option, or a metavariable."""
    names = {}
    for name, hint in typing.get_type_hints(command, include_extras=True).items():
        for info in getattr(hint, "__metadata__", ()):
            if isinstance(info, OptionInfo):
                usual = "--" + name.replace("_", "-")
                # In Annotated, typer keeps the first declaration in the place of the default.
                declared = [d for d in (info.default, *(info.param_decls or ())) if isinstance(d, str)]
                names[name] = next((d for d in declared if d.startswith("--")), usual)
            elif isinstance(info, ArgumentInfo):
                names[name] = info.metavar or name.upper()
    return names
