"""What a chip is: a TOML file in which every number has a unit, a process node and a source."""

from __future__ import annotations

import difflib
import math
import os
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path

from ..errors import InputError

_FOLDER = Path(__file__).parent / "presets"
_UNITS = ("pj", "ns", "mw", "bytes", "bits", "packets", "bits_per_ns", "bytes_per_ns")
# A quarter of an hour in picoseconds, over a queue of 4096: what 64-bit integrals hold.
_LONGEST_NS = 1e6
_MOST = 2**31


def to_ps(ns: float) -> int:
    """Return nanoseconds, of which descriptions hold whole thousandths, as picoseconds."""
    return round(1000 * ns)


@dataclass(frozen=True)
class Mesh:
    """Tiles in a rectangle; each has a router, some cores and one digital unit.

    Attributes:
        columns, rows: tiles from west to east, and from north to south.
        cores_per_tile: cores at each router.
    """

    columns: int
    rows: int
    cores_per_tile: int


@dataclass(frozen=True)
class Packet:
    """What travels: an address, and a payload.

    Attributes:
        address_bits: of every packet.
        payload_bits: of a spike or count; 0 only for codes whose spikes all weigh 1.
        sum_bits: payload of a packet that carries a sum.
        payload: "spike" sends one packet per spike, with sign and digit; "count" one per active channel.
        multicast: whether routers copy packets; else one leaves for every core that holds the channel.
    """

    address_bits: int
    payload_bits: int
    sum_bits: int
    payload: str
    multicast: bool


@dataclass(frozen=True)
class Link:
    """A directed connection of two neighbouring routers, with its queue.

    Attributes:
        east_west_ns, north_south_ns: from one router to the next, in either direction.
        east_west_pj, north_south_pj: the same, per packet.
        bandwidth_bits_per_ns: a packet occupies the link for its bits / bandwidth; 0 for unlimited.
        queue_packets: packets that wait at a link.
    """

    east_west_ns: float
    north_south_ns: float
    east_west_pj: float
    north_south_pj: float
    bandwidth_bits_per_ns: float
    queue_packets: int

    def occupied_ps(self, num_bits: int) -> int:
        """Return for how long a packet of that many bits occupies the link, in picoseconds."""
        return math.ceil(1000 * num_bits / self.bandwidth_bits_per_ns) if self.bandwidth_bits_per_ns else 0


@dataclass(frozen=True)
class Handshake:
    """How a packet passes from stage to stage without a clock.

    Attributes:
        phases: transitions of request and acknowledge a packet, 2 or 4.
        transition_pj, transition_ns: of each.
    """

    phases: int
    transition_pj: float
    transition_ns: float

    @property
    def ps(self) -> int:
        """Time of one handshake, in picoseconds."""
        return self.phases * to_ps(self.transition_ns)


@dataclass(frozen=True)
class Core:
    """Memory for INT8 weights and accumulators, adders, and a queue of packets.

    Attributes:
        sram_bytes: weights and accumulators of a core have to fit.
        block_bytes: what one access reads.
        access_pj, access_ns: of a block.
        lanes: additions at a time.
        accumulator_bits: width of an accumulator and of its adder, 32 or 64.
        accumulator_banks: tokens of a layer that may be under way at a time.
        add_pj, shift_pj: per weight.
        accumulator_pj: an accumulator read and written, per packet and output: additions of one packet share it.
        add_ns: of all lanes.
        partial_add_pj: where partial sums of several cores meet.
        receive_pj, receive_ns: per packet that arrives.
        send_pj, send_ns: per packet that leaves with a spike (where routers do not copy) or a sum.
        queue_packets: packets that wait at a core.
        sums_travel: whether sums go to the digital unit of the layer; else they stay where their neurons are.
        leakage_mw: power of a core that does nothing.
    """

    sram_bytes: int
    block_bytes: int
    access_pj: float
    access_ns: float
    lanes: int
    accumulator_bits: int
    accumulator_banks: int
    add_pj: float
    add_ns: float
    shift_pj: float
    partial_add_pj: float
    accumulator_pj: float
    receive_pj: float
    receive_ns: float
    send_pj: float
    send_ns: float
    queue_packets: int
    sums_travel: bool
    leakage_mw: float


@dataclass(frozen=True)
class Encoder:
    """Turns the activations of a token into packets, channel after channel.

    Attributes:
        lanes: channels at a time.
        mean_pj, mean_ns: |x| added to the sum, per channel, or per `lanes` of them.
        threshold_pj, threshold_ns: the division by k, per token.
        round_pj, round_ns: division by the threshold and rounding, per channel, or per `lanes` of them.
        spike_pj, spike_ns: per spike or count that is sent.
        access_pj, access_ns: per output and timestep where a barrier divides time, else 0.
        update_pj, update_ns: per output that changes in a timestep, likewise.
    """

    lanes: int
    mean_pj: float
    mean_ns: float
    threshold_pj: float
    threshold_ns: float
    round_pj: float
    round_ns: float
    spike_pj: float
    spike_ns: float
    access_pj: float
    access_ns: float
    update_pj: float
    update_ns: float


@dataclass(frozen=True)
class Digital:
    """The unit of a tile for what stays dense: rescaling, norms, softmax, gates, attention.

    Attributes:
        lanes: operations at a time.
        operation_ns: of all lanes, whatever the operation.
        add_pj, multiply_pj, exponential_pj, divide_pj, square_root_pj: of a number in floating point.
        integer_mac_pj: of an INT8 product and its INT32 sum (query times cached key).
        byte_pj: read or written, of state and cache.
        queue_packets: sums that wait, here and where partial sums meet.
    """

    lanes: int
    operation_ns: float
    add_pj: float
    multiply_pj: float
    exponential_pj: float
    divide_pj: float
    square_root_pj: float
    integer_mac_pj: float
    byte_pj: float
    queue_packets: int


@dataclass(frozen=True)
class Dram:
    """Memory beside the chip, from which weights stream if they are to.

    Attributes:
        block_bytes: what one access reads.
        block_pj: of an access.
        bandwidth_bytes_per_ns: of the chip, shared by the cores of a layer in equal parts.
        latency_ns: of an access.
    """

    block_bytes: int
    block_pj: float
    bandwidth_bytes_per_ns: float
    latency_ns: float


@dataclass(frozen=True)
class Barrier:
    """A global end of each timestep.

    Attributes:
        tiles: numbers of mapped tiles, rising; empty for a chip without barrier.
        ns: duration for that many tiles, or more.
    """

    tiles: tuple[float, ...]
    ns: tuple[float, ...]


@dataclass(frozen=True)
class Description:
    """A chip: its parts, and where each number is from.

    Attributes:
        name: of the file.
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
    encoder: Encoder
    digital: Digital
    dram: Dram
    barrier: Barrier
    sources: Mapping[str, tuple[str, str]]

    @property
    def num_cores(self) -> int:
        """Cores of the whole mesh."""
        return self.mesh.columns * self.mesh.rows * self.mesh.cores_per_tile


PARTS: dict[str, type] = {
    name: kind
    for name, kind in typing.get_type_hints(Description).items()
    if name not in ("name", "process", "sources")
}


def load_description(name_or_path: str | os.PathLike) -> Description:
    """Read a chip that comes with the package, by name, or one of your own, by path (*.toml).

    Raises:
        InputError: no such chip; keys that are missing, unknown or in another unit; numbers that are negative, too
            large or without a source. All of them are listed.
    """
    given = os.fspath(name_or_path)
    path = Path(given) if given.endswith(".toml") else _FOLDER / f"{given}.toml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in _FOLDER.glob("*.toml")))
        raise InputError(f"chip: expected one of {known}, or the path of a .toml file; got {given!r}.")
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a TOML file: {error}") from error
    return parse_description(content, path.stem, str(path))


def parse_description(content: Mapping[str, typing.Any], name: str, where: str) -> Description:
    """Build a description from the content of its file; `where` is for messages."""
    faults: list[str] = []
    process = content.get("process")
    if not isinstance(process, str) or not process.strip():
        faults.append(f"process: expected a text such as '45 nm', got {process!r}")
    faults += [f"{key}: unknown; {_did_you_mean(key, PARTS)}" for key in content if key not in (*PARTS, "process")]
    parts, sources = {}, {}
    for part, kind in PARTS.items():
        section = content.get(part)
        if not isinstance(section, Mapping):
            faults.append(f"[{part}]: missing, with the keys {', '.join(f.name for f in fields(kind))}")
            continue
        values = _read_part(part, kind, section, str(process), sources, faults)
        parts[part] = values
    if not faults:
        faults = _contradictions(parts)
    if faults:
        raise InputError(f"{where}: {len(faults)} fault(s):\n  " + "\n  ".join(faults))
    return Description(name, str(process), **{p: PARTS[p](**v) for p, v in parts.items()}, sources=sources)


def _read_part(part, kind, section, process, sources, faults) -> dict[str, typing.Any]:
    """Return the values of a part; append what is wrong with it to `faults`, and sources to `sources`."""
    hints = typing.get_type_hints(kind)
    known = [f.name for f in fields(kind) if f.default is MISSING]
    for key in section:
        if key not in known:
            faults.append(f"{part}.{key}: unknown; {_did_you_mean(key, known)}")
    values = {}
    for key in known:
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
) -> tuple[typing.Any, str | None]:
    """Return the value as the type of its field, and what is wrong with it."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is bool:
        return value, None if isinstance(value, bool) else "expected true or false"
    if kind is str:
        return value, None if isinstance(value, str) else "expected a text"
    if isinstance(kind, types.GenericAlias):
        good = isinstance(value, list) and all(isinstance(v, int | float) and 0 <= v <= _LONGEST_NS for v in value)
        return tuple(value) if isinstance(value, list) else value, None if good else "expected a list of numbers >= 0"
    if kind is int:
        least = 0 if key in ("payload_bits", "address_bits") else 1
        good = isinstance(value, int) and number and least <= value < _MOST
        return value, None if good else f"expected an integer in [{least}, 2^31)"
    if not number or not 0 <= value < math.inf:  # pyright: ignore[reportOperatorIssue]
        return value, "expected a number >= 0"
    value = float(value)  # pyright: ignore[reportArgumentType]
    if key.endswith("_ns") and (value > _LONGEST_NS or abs(value * 1000 - round(value * 1000)) > 1e-6):
        return value, f"expected a multiple of 0.001 ns (time is in whole picoseconds) up to {_LONGEST_NS:.0f}"
    return value, None


def _contradictions(parts: dict[str, dict[str, typing.Any]]) -> list[str]:
    """Return what is wrong between values that are each right."""
    faults = []
    for where, value, allowed in (
        ("packet.payload", parts["packet"]["payload"], ("spike", "count")),
        ("handshake.phases", parts["handshake"]["phases"], (2, 4)),
        ("core.accumulator_bits", parts["core"]["accumulator_bits"], (32, 64)),
    ):
        if value not in allowed:
            faults.append(f"{where}: expected one of {', '.join(str(a) for a in allowed)}, got {value!r}")
    tiles, ns = parts["barrier"]["tiles"], parts["barrier"]["ns"]
    if len(tiles) != len(ns) or list(tiles) != sorted(set(tiles)):
        faults.append(f"barrier: expected rising tiles and as many ns, got {list(tiles)} and {list(ns)}")
    if tiles and parts["packet"]["payload"] != "spike":
        faults.append('packet.payload: expected "spike" on a chip with a barrier, whose spikes belong to timesteps')
    if parts["dram"]["bandwidth_bytes_per_ns"] == 0:
        faults.append("dram.bandwidth_bytes_per_ns: expected a number > 0, got 0")
    return faults


def _did_you_mean(key: str, known: typing.Iterable[str]) -> str:
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
