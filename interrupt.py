"""Ctrl-C in a command: one line and exit code 130, at any time, also while the package is being imported."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

EXIT_CODE = 130
_LINE = "Interrupted.\n"


def is_command() -> bool:
    """Return whether this process runs the command line, and not a program that imports the package."""
    words = sys.orig_argv
    as_module = any(words[i : i + 2] in (["-m", "spikebrain.cli"], ["-m", "spikebrain"]) for i in range(len(words)))
    return as_module or Path(sys.argv[0] if sys.argv else "").stem == "spikebrain"


def leave_on_interrupt() -> None:
    """End the process at once when Ctrl-C comes: for the time of imports, in which nothing has been begun."""
    _set(_leave, instead_of=(signal.default_int_handler,))


def raise_on_interrupt() -> None:
    """Raise KeyboardInterrupt when Ctrl-C comes, so that files are cleaned up; at the second one end at once."""
    _set(_raise, instead_of=(signal.default_int_handler, _leave))


@contextmanager
def held_interrupt() -> Iterator[Callable[[], bool]]:
    """Hold the first Ctrl-C back inside a `with` block, which asks whether it came, and leaves when it can be left.

    The interrupt is raised behind the block. A second one comes at once. Where signals are not Python's to handle, as
    in other threads than the main one, nothing is held back.
    """
    before, came = signal.getsignal(signal.SIGINT), list[bool]()
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield lambda: False
        return

    def note(*arguments: Any) -> None:
        came.append(True)
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(came)
    finally:
        if not came:
            signal.signal(signal.SIGINT, before)
    if came:
        before(signal.SIGINT, None)


def end_interrupted() -> NoReturn:
    """Say that the command was interrupted, and end it with exit code 130."""
    sys.stderr.write(_LINE)
    sys.exit(EXIT_CODE)


def _set(handler: Callable[..., Any], instead_of: tuple[Any, ...]) -> None:
    # Only the main thread may; and whoever started the command may ignore the signal, or handle it.
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) in instead_of:
        signal.signal(signal.SIGINT, handler)


def _leave(*arguments: Any) -> None:
    try:
        os.write(2, _LINE.encode())
    finally:
        os._exit(EXIT_CODE)


def _raise(*arguments: Any) -> None:
    signal.signal(signal.SIGINT, _leave)
    raise KeyboardInterrupt
