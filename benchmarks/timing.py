"""Helpers for all benchmarks: timing over rotating inputs, the environment, rows and a JSON file."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import spikebrain as sb


@dataclass
class Timing:
    """Seconds per call: the median, with the quartiles as spread."""

    median_s: float
    low_s: float
    high_s: float
    num_calls: int


def measure(
    call: Callable[[int], object], num_variants: int, *, min_calls: int = 30, min_seconds: float = 1.0
) -> Timing:
    """Time call(0), call(1), ... in rotation, so that no variant's weights are still in a cache.

    Args:
        call: does the work with the weights of the given variant.
        num_variants: number of variants.
        min_calls: minimum number of timed calls.
        min_seconds: minimum time to spend on them.
    """
    turns = measure_in_turns({"": call}, num_variants, min_calls=min_calls, min_seconds=min_seconds)
    return turns[""]


def measure_in_turns(
    calls: Mapping[str, Callable[[int], object]], num_variants: int, *, min_calls: int = 30, min_seconds: float = 2.0
) -> dict[str, Timing]:
    """Time several calls in turns, so that a disturbance affects all of them; otherwise like `measure`."""
    for i in range(min(num_variants, 3)):
        for call in calls.values():
            call(i)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    done, spent = 0, 0.0
    while done < min_calls or spent < min_seconds:
        for name, call in calls.items():
            start = time.perf_counter()
            call(done % num_variants)
            took = time.perf_counter() - start
            seconds[name].append(took)
            spent += took
        done += 1
    found = {}
    for name, times in seconds.items():
        low, median, high = statistics.quantiles(times, n=4)
        found[name] = Timing(median, low, high, done)
    return found


class Clock:
    """A streamer that notes when `generate` passes it each token."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: object) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass

    @property
    def seconds_per_token(self) -> float:
        """Return the mean seconds between tokens after the first one, which the prompt's own pass gives."""
        first, last = self.times[1], self.times[-1]  # the prompt comes before the first token
        return (last - first) / (len(self.times) - 2)


def environment() -> dict[str, Any]:
    """Return the conditions that timings depend on besides the code."""
    model = next((line.split(":")[1].strip() for line in _cpu_info() if line.startswith("model name")), "unknown")
    return {
        "cpu": model,
        "num_cpus": os.cpu_count(),
        "num_threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "spikebrain": sb.__version__,
        **{package: version(package) for package in ("torch", "numba", "numpy")},
    }


def _cpu_info() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def write_json(path: Path | None, rows: Sequence[dict[str, Any]], **more: object) -> None:
    """Write rows, environment and anything else to a file, if there is a path."""
    if path is not None:
        path.write_text(json.dumps({"environment": environment(), **more, "rows": rows}, indent=1) + "\n")


def as_row(timing: Timing, **more: object) -> dict[str, Any]:
    """Return a timing as a row, after the fields that describe it."""
    return {**more, **asdict(timing)}
