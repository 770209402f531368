"""Help that reads like a table of contents: commands by purpose, options by what they are about.

Plain text, since the boxes of rich take longer to import than all the rest. A command is imported to be listed, and
built when it is asked for.
"""

from __future__ import annotations

import importlib
import itertools
import pkgutil
import re
from collections.abc import Callable, Iterator, MutableMapping
from types import ModuleType
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from . import commands
from .panels import COMMANDS, OPTIONS
from .running import runnable

_QUIET_TYPER: dict[str, Any] = {"rich_markup_mode": None, "pretty_exceptions_enable": False}


def command_names() -> list[str]:
    """Return the names of all commands: those of the modules of `commands`."""
    return [module.name.replace("_", "-") for module in pkgutil.iter_modules(commands.__path__)]


def module_of(name: str) -> ModuleType:
    """Return the module of a command."""
    return importlib.import_module(f"{commands.__name__}.{name.replace('-', '_')}")


def function_of(name: str) -> Callable[..., Any]:
    """Return the function of a command, as its module has it."""
    return getattr(module_of(name), name.replace("-", "_"))


def _records(command: Any, ctx: Any) -> Iterator[tuple[str, tuple[str, str]]]:
    """Yield panel, and name and help, of each argument and option."""
    for param in command.get_params(ctx):
        record = param.get_help_record(ctx)
        if record is not None:
            name, told = record
            # Typer puts a default that is no value into parentheses, and one of none beside it.
            told = re.sub(r"\[default: \((.*)\)\]$", r"[default: \1]", told).removesuffix("[default: none]").rstrip()
            yield getattr(param, "rich_help_panel", None) or OPTIONS[-1], (name, told)


def _write(formatter: Any, titles: tuple[str, ...], rows: list[tuple[str, tuple[str, str]]]) -> None:
    """Write rows under the titles of their panels, in the order of the titles."""
    for title in titles:
        under = [row for panel, row in rows if panel == title]
        if under:
            with formatter.section(typer.style(title, bold=True)):
                formatter.write_dl(under)


class Page(TyperCommand):
    """A command whose help lists its options by what they are about, and that takes no empty text for a value."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read what was typed. An empty text, which an unset variable leaves, would be the current folder as a path."""
        for before, word in itertools.pairwise(["", *args]):
            if word == "" or re.fullmatch(r"--[\w-]+=", word):
                option = word.removesuffix("=") or before
                of = f" for {option}" if option.startswith("-") else ""
                ctx.fail(f"Expected a value{of}, got an empty text.")
        return super().parse_args(ctx, args)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments and options."""
        _write(formatter, OPTIONS, list(_records(self, ctx)))


class _Built(MutableMapping[str, Any]):
    """The commands by name, each built when it is asked for."""

    def __init__(self) -> None:
        self._built: dict[str, Any] = {}
        self._names = command_names()

    def __getitem__(self, name: str) -> Any:
        if name not in self._names:
            raise KeyError(name)
        if name not in self._built:
            one = typer.Typer(add_completion=False, **_QUIET_TYPER)
            one.command(name, cls=Page)(runnable(function_of(name)))
            self._built[name] = typer.main.get_command(one)
        return self._built[name]

    def __setitem__(self, name: str, command: Any) -> None:
        self._built[name] = command

    def __delitem__(self, name: str) -> None:
        self._names.remove(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class Contents(TyperGroup):
    """All commands, listed by purpose."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**{**attributes, "commands": _Built()})

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the commands, and below them the options that need no command."""
        rows = []
        for name in self.list_commands(ctx):
            first = (function_of(name).__doc__ or "").strip().partition("\n")[0]
            rows.append((module_of(name).PANEL, (name, first)))
        _write(formatter, COMMANDS, rows)
        _write(formatter, OPTIONS, list(_records(self, ctx)))

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write nothing: `format_options` has written them."""
