"""Checksums of what `save` wrote: a file that was damaged is refused, so that it never gives another result."""

from __future__ import annotations

import hashlib
import json
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


def of_json(content: Any) -> str:
    """Return the SHA-256 of JSON values, in hexadecimal; the order of keys and white space do not count."""
    return of_text(json.dumps(content, sort_keys=True))


def of_text(text: str) -> str:
    """Return the SHA-256 of a text, in hexadecimal."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


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
