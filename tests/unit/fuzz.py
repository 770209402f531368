"""Damaged files, made at run time, for every reader: an error of ours or the same content, in little time and memory.

As a script it runs many of them, in several processes, and goes on where it stopped:

    python tests/unit/fuzz.py --count 100000 --processes 2 --state fuzz.json

An input follows from its reader and its number alone, so that a failure can be run again with --first N --count 1.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import resource
import signal
import struct
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from fuzz_subjects import Subject, subjects

PORTION = 1000
# Portions of a process.
PORTIONS = 25
# What an input may take beyond what the process has; and how long, in seconds.
MEMORY_BYTES, LONGEST_S = 2**30, 20
_HUGE = (0, 1, 2**31 - 1, 2**32 - 1, 10**18, 2**63 - 1, 2**64 - 1)
_PIECES = (
    *(b"-", b"9" * 400, b"9" * 5000, b"1e999", b"NaN", b"null", b"1000000000000000000", b"-1", b"{}", b"[]"),
    *(b"[" * 2000, b'{"a":' * 2000, b"\xff", b'"', b"true"),
)


def mutated(content: bytes, rng: random.Random, stop: int | None = None) -> bytes:  # noqa: PLR0911 - a kind each
    """Return the bytes with one fault: bits, bytes, lines or values changed, lost, doubled, or huge numbers."""
    at = rng.randrange(stop or len(content))
    kind = rng.randrange(8)
    if kind == 0:  # flip a bit
        return content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]
    if kind == 1:  # cut some bytes out
        return content[:at] + content[at + rng.randrange(1, 40) :]
    if kind == 2:  # double some
        return content[:at] + content[max(0, at - rng.randrange(1, 40)) :]
    if kind == 3:  # cut the file short
        return content[:at]
    if kind == 4:  # a count or a length that is huge
        number = struct.pack("<Q", rng.choice(_HUGE))[: rng.choice((4, 8))]
        return content[:at] + number + content[at + len(number) :]
    if kind == 5:  # other bytes
        return content[:at] + rng.randbytes(4) + content[at + 4 :]
    lines = content.splitlines(keepends=True)
    line = rng.randrange(len(lines))
    if kind == 6:  # lose a line
        del lines[line]
        return b"".join(lines)
    # Something else in the place of a value.
    key, separator, rest = lines[line].partition(rng.choice((b"=", b":")))
    end = min((rest.index(mark) for mark in (b",", b"}", b"\n") if mark in rest), default=len(rest))
    lines[line] = key + separator + rng.choice(_PIECES) + rest[end:]
    return b"".join(lines)


def run_one(subject: Subject, folder: Path, name: str, number: int) -> tuple[bool, str | None]:
    """Read one damaged file; return whether it was refused with our error, and what went wrong."""
    from spikebrain.errors import SpikebrainError  # noqa: PLC0415

    path = folder / subject.name
    path.write_bytes(mutated(subject.content, random.Random(f"{name} {number}"), subject.stop))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = subject.read(path)
    except SpikebrainError as error:
        said = str(error)
        named = subject.name in said or folder.name in said
        return True, None if named else f"does not name the file: {said}"
    except Exception as error:
        return False, f"{type(error).__name__}: {error}"
    if subject.expected is not None and found != subject.expected:
        return False, "another content"
    return False, None


def run_portion(name: str, first: int, count: int, began_one: Callable[[int], Any] = int) -> dict[str, Any]:
    """Read damaged files first to first + count - 1 with limits on memory and time.

    Args:
        name: of the reader.
        first: number of the first.
        count: how many.
        began_one: told the number of each before it is read.
    """
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        subject = subjects()[name](folder)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, resource.RLIM_INFINITY))
        signal.signal(signal.SIGALRM, _too_long)
        refused, faults, began = 0, [], time.monotonic()
        for number in range(first, first + count):
            began_one(number)
            signal.alarm(LONGEST_S)
            was_refused, fault = run_one(subject, folder, name, number)
            refused += was_refused
            if fault is not None:
                faults.append([number, fault[:300]])
        signal.alarm(0)
    seconds = time.monotonic() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"count": count, "refused": refused, "faults": faults, "seconds": seconds, "peak_bytes": peak}


def _too_long(*arguments: Any) -> None:
    raise TimeoutError(f"took longer than {LONGEST_S} s")


def _serve(connection: Connection, number: Any, run: Callable[..., dict[str, Any]]) -> None:
    """Run the portions that come, and tell which input is being read."""
    while (task := connection.recv()) is not None:
        connection.send(run(*task, began_one=lambda n: setattr(number, "value", n)))


class Worker:
    """A process that runs portions: a new one after a few, and after an input that ended it, which is a fault.

    Args:
        run: runs a portion.
    """

    def __init__(self, run: Callable[..., dict[str, Any]] = run_portion) -> None:
        self._run, self._process, self._left = run, None, 0

    def run(self, task: tuple[str, int, int]) -> dict[str, Any]:
        """Return what was found in a portion: a reader, the number of the first input, and how many."""
        name, first, count = task
        found = {"count": count, "refused": 0, "faults": [], "seconds": 0.0, "peak_bytes": 0}
        while first < task[1] + count:
            if self._left == 0:
                self._start()
            self._left -= 1
            self._number.value = first - 1
            self._ours.send((name, first, task[1] + count - first))
            try:
                part = self._ours.recv()
                first = task[1] + count
            except (EOFError, ConnectionError):
                self._process.join()
                self._left, part = 0, {"refused": 0, "faults": [], "seconds": 0.0, "peak_bytes": 0}
                assert self._number.value >= first, f"{name}: no sound file"
                part["faults"] = [[self._number.value, f"ended the process, exit code {self._process.exitcode}"]]
                first = self._number.value + 1
            for key in ("refused", "faults", "seconds"):
                found[key] += part[key]
            found["peak_bytes"] = max(found["peak_bytes"], part["peak_bytes"])
        return found

    def _start(self) -> None:
        self.close()
        context = multiprocessing.get_context("spawn")
        self._ours, theirs = context.Pipe()
        self._number = context.Value("q", -1)
        self._process = context.Process(target=_serve, args=(theirs, self._number, self._run), daemon=True)
        self._process.start()
        theirs.close()
        self._left = PORTIONS

    def close(self) -> None:
        """End the process."""
        if self._process is not None and self._process.is_alive():
            self._ours.send(None)
            self._process.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--readers", nargs="*", default=list(subjects()))
    parser.add_argument("--count", type=int, default=1000, help="inputs a reader")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--state", type=Path, help="JSON file of the portions that are done; they are not run again")
    options = parser.parse_args()
    done = json.loads(options.state.read_text()) if options.state and options.state.exists() else {}
    end = options.first + options.count
    tasks = [
        (name, first, min(PORTION, end - first))
        for first in range(options.first, end, PORTION)
        for name in options.readers
    ]
    tasks = [task for task in tasks if str(task) not in done]
    lock = threading.Lock()

    def work() -> None:
        process = Worker()
        while True:
            with lock:
                if not tasks:
                    break
                task = tasks.pop(0)
            found = process.run(task)
            with lock:
                done[str(task)] = {"reader": task[0], **found}
                if options.state:
                    partial = options.state.with_suffix(".partial")
                    partial.write_text(json.dumps(done))
                    os.replace(partial, options.state)
        process.close()

    with ThreadPoolExecutor(options.processes) as pool:
        for one in [pool.submit(work) for _ in range(options.processes)]:
            one.result()
    for name in options.readers:
        rows = [row for row in done.values() if row["reader"] == name]
        total, refused = (sum(row[key] for row in rows) for key in ("count", "refused"))
        faults = [fault for row in rows for fault in row["faults"]]
        seconds = sum(row["seconds"] for row in rows)
        row = f"{name:12} {total:8,} inputs  {refused:8,} refused  {len(faults):4} faults  {seconds:6,.0f} s"
        print(f"{row}  {faults[:3]}" if faults else row)


if __name__ == "__main__":
    main()
