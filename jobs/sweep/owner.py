"""Who runs a trial, and whether that process still lives: what makes a trial of a dead one known as lost."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Seconds between two signs of life, and after how many without one a process elsewhere is taken for dead.
BEAT_S = 30.0
LEASE_S = 300.0


def this_process() -> dict[str, Any]:
    """Return what names this process: machine, boot, process and its time of start; and when it was last seen."""
    return {
        "host": socket.gethostname(),
        "boot": _text("/proc/sys/kernel/random/boot_id"),
        "space": _link("/proc/self/ns/pid"),
        "pid": os.getpid(),
        "started": _started(os.getpid()),
        "seen": time.time(),
    }


def lives(owner: Mapping[str, Any] | None, now: float | None = None) -> bool:
    """Return whether a process may still be at work on its trial.

    On this machine the system knows, if it has /proc. A process of another machine, or of a container whose processes
    are not visible from here, counts as dead if it was not seen for `LEASE_S`.

    Args:
        owner: what `this_process` gave there; None for nobody.
        now: seconds since the epoch; None for the time of the call.
    """
    if owner is None:
        return False
    here = this_process()
    if owner.get("host") == here["host"] and owner.get("boot") and here["boot"]:
        if owner["boot"] != here["boot"]:
            return False
        if owner.get("space") == here["space"]:
            return owner.get("started") is not None and _started(owner["pid"]) == owner["started"]
    return (time.time() if now is None else now) - owner.get("seen", 0.0) < LEASE_S


def _text(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return None


def _link(path: str) -> str | None:
    try:
        return os.readlink(path)
    except OSError:
        return None


def _started(pid: int) -> str | None:
    """Return when a process of this machine started, in ticks since the boot; None if it does not run."""
    fields = (_text(f"/proc/{pid}/stat") or "").rpartition(")")[2].split()
    return fields[19] if len(fields) > 19 and fields[0] not in "ZX" else None
