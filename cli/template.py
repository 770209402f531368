"""The option --template: it prints a file that comes with the package, as a start for one's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

import typer

if TYPE_CHECKING:
    from ..plugins import NamedFiles
    from .typed import Typed


def template_of(what: str, chosen: str, panel: str) -> Any:
    """Return the option --template.

    Args:
        what: the file describes.
        chosen: the option that says which file.
        panel: of the option.
    """
    told = f"Print the file of {what} with comments, that of {chosen}, as a start for your own: --template > mine.toml."
    return typer.Option("--template", help=told, rich_help_panel=panel)


def print_template(typed: Typed, files: NamedFiles[Any], argument: str) -> NoReturn:
    """Print a file and end the command.

    Args:
        typed: the command.
        files: of which one is printed.
        argument: of the command, that says which.
    Raises:
        InputError: there is no such file, or more was typed, which would have no effect.
    """
    from ..jobs.given import refuse

    others = {name: True for name in typed.given if name not in ("template", argument)}
    refuse(others, others, "with `template`, which prints a file and runs nothing")
    print(files.text(typed.values[argument]), end="")
    raise typer.Exit
