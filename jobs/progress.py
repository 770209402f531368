"""How a job tells of its progress: to whoever started it, in a way that is theirs to choose."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable


@runtime_checkable
class Progress(Protocol):
    """Receives what a job has to say while it runs. The command line shows it on standard error."""

    def say(self, text: str) -> None:
        """Take a remark, a sentence or two."""

    def bar(self, title: str, total: int, unit: str) -> Callable[[int], None]:
        """Begin a part of the work, of `total` units, and return a function that is told how many more are done.

        The function may be called from several threads.
        """
        ...


class Silent:
    """Shows nothing."""

    def say(self, text: str) -> None:
        """Drop the remark."""

    def bar(self, title: str, total: int, unit: str) -> Callable[[int], None]:
        """Return a function that does nothing."""
        return lambda done: None


SILENT: Progress = Silent()
