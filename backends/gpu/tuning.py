"""Which launch settings of a kernel are fastest here: measured once for a device and shape, and kept in a file."""

from __future__ import annotations

import functools
import statistics
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from ...errors import InputError
from ...files import make_folder, read_json, write_json
from ...paths import cache_dir
from .job import Job

T = TypeVar("T")
_known: dict[str, int] = {}
_one_at_a_time = threading.Lock()
# While the GPU waits for this number of cycles (some milliseconds), this number of runs is queued behind it.
_SLEEP_CYCLES, _RUNS = 10_000_000, 20


def fastest(key: str, settings: Sequence[T], run: Callable[[T], object], device: torch.device) -> T:
    """Return the settings with which `run` takes the least time (median of many runs).

    The choice is kept in `tuning.json` in the cache folder, if that can be written. While a CUDA graph is captured
    nothing can be timed: then the settings of an earlier choice are taken, or the first ones.

    Args:
        key: what the choice depends on besides device, its driver's kernels and the settings themselves.
        settings: the candidates, best guess first.
        run: does the work once, with any of them.
        device: where it runs.
    """
    if len(settings) == 1 or device.type != "cuda":  # Triton's interpreter
        return settings[0]
    key = _full_key(key, device, tuple(settings))
    if key not in _known:
        _known.update(_read())
    if key not in _known:
        if torch.cuda.is_current_stream_capturing():
            return settings[0]
        with _one_at_a_time:
            _known[key] = min(range(len(settings)), key=lambda i: _seconds(run, settings[i]))
            _write()
    return settings[_known[key]]


def fastest_of(kernels: Any, mode: str, job: Job) -> Any:
    """Return the settings with which the kernels of a mode, `spike` or `count`, take the least time for a job."""
    run = functools.partial(kernels.run, job=job)
    return fastest(f"{mode} {job.kind}", kernels.settings_for(job), run, job.x.device)


@functools.lru_cache(maxsize=4096)  # each call of a layer asks, and formatting takes microseconds
def _full_key(key: str, device: torch.device, settings: tuple[object, ...]) -> str:
    return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}, {key}, {list(settings)}"


def _seconds(run: Callable[[T], object], settings: T) -> float:
    run(settings)  # compiles
    return statistics.median(_queued_seconds(run, settings) for _ in range(3))


def _queued_seconds(run: Callable[[T], object], settings: T) -> float:
    """Time runs that wait in line for the GPU: launching takes longer than a small kernel runs, and would hide it."""
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(_SLEEP_CYCLES)
    start.record()
    for _ in range(_RUNS):
        run(settings)
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop) / 1e3 / _RUNS


def _read() -> dict[str, int]:
    try:
        found = read_json(cache_dir() / "tuning.json")
    except InputError:  # the user has no folder, or nothing was measured yet
        return {}
    return {key: n for key, n in found.items() if type(n) is int} if isinstance(found, dict) else {}


def _write() -> None:
    try:
        path = cache_dir() / "tuning.json"
        make_folder(path.parent)
        write_json(path, {**_read(), **_known})
    except InputError:
        pass  # measured again next time
