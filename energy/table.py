"""Energy per operation, read from a TOML file that names node and source."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError

_FOLDER = Path(__file__).parent / "tables"


@dataclass(frozen=True)
class EnergyTable:
    """Energy per operation of one process.

    Attributes:
        name: of the table.
        process: technology node.
        source: publication that the numbers are from.
        energy_pj: picojoules by operation.
    """

    name: str
    process: str
    source: str
    energy_pj: Mapping[str, float]

    def __getitem__(self, operation: str) -> float:
        if operation not in self.energy_pj:
            raise InputError(
                f"energy table {self.name}: expected an entry {operation!r}, it has {list(self.energy_pj)}."
            )
        return self.energy_pj[operation]


def load_table(name_or_path: str | os.PathLike = "horowitz_45nm") -> EnergyTable:
    """Read a table that comes with the package, by name, or one of your own, by path (*.toml).

    Raises:
        InputError: no such table, or it lacks a name, process or source, or has an entry that is no number >= 0.
    """
    given = os.fspath(name_or_path)
    path = Path(given) if given.endswith(".toml") else _FOLDER / f"{given}.toml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in _FOLDER.glob("*.toml")))
        raise InputError(f"energy table: expected one of {known}, or the path of a .toml file; got {given!r}.")
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a TOML file: {error}") from error
    for key in ("process", "source"):
        if not isinstance(content.get(key), str) or not content[key].strip():
            raise InputError(f"{path}: expected a text for {key!r}, got {content.get(key)!r}.")
    entries = content.get("energy_pj")
    if not isinstance(entries, dict) or not entries:
        raise InputError(f"{path}: expected a table [energy_pj] with an entry per operation.")
    for key, value in entries.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
            raise InputError(f"{path}: expected energy_pj.{key} to be a number >= 0 in picojoules, got {value!r}.")
    return EnergyTable(path.stem, content["process"], content["source"], {k: float(v) for k, v in entries.items()})
