"""Ctrl-C in a command: one line and exit code 130, at any time, also while the package is being imported."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
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
