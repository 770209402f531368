"""Checksums of what `save` wrote: a file that was damaged is refused, so that it never gives another result."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import CheckpointError


def of_tensor(tensor: Tensor) -> str:
    """Return the SHA-256 of a tensor's type, shape and values, in hexadecimal."""
    whole = tensor.detach().cpu().contiguous()
    found = hashlib.sha256(f"{whole.dtype} {tuple(whole.shape)}".encode())
    found.update(whole.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def of_text(text: str) -> str:
    """Return the SHA-256 of a text, in hexadecimal."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def of_files(folder: Path, leave: str) -> dict[str, str]:
    """Return the SHA-256 of all files below a folder by relative path, but for those whose name ends in `leave`."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and not file.name.endswith(leave))
    return {file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def check_files(folder: Path, expected: Mapping[str, Any], listed_in: str) -> None:
    """Raise a CheckpointError that names the files of a folder that are missing or have another checksum.

    Args:
        folder: the folder.
        expected: checksums by relative path, of the files that `save` wrote.
        listed_in: where these are, for the message.
    """
    found = {name: _of_file(folder / name) for name in expected}
    changed = sorted(name for name, checksum in expected.items() if found[name] != checksum)
    if changed:
        raise CheckpointError(
            f"{folder}: {', '.join(changed)}: not what was saved with these weights (another checksum, or missing): "
            "damaged or changed. Fetch or save the model again; after a change on purpose, delete the names from "
            f"{listed_in}."
        )


def _of_file(path: Path) -> str | None:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None


def check_tensor(tensor: Tensor, name: str, expected: Any, where: str) -> None:
    """Raise a CheckpointError unless a tensor has the checksum that it was saved with.

    Args:
        tensor: as it was read.
        name: of the tensor.
        expected: its checksum in the file, None if it has none.
        where: the file or folder, for the message.
    """
    if expected is None:
        raise CheckpointError(f"{where}: has no checksum of {name}. Write the file with spikebrain.save.")
    if of_tensor(tensor) != expected:
        raise CheckpointError(
            f"{where}: {name} is not what was saved (another checksum): the file is damaged or was changed. "
            "Fetch it or save it again."
        )
