"""Ctrl-C in a command: one line and exit code 130, at any time, also while the package is being imported."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import Any

EXIT_CODE = 130
_LINE = "Interrupted.\n"


def is_command() -> bool:
    """Return whether this process runs the command line, and not a program that imports the package."""
    words = sys.orig_argv
    as_module = any(words[i : i + 2] in (["-m", "spikebrain.cli"], ["-m", "spikebrain"]) for i in range(len(words)))
    return as_module or Path(sys.argv[0] if sys.argv else "").stem == "spikebrain"


def leave_on_interrupt() -> None:
    """End the process at once when Ctrl-C comes: for the time of imports, in which nothing has been begun."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)


def raise_on_interrupt() -> None:
    """Raise KeyboardInterrupt when Ctrl-C comes, so that files are cleaned up; at the second one end at once."""
    if signal.getsignal(signal.SIGINT) in (signal.default_int_handler, _leave):
        signal.signal(signal.SIGINT, _raise)


def end_interrupted() -> None:
    """Say that the command was interrupted, and end it. Threads that still work are not waited for."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    _leave()


def _leave(*arguments: Any) -> None:
    try:
        os.write(2, _LINE.encode())
    finally:
        os._exit(EXIT_CODE)


def _raise(*arguments: Any) -> None:
    signal.signal(signal.SIGINT, _leave)
    raise KeyboardInterrupt
