"""What a command found, and the three ways to print it: whole, the answer alone (--quiet), or as JSON (--json)."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

# Width of what is not printed to a terminal: no line of a table is cut, and no sentence is broken.
_WIDTH = 200


@dataclass(frozen=True)
class Answer:
    """What a command found.

    Attributes:
        figure: the figure that answers the command's question, in one line.
        data: all that was found, as JSON values: what the files hold, where there are some.
        show: prints tables and remarks on a console; None if the figure says it all.
        out: file or folder that was written to; None for nothing.
        files: names of the files in that folder.
        next: the words of a command that can be run next; empty for none.
        why: what that command tells, in a few words.
        exit_code: of the process.
    """

    figure: str
    data: Any
    show: Callable[[Console], None] | None = None
    out: Path | None = None
    files: tuple[str, ...] = ()
    next: tuple[object, ...] = ()
    why: str = ""
    exit_code: int = 0


def print_answer(answer: Answer, *, as_json: bool, quiet: bool) -> None:
    """Print what a command found on standard output.

    Raises:
        InputError: standard output cannot be written, as on a full disk.
    """
    with writable():
        _print(answer, as_json=as_json, quiet=quiet)
        sys.stdout.flush()


@contextmanager
def writable() -> Iterator[None]:
    """Raise an InputError where standard output cannot be written in a `with` block, as on a full disk."""
    check_open()
    try:
        yield
    except BrokenPipeError:
        raise  # whoever reads has read enough
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python flushes when it ends
        raise InputError(f"standard output: cannot be written: {error.strerror}. Send it to another place.") from error


def check_open() -> None:
    """Raise an InputError if standard output is closed, so that nobody could read the answer."""
    if sys.stdout is None:
        raise InputError("standard output: expected a terminal, file or pipe, got none: it is closed. Leave it open.")


def _print(answer: Answer, *, as_json: bool, quiet: bool) -> None:
    if as_json:
        from ..files import finite  # imports PyTorch, as the command has by now

        print(json.dumps(finite(answer.data), indent=1, allow_nan=False))
    elif quiet:
        print(answer.figure)
    else:
        console = console_of()
        if answer.show is not None:
            answer.show(console)
        if answer.out is not None:
            print(f"Written to {answer.out}" + (f": {', '.join(answer.files)}" if answer.files else ""))
        console.print(answer.figure, style="bold", soft_wrap=True)
        if answer.next:
            told = f"   # {answer.why}" if answer.why else ""
            print(f"Next: {shlex.join(map(str, answer.next))}{told}")


def console_of() -> Console:
    """Return a console for standard output: as wide as the terminal, or wide enough for a file or a pipe."""
    from rich.console import Console  # takes long, which `--help` need not wait for

    width = None if sys.stdout.isatty() else _WIDTH
    return Console(highlight=False, markup=False, width=width, soft_wrap=width is not None)
