"""Energy per operation, read from a TOML file in which every entry names its width, node and source."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files import check_faults, check_format
from ..plugins import NamedFiles

# Version of the keys of a table's file. Raise it when a key is added, removed, or changes its meaning.
FORMAT = 1
_FOLDER = Path(__file__).parent / "tables"
# A joule. Figures are sums of these times 64-bit counts, which a float must hold.
_MOST_PJ = 1e12
_MOST = 2**50
_TEXTS = ("process", "source", "version", "convention")


@dataclass(frozen=True)
class TableEntry:
    """One energy.

    Attributes:
        pj: of one operation, or one access, in picojoules.
        bits: width of the operation, or of what the access moves.
        node: technology node.
        source: publication.
        verified: whether this project found the number in its source, or in a second publication that cites it.
        capacity_bytes: size of a memory; 0 for anything else.
        note: remarks.
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
        """Energy of an access divided by the bytes that it moves."""
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
        """Return the name of the smallest SRAM that holds `capacity_bytes`.

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
        """Names of entries whose source this project did not see."""
        return tuple(name for name, entry in self.entries.items() if not entry.verified)


def table_names() -> tuple[str, ...]:
    """Return the names of the tables of this package, and of those that other installed packages bring."""
    return tuple(TABLES.names())


def load_table(name_or_path: str | os.PathLike | EnergyTable = "horowitz_45nm") -> EnergyTable:
    """Read a table of this package or of another installed one, by name, or one of your own, by path (*.toml).

    A table made in Python is checked and returned. A file holds `format = 1`, the texts process, source, version and
    convention, a table [sources] of publications by short name, and a table [entries.NAME] for each energy: pj (a
    number from 0 to 1e12), bits (an integer >= 1), node (a text), source (a short name), and optionally verified (true
    or false), capacity_bytes (an integer, needed for SRAM) and note (a text).

    Raises:
        InputError: there is no such table, its file has another format version, or something in it is missing or wrong.
            All faults are listed.
    """
    return TABLES.load(name_or_path)


def parse_table(content: Mapping[str, Any], name: str, where: str) -> EnergyTable:
    """Build a table from the content of its file.

    Args:
        content: of the file.
        name: of the table.
        where: the file, for messages.
    Raises:
        InputError: as `load_table`.
    """
    check_format(content, FORMAT, where, str(_FOLDER / "horowitz_45nm.toml"))
    faults: list[str] = []
    for key in _TEXTS:
        _expect(faults, key, _is_text(content.get(key)), "a text", content.get(key))
    known = ("format", *_TEXTS, "sources", "entries")
    faults += [f"{key}: unknown; expected one of {', '.join(known)}" for key in content if key not in known]
    sources = _section(faults, content, "sources", "[sources] with publications by short name")
    entries = _section(faults, content, "entries", "a table [entries.NAME] for each energy")
    for key, text in sources.items():
        _expect(faults, f"sources.{key}", _is_text(text), "a text", text)
    read = {key: _entry(faults, f"entries.{key}", entry, sources) for key, entry in entries.items()}
    check_faults(faults, where)
    found = {key: entry for key, entry in read.items() if entry is not None}
    return EnergyTable(name, *(content[key] for key in _TEXTS), entries=found)


def check_table(table: EnergyTable) -> None:
    """Raise an InputError unless a table that was made in Python has what its file must have."""
    entries = {key: vars(entry) if isinstance(entry, TableEntry) else entry for key, entry in table.entries.items()}
    sources = {entry["source"]: entry["source"] for entry in entries.values() if isinstance(entry, dict)}
    content = {"format": FORMAT, **{key: getattr(table, key) for key in _TEXTS}, "sources": sources, "entries": entries}
    parse_table(content, table.name, f"energy table {table.name!r}")


TABLES = NamedFiles("energy table", "spikebrain.energy_tables", _FOLDER, EnergyTable, parse_table, check_table)


def _section(faults: list[str], content: Mapping[str, Any], key: str, expected: str) -> dict[str, Any]:
    """Return a table of the file, or an empty one if it is missing or something else."""
    section = content.get(key)
    if isinstance(section, dict) and section:
        return section
    faults.append(f"{key}: expected {expected}, got {section!r}")
    return {}


def _entry(faults: list[str], where: str, content: Any, sources: Mapping[str, str]) -> TableEntry | None:
    """Return an energy, or None with what is wrong with it in `faults`."""
    if not isinstance(content, dict):
        _expect(faults, where, False, "a table with pj, bits, node and source", content)
        return None
    keys = tuple(f.name for f in fields(TableEntry))
    before = len(faults)
    faults += [f"{where}.{key}: unknown; expected one of {', '.join(keys)}" for key in content if key not in keys]
    content = {"verified": True, "capacity_bytes": 0, "note": "", **content}
    least = 1 if where.startswith("entries.sram") else 0
    for key, fine, expected in (
        ("pj", _is_energy(content.get("pj")), f"a number from 0 to {_MOST_PJ:g}, in picojoules"),
        ("bits", _is_integer(content.get("bits"), 1), "an integer from 1 to 2^50"),
        ("node", _is_text(content.get("node")), "a text such as '45 nm'"),
        ("source", content.get("source") in [*sources], f"one of {', '.join(sources)}, as in [sources]"),
        ("capacity_bytes", _is_integer(content["capacity_bytes"], least), f"an integer from {least} to 2^50"),
        ("verified", isinstance(content["verified"], bool), "true or false"),
        ("note", isinstance(content["note"], str), "a text"),
    ):
        _expect(faults, f"{where}.{key}", fine, expected, content.get(key))
    if len(faults) > before:
        return None
    return TableEntry(**{**content, "pj": float(content["pj"]), "source": sources[content["source"]]})


def _is_energy(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= _MOST_PJ


def _is_integer(value: Any, least: int) -> bool:
    return type(value) is int and least <= value <= _MOST


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _expect(faults: list[str], key: str, fine: bool, expected: str, got: Any) -> None:
    if not fine:
        faults.append(f"{key}: expected {expected}, got {got!r}")
