"""What a command shows while it runs: remarks and progress on standard error, and text as it is written."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .answer import writable
from .hush import others_silent
from .typed import Typed

if TYPE_CHECKING:
    from rich.progress import Progress

# Seconds between two lines on a bar where no bar can be drawn.
_LINE_S = 30.0


class Screen:
    """What a command sees of its console. It is the progress of a job, too; see `spikebrain.jobs.Progress`.

    Bars are drawn while at least one of them is unfinished, so that text written afterwards stays below them. Where
    standard error is no terminal, work that takes longer than half a minute tells so in a line now and then.

    Args:
        typed: the command that was typed.
        streams: whether text is printed as it comes.
        quiet: show nothing.
    """

    def __init__(self, typed: Typed, *, streams: bool = True, quiet: bool = False) -> None:
        self.typed, self.quiet = typed, quiet
        self._streams = streams and not quiet
        self._draws = sys.stderr.isatty()
        self._bars: Progress | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> Screen:
        self._silence = others_silent(self.say)
        self._silence.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.stop()
        self._silence.__exit__(*error)

    def write(self, text: str) -> None:
        """Print text on standard output as it comes, unless the answer alone is asked for."""
        if self._streams:
            with writable():
                print(text, end="", flush=True)

    def say(self, text: str) -> None:
        """Print a remark."""
        if self.quiet:
            return
        if self._bars is not None:
            self._bars.console.print(text)
        else:
            print(text, file=sys.stderr, flush=True)

    def bar(self, title: str, total: int, unit: str) -> Callable[[int], None]:
        """Add a bar, and return the function that moves it on."""
        if self.quiet:
            return lambda done: None
        return self._drawn(title, total, unit) if self._draws else self._told(title, total, unit)

    def stop(self) -> None:
        """Leave the bars as they are on the screen."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def _drawn(self, title: str, total: int, unit: str) -> Callable[[int], None]:
        with self._lock:
            bars = self._bars = self._bars or _new_bars()
            bars.start()  # which does nothing the second time
            task = bars.add_task(title, total=total, unit=unit)

        def advance(done: int) -> None:
            with self._lock:
                if self._bars is bars:
                    bars.advance(task, done)
                    if bars.finished:
                        self.stop()

        return advance

    def _told(self, title: str, total: int, unit: str) -> Callable[[int], None]:
        began = last = time.monotonic()
        so_far = 0

        def advance(done: int) -> None:
            nonlocal so_far, last
            with self._lock:
                so_far += done
                now = time.monotonic()
                if now - last >= _LINE_S or (so_far >= total and last > began):
                    last = now
                    self.say(f"{title}: {_amount(so_far, total, unit)}, {now - began:.0f} s")

        return advance


def _amount(so_far: int, total: int, unit: str) -> str:
    if unit == "bytes":
        return f"{so_far / 1e6:.1f}/{total / 1e6:.1f} MB"
    return f"{so_far:,}/{total:,} {unit}"


def _new_bars() -> Progress:
    """Return bars in our style: title, bar, how much is done, time so far, and time to go."""
    from rich.console import Console  # takes long, which `--help` need not wait for
    from rich.progress import (
        BarColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Done(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(_amount(int(task.completed), int(task.total or 0), task.fields["unit"]))

    columns = (TextColumn("{task.description:14}"), BarColumn(), Done(), TimeElapsedColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True, markup=False, highlight=False))
