"""Remarks and progress bars on standard error, for the jobs that commands run."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text


class _Done(ProgressColumn):
    """How much is done: "3/15 parts", or "12.4/92.9 MB" where the unit is bytes."""

    def __init__(self) -> None:
        super().__init__()
        self._bytes, self._others = DownloadColumn(), MofNCompleteColumn()

    def render(self, task: Task) -> Text:
        """Return the text of one bar."""
        unit = task.fields["unit"]
        return self._bytes.render(task) if unit == "bytes" else self._others.render(task).append(f" {unit}")


class Screen:
    """Shows the progress of a job; see `spikebrain.jobs.Progress`.

    Bars are drawn while at least one of them is unfinished, so that text written afterwards stays below them.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars: Progress | None = None
        self._lock = threading.Lock()

    def say(self, text: str) -> None:
        """Print a remark."""
        self._console.print(text)

    def bar(self, title: str, total: int, unit: str) -> Callable[[int], None]:
        """Add a bar, and return the function that moves it on."""
        with self._lock:
            if self._bars is None:
                columns = (TextColumn("{task.description:14}"), BarColumn(), _Done())
                self._bars = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=self._console)
                self._bars.start()
            bars = self._bars
            task = bars.add_task(title, total=total, unit=unit)

        def advance(done: int) -> None:
            with self._lock:
                if self._bars is bars:
                    bars.advance(task, done)
                    if bars.finished:
                        self.stop()

        return advance

    def stop(self) -> None:
        """Leave the bars as they are on the screen."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None


@contextmanager
def on_screen() -> Iterator[Screen]:
    """Yield what shows a job's progress on standard error."""
    screen = Screen(Console(stderr=True, markup=False))
    try:
        yield screen
    finally:
        screen.stop()
