"""Energy per operation, read from a TOML file in which every entry names its width, node and source."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import InputError

_FOLDER = Path(__file__).parent / "tables"
_TEXTS = ("process", "source", "version", "convention")


@dataclass(frozen=True)
class TableEntry:
    """One energy.

    Attributes:
        pj: of one operation, or one access, in picojoules.
        bits: that the operation works on, or the access moves.
        node: technology.
        source: publication.
        verified: whether the number was found in its source, or in a second place that cites it, by this project.
        capacity_bytes: of a memory; 0 for what is none.
        note: what else is to be known.
    """

    pj: float
    bits: int
    node: str
    source: str
    verified: bool = True
    capacity_bytes: int = 0
    note: str = ""

    @property
    def pj_per_byte(self) -> float:
        """Energy of an access over the bytes that it moves."""
        return self.pj / (self.bits / 8)


@dataclass(frozen=True)
class EnergyTable:
    """Energy per operation of one process or chip.

    Attributes:
        name: of the table.
        process: technology node.
        source: publication that most numbers are from.
        version: of the table.
        convention: how memory is counted.
        entries: by operation, such as "int8_add", "fp16_mul", "sram_8kb", "dram", "synop".
    """

    name: str
    process: str
    source: str
    version: str
    convention: str
    entries: Mapping[str, TableEntry] = field(repr=False)

    def __getitem__(self, operation: str) -> float:
        return self.entry(operation).pj

    def __contains__(self, operation: object) -> bool:
        return operation in self.entries

    def entry(self, operation: str) -> TableEntry:
        """Return an entry by name.

        Raises:
            InputError: there is none; the message lists those there are.
        """
        if operation not in self.entries:
            raise InputError(
                f"energy table {self.name}: expected an entry {operation!r}, it has {', '.join(self.entries)}. "
                "Take a table that has it, or add it with its source to a file of your own."
            )
        return self.entries[operation]

    def sram(self, capacity_bytes: int) -> str:
        """Return the name of the smallest SRAM that holds so many bytes.

        Raises:
            InputError: none does, or there is none.
        """
        sizes = {name: e.capacity_bytes for name, e in self.entries.items() if name.startswith("sram")}
        fitting = [name for name, size in sizes.items() if size >= capacity_bytes]
        if not fitting:
            largest = f"at most {max(sizes.values()):,} bytes" if sizes else "a table with SRAM"
            raise InputError(
                f"energy table {self.name}: expected an SRAM of {largest}, got {capacity_bytes:,}. Name the size of "
                "a bank, not of all banks together."
            )
        return min(fitting, key=sizes.__getitem__)

    def scaled(self, operation: str, factor: float) -> EnergyTable:
        """Return a table in which one energy is multiplied by a factor."""
        entry = self.entry(operation)
        return replace(self, entries={**self.entries, operation: replace(entry, pj=entry.pj * factor)})

    @property
    def unverified(self) -> tuple[str, ...]:
        """Names of entries whose source was not seen."""
        return tuple(name for name, entry in self.entries.items() if not entry.verified)


def table_names() -> tuple[str, ...]:
    """Return the names of the tables that come with the package."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.toml")))


def load_table(name_or_path: str | os.PathLike = "horowitz_45nm") -> EnergyTable:
    """Read a table that comes with the package, by name, or one of your own, by path (*.toml).

    A file holds the texts process, source, version and convention, a table [sources] of publications by short name, and
    a table [entries.NAME] for each energy: pj (a number >= 0), bits (an integer >= 1), node (a text), source (a short
    name), and optionally verified (true or false), capacity_bytes (an integer, needed for SRAM) and note.

    Raises:
        InputError: no such table, or something in it is missing or wrong; the message names the file and the key.
    """
    given = os.fspath(name_or_path)
    path = Path(given) if given.endswith(".toml") else _FOLDER / f"{given}.toml"
    if not path.is_file():
        known = ", ".join(table_names())
        raise InputError(f"energy table: expected one of {known}, or the path of a .toml file; got {given!r}.")
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a TOML file: {error}") from error
    for key in _TEXTS:
        _require(path, key, _is_text(content.get(key)), "a text", content.get(key))
    sources, entries = content.get("sources"), content.get("entries")
    _require(path, "sources", isinstance(sources, dict) and bool(sources), "publications by short name", sources)
    _require(path, "entries", isinstance(entries, dict) and bool(entries), "a table [entries.NAME] for each", entries)
    assert isinstance(sources, dict)
    assert isinstance(entries, dict)
    for name, text in sources.items():
        _require(path, f"sources.{name}", _is_text(text), "a text", text)
    read = {name: _entry(path, f"entries.{name}", entry, sources) for name, entry in entries.items()}
    return EnergyTable(path.stem, *(content[key] for key in _TEXTS), entries=read)


def _entry(path: Path, where: str, content: Any, sources: Mapping[str, str]) -> TableEntry:
    _require(path, where, isinstance(content, dict), "a table with pj, bits, node and source", content)
    unknown = sorted(content.keys() - TableEntry.__dataclass_fields__.keys())
    _require(path, where, not unknown, f"only {', '.join(TableEntry.__dataclass_fields__)}", unknown)
    pj, bits, size = content.get("pj"), content.get("bits"), content.get("capacity_bytes", 0)
    is_energy = isinstance(pj, int | float) and not isinstance(pj, bool) and 0 <= pj < float("inf")
    _require(path, f"{where}.pj", is_energy, "a number >= 0 in picojoules", pj)
    _require(path, f"{where}.bits", type(bits) is int and bits >= 1, "an integer >= 1", bits)
    _require(path, f"{where}.node", _is_text(content.get("node")), "a text such as '45 nm'", content.get("node"))
    source = content.get("source")
    _require(path, f"{where}.source", source in sources, f"one of {', '.join(sources)}, as in [sources]", source)
    least = 1 if where.startswith("entries.sram") else 0
    _require(path, f"{where}.capacity_bytes", type(size) is int and size >= least, f"an integer >= {least}", size)
    verified, note = content.get("verified", True), content.get("note", "")
    _require(path, f"{where}.verified", isinstance(verified, bool), "true or false", verified)
    _require(path, f"{where}.note", isinstance(note, str), "a text", note)
    return TableEntry(float(pj), bits, content["node"], sources[source], verified, size, note)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _require(path: Path, key: str, fine: bool, expected: str, got: Any) -> None:
    if not fine:
        raise InputError(f"{path}: expected {expected} for {key!r}, got {got!r}.")
