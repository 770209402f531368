"""The safetensors files of a model folder: find them, list their tensors, and read one tensor at a time.

A folder's weights are model.safetensors, or the files that its index names. Anything else that ends in .safetensors is
not read: the state of a training, an adapter, or what an interrupted download left.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from ...errors import CheckpointError
from ...files import parse_json, read_json
from .checksums import check_tensor
from .hub import DERIVED
from .single_file import check_safetensors

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
# In the metadata of a shard: the checksum of each of its tensors, by name, as JSON.
CHECKSUMS = "spikebrain-checksums"
# In the metadata of the index: the checksums of the folder's other files.
SUMS = "sha256"
# safetensors' names of integer types.
_INTEGERS = ("BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64")
_NUMBERED = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")


def shard_name(number: int, count: int) -> str:
    """Return the name of a weight file, numbered from 1."""
    return f"model-{number:05d}-of-{count:05d}.safetensors"


def is_weight_file(name: str) -> bool:
    """Return whether weights of a whole model are kept under that name."""
    return name == SINGLE or _NUMBERED.fullmatch(name) is not None


def read_index(path: Path) -> dict[str, Any] | None:
    """Return the index of a folder: its "weight_map" says which file holds which tensor; None if there is none.

    Raises:
        CheckpointError: the index is damaged.
    """
    index = path / INDEX
    if not index.is_file():
        return None
    content = read_json(index, CheckpointError)
    try:
        names = content["weight_map"].values()
        content["metadata"] = dict(content.get("metadata") or {})
        outside = [name for name in names if not isinstance(name, str) or Path(name).name != name]
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{index}: expected JSON with a weight_map ({error}). Fetch it again.") from error
    if outside:
        raise CheckpointError(f"{index}: expected names of files in its folder, got {outside[0]!r}. Fetch it again.")
    return content


def find_shards(path: Path, index: dict[str, Any] | None) -> list[Path]:
    """Return the weight files of a folder, none if it has none.

    Args:
        path: the folder.
        index: as `read_index` returned it.
    Raises:
        CheckpointError: files of the index are missing (the message lists all of them), there are numbered files
            without an index, or an index and model.safetensors, which may be of two models.
    """
    single = path / SINGLE
    numbered = sorted(file.name for file in path.glob("*.safetensors") if _NUMBERED.fullmatch(file.name))
    if index is None:
        if numbered:
            raise CheckpointError(
                f"{path}: expected {INDEX} beside {numbered[0]}, it is missing: a download or a save was interrupted, "
                "or the files are of several models. Fetch or save the model again."
            )
        return [single] if single.is_file() else []
    names = sorted(set(index["weight_map"].values()))
    missing = [name for name in names if not (path / name).is_file()]
    if missing:
        raise CheckpointError(f"{path}: {len(missing)} weight files of its index are missing: {', '.join(missing)}.")
    if single.is_file() and SINGLE not in names:
        raise CheckpointError(
            f"{path}: has both {SINGLE} and {INDEX}, which names other files, so it may hold two models. Delete the "
            "files of the one that is not wanted."
        )
    return [path / name for name in names]


class Shards:
    """Tensors of a model folder by name. Nothing is cached: each tensor is read when it is requested.

    Args:
        path: the folder.
    Attributes:
        shapes: shape of every tensor, by name.
        dtypes: number format of every tensor, in safetensors' words ("F32", "I8"), by name.
        metadata: what the index says besides; empty if there is no index.
    Raises:
        CheckpointError: there are no safetensors files, or one is missing or damaged, or two hold the same tensor, or
            the files do not hold what the index says.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        index = read_index(path)
        self.metadata: dict[str, Any] = {} if index is None else index["metadata"]
        self._files: dict[str, Path] = {}
        self._checksums: dict[str, Any] = {}
        files = find_shards(path, index)
        if not files:
            others = ", ".join(sorted(file.name for file in path.glob("*.safetensors")))
            found = f"{others}, which are not read as a model's weights" if others else "none"
            raise CheckpointError(
                f"{path}: expected safetensors weights, found {found}. Name a folder with {SINGLE} or {INDEX}."
            )
        for file in files:
            self._open(file)
        if index is not None:
            self._compare(index["weight_map"])

    def _open(self, file: Path) -> None:
        check_safetensors(file)
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - not a dict
                if name in self._files:
                    raise CheckpointError(
                        f"{self.path}: {name} is in {self._files[name].name} and in {file.name}. Fetch it again."
                    )
                self._files[name] = file
                part = opened.get_slice(name)
                self.shapes[name] = tuple(part.get_shape())
                self.dtypes[name] = part.get_dtype()
            written = (opened.metadata() or {}).get(CHECKSUMS)
        if written is None:  # not from `save`
            return
        try:
            self._checksums |= parse_json(written, f"{file}: its checksums", CheckpointError)
        except TypeError as error:
            raise CheckpointError(f"{file}: its checksums are damaged ({error}). Fetch it again.") from error

    def check_floats(self) -> None:
        """Raise a CheckpointError for a weight of integers, which is none without its scales."""
        integers = [name for name, dtype in self.dtypes.items() if name.endswith(".weight") and dtype in _INTEGERS]
        if integers:
            raise CheckpointError(
                f"{self.path}: expected weights of floating-point numbers, got {self.dtypes[integers[0]]} for "
                f"{integers[0]}, and config.json names no quantisation. Fetch the float model."
            )

    def _compare(self, weight_map: dict[str, str]) -> None:
        """Raise unless every tensor is where the index says, and no other tensor is there."""
        found = {name: file.name for name, file in self._files.items()}
        wrong = sorted(name for name in found.keys() | weight_map.keys() if found.get(name) != weight_map.get(name))
        if wrong:
            details = ", ".join(
                f"{n} ({weight_map.get(n, 'no file')}, found in {found.get(n, 'none')})" for n in wrong[:4]
            )
            raise CheckpointError(
                f"{self.path}: {len(wrong)} tensors are not where {INDEX} says: {details}"
                f"{', ...' if len(wrong) > 4 else ''}. Fetch it again."
            )

    def misfits(
        self, wanted: Mapping[str, tuple[int, ...]], missing: Iterable[str], optional: Set[str] = frozenset()
    ) -> dict[str, list[str]]:
        """Return, by what is wrong, which tensors are not those of a model.

        Args:
            wanted: shapes of the model's tensors, by name.
            missing: names that should be here and are not.
            optional: names that may be here besides.
        """
        unexpected = self.shapes.keys() - wanted.keys() - optional
        return {
            "missing": sorted(missing),
            "unexpected": sorted(name for name in unexpected if not DERIVED.search(name)),
            "of another shape": [
                f"{name} {self.shapes[name]} instead of {shape}"
                for name, shape in sorted(wanted.items())
                if self.shapes.get(name, shape) != shape
            ],
        }

    def refuse(self, wrong: Mapping[str, Sequence[str]]) -> None:
        """Raise a CheckpointError that lists what is wrong with which tensors, if anything is."""
        listed = "; ".join(f"{what}: {', '.join(names)}" for what, names in wrong.items() if names)
        if listed:
            raise CheckpointError(f"{self.path}: its tensors do not match the model. {listed}. Fetch it again.")

    def read(self, name: str, device: torch.device) -> Tensor:
        """Return a tensor as a copy, not as a view of the file.

        Raises:
            CheckpointError: it is not the one that `save` wrote.
        """
        # Opened for one tensor, so that the file's pages don't stay in memory.
        with safe_open(self._files[name], "pt") as opened:
            tensor = opened.get_tensor(name)
            if self._checksums:
                check_tensor(tensor, name, self._checksums.get(name), str(self._files[name]))
            return tensor.to(device, copy=True)
