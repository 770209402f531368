"""Write files completely or not at all, and read TOML files so that all faults are told at once."""

from __future__ import annotations

import os
import stat
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from .errors import InputError


def write_whole(path: Path, text: str) -> None:
    """Write a UTF-8 file in one step: a reader finds either the old text or the new one, even after a crash.

    Args:
        path: path of the file; its folder must exist.
        text: content of the file.
    Raises:
        OSError: the file cannot be written; an existing file stays unchanged.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def remove(path: Path) -> None:
    """Delete a file, if there is one, and what killed runs left of it while they wrote it."""
    for file in (path, *path.parent.glob(f"{path.name}.*.partial")):
        file.unlink(missing_ok=True)


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file that others may read if the user's umask says so; safetensors alone makes it private.

    Raises:
        OSError: the file cannot be written.
        SafetensorError: the same.
    """
    path.touch()
    mode = stat.S_IMODE(path.stat().st_mode)
    save_file(tensors, path, metadata=metadata)  # puts a file of its own in the place
    path.chmod(mode)


def read_toml(name_or_path: str | os.PathLike, folder: Path, what: str) -> tuple[Path, dict[str, Any]]:
    """Read a TOML file that comes with the package, by name, or another one, by path (*.toml).

    Args:
        name_or_path: name without ending, or path.
        folder: of the files that come with the package.
        what: the file describes, for messages.
    Returns:
        The path that was read, and its content.
    Raises:
        InputError: there is no such file, or it is not a TOML file.
    """
    given = os.fspath(name_or_path)
    path = Path(given) if given.endswith(".toml") else folder / f"{given}.toml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in folder.glob("*.toml")))
        raise InputError(f"{what}: expected one of {known}, or the path of a .toml file; got {given!r}.")
    try:
        return path, tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a TOML file: {error}") from error


def check_format(content: Mapping[str, Any], expected: int, where: str, example: str) -> None:
    """Check the format version of a TOML file, before anything else in it.

    Args:
        content: of the file.
        expected: the version that this release reads.
        where: the file, for the message.
        example: a file in this format.
    Raises:
        InputError: the version is missing or another one; the message says what to do.
    """
    found = content.get("format")
    if type(found) is int and found == expected:
        return
    line = f"format = {expected}"
    if "format" not in content:
        raise InputError(
            f"{where}: expected {line!r} at the top of the file, but it has no format version. Compare its keys with "
            f"{example} and add the line {line!r}."
        )
    raise InputError(
        f"{where}: expected {line!r}, got format = {found!r}: the file is for another version of spikebrain. Bring its "
        f"keys in line with {example} and set {line!r}, or use the version of spikebrain that the file was written for."
    )


def check_faults(faults: Sequence[str], where: str) -> None:
    """Raise an InputError that lists all faults of a file, if there are any."""
    if faults:
        raise InputError(f"{where}: {len(faults)} fault(s):\n  " + "\n  ".join(faults))
