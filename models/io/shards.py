"""The safetensors files of a model folder: find them, list their tensors, and read one tensor at a time."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from ...errors import CheckpointError
from ...files import read_json
from .single_file import check_safetensors

INDEX = "model.safetensors.index.json"


def find_shards(path: Path) -> list[Path]:
    """Return the weight files of a folder: those in its index, if it has one.

    Raises:
        CheckpointError: the index is damaged, or names files that are missing; the message lists all of them.
    """
    index = path / INDEX
    if not index.is_file():
        return sorted(path.glob("*.safetensors"))
    content = read_json(index, CheckpointError)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError(f"{index}: expected JSON with a weight_map of file names. Fetch it again.")
    names = set(weight_map.values())
    missing = sorted(name for name in names if not (path / name).is_file())
    if missing:
        raise CheckpointError(f"{path}: {len(missing)} weight files of its index are missing: {', '.join(missing)}.")
    return sorted(path / name for name in names)


class Shards:
    """Tensors of a model folder by name. Nothing is cached: each tensor is read when it is requested.

    Args:
        path: the folder.
    Attributes:
        shapes: shape of every tensor, by name.
    Raises:
        CheckpointError: there are no safetensors files, or one is missing or damaged, or two hold the same tensor.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._files: dict[str, Path] = {}
        files = find_shards(path)
        if not files:
            raise CheckpointError(f"{path}: expected safetensors weights, found none.")
        for file in files:
            check_safetensors(file)
            with safe_open(file, "pt") as opened:
                for name in opened.keys():  # noqa: SIM118 - not a dict
                    if name in self._files:
                        raise CheckpointError(f"{path}: {name} is in {self._files[name].name} and in {file.name}.")
                    self._files[name] = file
                    self.shapes[name] = tuple(opened.get_slice(name).get_shape())

    def read(self, name: str, device: torch.device) -> Tensor:
        """Return a tensor as a copy, not as a view of the file."""
        # Opened for one tensor, so that the file's pages don't stay in memory.
        with safe_open(self._files[name], "pt") as opened:
            return opened.get_tensor(name).to(device, copy=True)
