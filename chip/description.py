"""A description of a chip: read from a TOML file in which every number has a unit, a process node and a source."""

from __future__ import annotations

import difflib
import json
import os
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files import check_faults, check_format
from ..plugins import NamedFiles
from .parts import Barrier, Core, DigitalUnit, Dram, EncoderUnit, Handshake, Link, Mesh, Packet

# Version of the keys of a chip's file. Raise it when a key is removed, changes its meaning, or is added without a value
# for the files that lack it.
FORMAT = 1
_FOLDER = Path(__file__).parent / "presets"
_UNITS = ("share", "pj", "ns", "mw", "bytes", "bits", "packets", "bits_per_ns", "bytes_per_ns")
# The length of a queue is summed over time in 64-bit picoseconds: 4096 packets for a quarter of an hour fit. No single
# time may come near that.
_LONGEST_NS = 1e6
# Of an energy (a joule), a power or a bandwidth: sums of it times 64-bit counts must stay finite.
_MOST_OF_A_FLOAT = 1e12
_LEAST_BANDWIDTH = 1e-6
# What a key of a file says, in order.
_IN_FILE = ("value", "process", "source")


@dataclass(frozen=True)
class Description:
    """A chip: its parts, and where each number is from.

    Attributes:
        name: of the chip; that of its file.
        process: technology node.
        mesh, packet, link, handshake, core, encoder, digital, dram, barrier: the parts.
        sources: (process node, source) of each number, by "part.key".
    """

    name: str
    process: str
    mesh: Mesh
    packet: Packet
    link: Link
    handshake: Handshake
    core: Core
    encoder: EncoderUnit
    digital: DigitalUnit
    dram: Dram
    barrier: Barrier
    sources: Mapping[str, tuple[str, str]] = field(hash=False, repr=False)

    @property
    def num_cores(self) -> int:
        """Number of cores of the whole mesh."""
        return self.mesh.columns * self.mesh.rows * self.mesh.cores_per_tile

    def value(self, key: str) -> Any:
        """Return the value of a key such as "core.add_pj".

        Raises:
            InputError: there is no such key.
        """
        part, _, name = key.partition(".")
        if part not in PARTS or name not in (f.name for f in fields(PARTS[part])):
            raise InputError(f"chip: expected a key such as 'core.add_pj', got {key!r}.")
        return getattr(getattr(self, part), name)

    def to_dict(self) -> dict[str, Any]:
        """Return the whole description as JSON or TOML can hold it; `from_dict` reads it.

        The content is that of a chip's file, with the format version and the name.

        Raises:
            InputError: a number has no source.
        """
        keys = [f"{part}.{f.name}" for part, kind in PARTS.items() for f in fields(kind) if not self._left_out(part, f)]
        missing = [key for key in keys if key not in self.sources]
        if missing:
            raise InputError(f"Description.to_dict: expected a source of every number; {', '.join(missing)} have none.")
        content: dict[str, Any] = {"format": FORMAT, "name": self.name, "process": self.process}
        for key in keys:
            part, _, name = key.partition(".")
            value, (process, source) = self.value(key), self.sources[key]
            entry: dict[str, Any] = {"value": list(value) if isinstance(value, tuple) else value, "source": source}
            if process != self.process:
                entry["process"] = process
            content.setdefault(part, {})[name] = entry
        return content

    def _left_out(self, part: str, key: Field) -> bool:
        """Return whether a file may leave a key out: it has its usual value, and nothing else was said of it."""
        _, source = self.sources.get(f"{part}.{key.name}", (None, None))
        return self.value(f"{part}.{key.name}") == key.default and source in (None, key.metadata["source"])

    def to_toml(self) -> str:
        """Return the text of the chip's file; `load_description` reads it. The name of a chip is that of its file."""
        lines = [f"format = {FORMAT}", f"process = {_as_toml(self.process)}"]
        for part, section in self.to_dict().items():
            if part in PARTS:
                lines += ["", f"[{part}]"]
                for key, entry in section.items():
                    held = ", ".join(f"{name} = {_as_toml(entry[name])}" for name in sorted(entry, key=_IN_FILE.index))
                    lines.append(f"{key} = {{ {held} }}")
        return "\n".join(lines) + "\n"

    def varied(self, values: Mapping[str, Any]) -> Description:
        """Return a chip with other values, by key such as "core.add_pj". Their sources say what they were before.

        Raises:
            InputError: there is no such key, or the values cannot be; the message names all faults.
        """
        content = self.to_dict()
        for key, value in values.items():
            part, _, name = key.partition(".")
            was, (process, source) = self.value(key), self.sources.get(key, (self.process, "none"))
            if value != was:
                source = f"varied; {self.name} has {json.dumps(was)}: {source}"
            content.setdefault(part, {})[name] = {"value": value, "source": source, "process": process}
        return Description.from_dict({**content, "name": f"{self.name} varied" if values else self.name})

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Description:
        """Read what `to_dict` returned.

        Raises:
            InputError: something is missing or wrong. All faults are listed.
        """
        name = content.get("name")
        if not isinstance(name, str) or not name.strip():
            raise InputError(f"Description.from_dict: expected a text as 'name', got {name!r}.")
        return parse_description({k: v for k, v in content.items() if k != "name"}, name, f"chip {name!r}")


PARTS: dict[str, type] = {
    name: kind
    for name, kind in typing.get_type_hints(Description).items()
    if name not in ("name", "process", "sources")
}


def load_description(name_or_path: str | os.PathLike | Description) -> Description:
    """Read a chip of this package or of another installed one, by name, or one of your own, by path (*.toml).

    A description made in Python is checked and returned.

    Raises:
        InputError: there is no such chip; its file has another format version; keys are missing, unknown or in another
            unit; numbers are negative, too large or without a source. All faults are listed.
    """
    return CHIPS.load(name_or_path)


def chip_names() -> tuple[str, ...]:
    """Return the names of the chips of this package, and of those that other installed packages bring."""
    return tuple(CHIPS.names())


def check_description(chip: Description) -> None:
    """Raise an InputError unless a description that was made in Python has what its file must have."""
    Description.from_dict(chip.to_dict())


def keys_of_chips() -> dict[str, type]:
    """Return the type of each key of a chip that is one value: int, float, bool or str."""
    kinds = {f"{part}.{name}": kind for part, cls in PARTS.items() for name, kind in typing.get_type_hints(cls).items()}
    return {key: kind for key, kind in kinds.items() if isinstance(kind, type)}


def fault_of(key: str, value: Any) -> str | None:
    """Return what is wrong with a value by itself, or None."""
    return _as_type(value, keys_of_chips()[key], key.partition(".")[2])[1]


def parse_description(content: Mapping[str, Any], name: str, where: str) -> Description:
    """Build a description from the content of its file.

    Args:
        content: of the file.
        name: of the chip.
        where: the file, for messages.
    Raises:
        InputError: as `load_description`.
    """
    check_format(content, FORMAT, where, str(_FOLDER / "async-45nm.toml"))
    faults: list[str] = []
    process = content.get("process")
    if not isinstance(process, str) or not process.strip():
        faults.append(f"process: expected a text such as '45 nm', got {process!r}")
    known = ("format", "process", *PARTS)
    faults += [f"{key}: unknown; {_did_you_mean(key, PARTS)}" for key in content if key not in known]
    parts, sources = {}, {}
    for part, kind in PARTS.items():
        section = content.get(part)
        if not isinstance(section, Mapping):
            faults.append(f"[{part}]: missing, with the keys {', '.join(f.name for f in fields(kind))}")
            continue
        parts[part] = _read_part(part, kind, section, str(process), sources, faults)
    if not faults:
        faults = _contradictions(parts)
    check_faults(faults, where)
    return Description(name, str(process), **{p: PARTS[p](**v) for p, v in parts.items()}, sources=sources)


CHIPS = NamedFiles("chip", "spikebrain.chips", _FOLDER, Description, parse_description, check_description)


def _read_part(part, kind, section, process, sources, faults) -> dict[str, Any]:
    """Return the values of a part; append what is wrong with it to `faults`, and sources to `sources`."""
    hints = typing.get_type_hints(kind)
    known = [f.name for f in fields(kind)]
    for key in section:
        if key not in known:
            faults.append(f"{part}.{key}: unknown; {_did_you_mean(key, known)}")
    values = {}
    optional = {f.name: f.metadata["source"] for f in fields(kind) if f.default is not MISSING}
    for key in known:
        if key not in section and key in optional:  # the part has its usual value
            sources[f"{part}.{key}"] = (process, optional[key])
            continue
        if key not in section:
            faults.append(f"{part}.{key}: missing")
            continue
        entry = section[key]
        if not isinstance(entry, Mapping) or set(entry) - {"value", "source", "process"} or "value" not in entry:
            faults.append(f'{part}.{key}: expected {{ value = ..., source = "..." }}, got {entry!r}')
            continue
        source = entry.get("source")
        if not isinstance(source, str) or not source.strip():
            faults.append(f"{part}.{key}: expected a source, got {source!r}; say where the number is from")
        value, fault = _as_type(entry["value"], hints[key], key)
        if fault:
            faults.append(f"{part}.{key}: {fault}, got {entry['value']!r}")
        values[key] = value
        sources[f"{part}.{key}"] = (str(entry.get("process", process)), str(source))
    return values


def _as_type(  # noqa: PLR0911 - a return for each type
    value: object, kind: object, key: str
) -> tuple[Any, str | None]:
    """Return the value as the type of its field, and what is wrong with it."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is bool:
        return value, None if isinstance(value, bool) else "expected true or false"
    if kind is str:
        return value, None if isinstance(value, str) else "expected a text"
    if isinstance(kind, types.GenericAlias):
        good = isinstance(value, list) and all(type(v) in (int, float) and 0 <= v <= _LONGEST_NS for v in value)
        return tuple(value) if isinstance(value, list) else value, None if good else "expected a list of numbers >= 0"
    if kind is int:
        least = 0 if key in ("payload_bits", "address_bits", "register_accumulators") else 1
        exponent = 16 if key.endswith("_bits") else 31
        good = isinstance(value, int) and number and least <= value < 2**exponent
        return value, None if good else f"expected an integer in [{least}, 2^{exponent})"
    most = 1 if key.endswith("_share") else _MOST_OF_A_FLOAT
    if not number or not 0 <= value <= most:  # pyright: ignore[reportOperatorIssue]
        return value, f"expected a number from 0 to {most:g}"
    value = float(value)  # pyright: ignore[reportArgumentType]
    if key.endswith("_ns") and (value > _LONGEST_NS or abs(value * 1000 - round(value * 1000)) > 1e-6):
        return value, f"expected a multiple of 0.001 ns (time is in whole picoseconds) up to {_LONGEST_NS:.0f}"
    return value, None


def _contradictions(parts: dict[str, dict[str, Any]]) -> list[str]:
    """Return what is wrong between values that are each right."""
    faults = []
    for where, value, allowed in (
        ("packet.payload", parts["packet"]["payload"], ("spike", "count")),
        ("handshake.phases", parts["handshake"]["phases"], (2, 4)),
        ("core.accumulator_bits", parts["core"]["accumulator_bits"], (32, 64)),
    ):
        if value not in allowed:
            faults.append(f"{where}: expected one of {', '.join(str(a) for a in allowed)}, got {value!r}")
    if parts["core"].get("register_accumulators", 0) and "register_pj" not in parts["core"]:
        faults.append("core.register_pj: missing, since core.register_accumulators says that there are registers")
    tiles, ns = parts["barrier"]["tiles"], parts["barrier"]["ns"]
    if len(tiles) != len(ns) or list(tiles) != sorted(set(tiles)):
        faults.append(f"barrier: expected rising tiles and as many ns, got {list(tiles)} and {list(ns)}")
    if tiles and parts["packet"]["payload"] != "spike":
        faults.append('packet.payload: expected "spike" on a chip with a barrier, whose spikes belong to timesteps')
    if parts["dram"]["bandwidth_bytes_per_ns"] == 0:
        faults.append("dram.bandwidth_bytes_per_ns: expected a number > 0, got 0")
    for where, value in (
        ("dram.bandwidth_bytes_per_ns", parts["dram"]["bandwidth_bytes_per_ns"]),
        ("link.bandwidth_bits_per_ns", parts["link"]["bandwidth_bits_per_ns"]),
    ):
        if 0 < value < _LEAST_BANDWIDTH:
            faults.append(f"{where}: expected at least {_LEAST_BANDWIDTH:g}, got {value!r}: a packet would take hours")
    return faults


def _as_toml(value: Any) -> str:
    """Return a text, number, truth value or list of numbers as TOML has it, which is as JSON has it."""
    return json.dumps(value, ensure_ascii=False)


def _did_you_mean(key: str, known: Iterable[str]) -> str:
    """Return the closest known key, and whether it differs by its unit."""
    known = list(known)
    stem = _without_unit(key)
    same = [k for k in known if _without_unit(k) == stem]
    if same:
        return f"the unit is wrong: expected {' or '.join(same)}"
    close = difflib.get_close_matches(key, known, n=1)
    return f"did you mean {close[0]}?" if close else f"expected one of {', '.join(known)}"


def _without_unit(key: str) -> str:
    units = sorted((*_UNITS, "us", "ms", "ps", "fs", "s", "nj", "uj", "fj", "j", "uw", "w", "kib", "kb"), key=len)
    for unit in reversed(units):
        if key.endswith(f"_{unit}"):
            return key.removesuffix(f"_{unit}")
    return key
