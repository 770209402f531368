"""Words for shell completion: names of presets, codes, models and layers, found without importing any room."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGE = Path(__file__).parents[1]
# A header of a .safetensors file that is larger is not read for a completion.
_MOST_BYTES = 2**24


def _announced(group: str) -> list[str]:
    """Return the names that other packages announce."""
    return [entry.name for entry in metadata.entry_points(group=f"spikebrain.{group}")]


def _presets(folder: str, group: str) -> Callable[[str], list[str]]:
    def names(incomplete: str) -> list[str]:
        own = [path.stem for path in (_PACKAGE / folder).glob("*.toml")]
        return _starting(incomplete, [*own, *_announced(group)])

    return names


def _registered(folder: str, registry: str, group: str) -> Callable[[str], list[str]]:
    """Return what completes the names of registered classes, which stand in the sources as `@ENCODERS.register`."""
    pattern = re.compile(rf'@{registry}\.register\("([\w-]+)"\)')

    def names(incomplete: str) -> list[str]:
        own = [name for path in (_PACKAGE / folder).rglob("*.py") for name in pattern.findall(path.read_text("utf-8"))]
        return _starting(incomplete, [*own, *_announced(group)])

    return names


def _starting(incomplete: str, names: list[str]) -> list[str]:
    return sorted(name for name in set(names) if name.startswith(incomplete))


chips = _presets("chip/presets", "chips")
tables = _presets("energy/tables", "energy_tables")
encoders = _registered("coding", "ENCODERS", "encoders")
neurons = _registered("neuro", "NEURONS", "neurons")
backends = _registered("backends", "BACKENDS", "backends")
mappings = _registered("chip", "MAPPINGS", "mappings")
orders = _registered("chip", "ORDERS", "orders")


def words(*known: str) -> Callable[[str], list[str]]:
    """Return what completes one of some words."""
    return lambda incomplete: _starting(incomplete, list(known))


def models(incomplete: str) -> list[str]:
    """Return the names of models: the built-in one, and files and folders that may be models."""
    folder, slash, _ = incomplete.rpartition("/")
    try:
        paths = [path for path in Path(folder + slash or ".").iterdir() if _may_be(path)]
    except OSError:
        paths = []
    found = [f"{folder}{slash}{path.name}" for path in paths]
    return _starting(incomplete, ["smollm2", *found])


def _may_be(path: Path) -> bool:
    return path.is_dir() or path.suffix in (".gguf", ".safetensors", ".json")


def layers_of(ctx: Any, incomplete: str) -> list[str]:
    """Return patterns for the kinds of layers of the model that was typed, where its files say their names."""
    names = _tensor_names(Path(str(ctx.params.get("model") or "")))
    kinds = {re.sub(r"\.\d+\.", ".*.", name.removesuffix(".weight")) for name in names if name.endswith(".weight")}
    ends = {"*" + kind.rpartition(".")[2] for kind in kinds}
    return _starting(incomplete, [*kinds, *ends])


def _tensor_names(path: Path) -> list[str]:
    """Return the names of the tensors of a safetensors file or folder; none if it is anything else."""
    try:
        index = path / "model.safetensors.index.json"
        if index.is_file():
            return list(json.loads(index.read_text("utf-8"))["weight_map"])
        file = path / "model.safetensors" if path.is_dir() else path
        if file.suffix != ".safetensors":
            return []
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            return [] if length > _MOST_BYTES else list(json.loads(opened.read(length)))
    except (OSError, ValueError, KeyError, TypeError):  # a completion never fails
        return []
