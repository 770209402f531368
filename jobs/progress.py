"""Progress bars for long work, on standard error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


@contextmanager
def progress_bars(console: Console, unit: str = "tokens") -> Iterator[Callable[[str, int], Callable[[int], None]]]:
    """Yield a function that adds a bar with a title and a total, and returns the function that moves it on."""
    columns = (TextColumn("{task.description:13}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit))
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as bars:

        def add(title: str, total: int) -> Callable[[int], None]:
            task = bars.add_task(title, total=total)
            return lambda done: bars.advance(task, done)

        yield add
