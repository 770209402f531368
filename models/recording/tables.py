"""A recording as tables of columns: what files of other tools can hold, and back without loss.

| table | a row is | columns |
| --- | --- | --- |
| layers | a spiking layer | the fields of `LayerRecord`; mean_count_bound is NaN where there is none |
| histogram | a spike count of a layer | layer, count, num_channels |
| weight_reads | a block size and number of tokens of a layer | layer, and the fields of `WeightReads` |
| trains | a kept train | layer, num_timesteps, num_tokens, num_channels, zero_point |
| weights | a timestep of a train | train, timestep, weight |
| spikes | a spike of a train | train, timestep, token, channel, value |
| modules | a part of the model that does not spike | the fields of `ModuleRecord`; sizes as JSON |
| run | the recording | format, model, order and unsupported (as JSON), sha256 of all other columns |

`layer` and `train` are rows of those tables, counted from 0.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch

from ...coding import AEREvents, SpikeTrain
from ...errors import InputError, SpikebrainError
from ...files import parse_json
from .layer_record import LayerRecord
from .modules import ModuleRecord
from .record import Recording
from .weight_reads import WeightReads

# Columns of equal length by name, by the name of their table.
Tables: TypeAlias = dict[str, dict[str, np.ndarray]]
T = TypeVar("T")

# Raised when older files can no longer be read.
FORMAT = 2
INT, BOOL, FLOAT, TEXT = "int64", "bool", "float64", "text"
# Integers that may be below 0; others count something or are rows.
_SIGNED = ("count", "value", "weight")
_KINDS = {"int": INT, "bool": BOOL, "float | None": FLOAT, "str": TEXT}


def _kinds(cls: type) -> dict[str, str]:
    """Return the kind of each column that holds a field of a record; other fields have tables of their own."""
    return {f.name: _KINDS[str(f.type)] for f in dataclasses.fields(cls) if str(f.type) in _KINDS}


def _ints(names: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), INT)


# Columns and their kinds, by table.
COLUMNS: dict[str, dict[str, str]] = {
    "layers": _kinds(LayerRecord),
    "histogram": _ints("layer count num_channels"),
    "weight_reads": {"layer": INT, **_kinds(WeightReads)},
    "trains": _ints("layer num_timesteps num_tokens num_channels zero_point"),
    "weights": _ints("train timestep weight"),
    "spikes": _ints("train timestep token channel value"),
    "modules": {**_kinds(ModuleRecord), "sizes": TEXT},
    "run": {"format": INT, **dict.fromkeys(("model", "order", "unsupported", "sha256"), TEXT)},
}


def tables_of(recording: Recording) -> Tables:
    """Return all that a recording holds."""
    layers = list(recording.layers.values())
    counts = [(i, count, n) for i, layer in enumerate(layers) for count, n in sorted(layer.count_histogram.items())]
    reads = [(i, *dataclasses.astuple(r)) for i, layer in enumerate(layers) for r in layer.weight_reads]
    row_of = {name: i for i, name in enumerate(recording.layers)}
    trains = sorted(
        ((row_of[name], train) for name, kept in recording.trains.items() for train in kept), key=lambda pair: pair[0]
    )
    modules = [
        (*(getattr(m, name) for name in _kinds(ModuleRecord)), json.dumps(m.sizes)) for m in recording.modules.values()
    ]
    run = [(FORMAT, recording.model, json.dumps(recording.order), json.dumps(recording.unsupported), "")]
    rows: dict[str, Sequence[Sequence[Any]]] = {
        "layers": [[getattr(layer, name) for name in COLUMNS["layers"]] for layer in layers],
        "histogram": counts,
        "weight_reads": reads,
        "trains": [(i, *t.spikes.shape, t.zero_point) for i, t in trains],
        "weights": [(i, t, w) for i, (_, train) in enumerate(trains) for t, w in enumerate(_list(train))],
        "modules": modules,
        "run": run,
    }
    found = {
        name: _spikes([train for _, train in trains]) if name == "spikes" else _columns(name, rows[name])
        for name in COLUMNS
    }
    found["run"]["sha256"] = np.array([_checksum(found)])
    return found


def _checksum(tables: Mapping[str, Mapping[str, np.ndarray]]) -> str:
    """Return the SHA-256 of all columns but the one that holds it, in hexadecimal."""
    found = hashlib.sha256()
    for table, kinds in COLUMNS.items():
        for name, kind in kinds.items():
            column = tables[table][name]
            if name != "sha256":
                found.update(f"{table}.{name} {len(column)}".encode())
                found.update(json.dumps(column.tolist()).encode() if kind == TEXT else column.tobytes())
    return found.hexdigest()


def _list(train: SpikeTrain) -> list[int]:
    return train.timestep_weight.tolist()


def _columns(table: str, rows: Sequence[Sequence[Any]]) -> dict[str, np.ndarray]:
    columns = list(zip(*rows, strict=True)) or [()] * len(COLUMNS[table])
    return {
        name: np.array([np.nan if v is None else v for v in column], dtype_of(kind))
        for (name, kind), column in zip(COLUMNS[table].items(), columns, strict=True)
    }


def dtype_of(kind: str) -> Any:
    """Return NumPy's type of a column."""
    return str if kind == TEXT else kind


def _spikes(trains: Sequence[SpikeTrain]) -> dict[str, np.ndarray]:
    """Return the events of trains, one after the other: many, so column by column."""
    found: dict[str, list[np.ndarray]] = {name: [np.empty(0, np.int64)] for name in COLUMNS["spikes"]}
    for i, train in enumerate(trains):
        events = AEREvents.from_train(train)
        address, num_channels = events.address.cpu().numpy(), max(train.spikes.shape[-1], 1)
        columns = {
            "train": np.full(len(events), i),
            "timestep": events.timestep.cpu().numpy(),
            "token": address // num_channels,
            "channel": address % num_channels,
            "value": events.value.cpu().numpy(),
        }
        for name, column in columns.items():
            found[name].append(column.astype(np.int64))
    return {name: np.concatenate(parts) for name, parts in found.items()}


def recording_of(tables: Mapping[str, Mapping[str, np.ndarray]], where: str, max_bytes: int) -> Recording:
    """Return the recording that tables hold.

    Args:
        tables: as `tables_of` gave them.
        where: they are from, for messages.
        max_bytes: most memory for spikes; a byte a place of a train, fired or not.
    Raises:
        InputError: a table or column is missing, too long, or holds what no recording does.
    """
    _check(tables, where)
    tables = {table: {name: tables[table][name] for name in kinds} for table, kinds in COLUMNS.items()}
    if tables["run"]["sha256"].tolist() != [_checksum(tables)]:
        raise InputError(f"{where}: is not what was written (another checksum): damaged or changed. Export it again.")
    try:
        layers = [_record(LayerRecord, row) for row in _rows(tables["layers"])]
        for i, count, n in _tuples(tables["histogram"]):
            _at(layers, i).count_histogram[count] += n
        for i, *fields in _tuples(tables["weight_reads"]):
            _at(layers, i).weight_reads.append(WeightReads(*fields))
        modules = [
            _record(ModuleRecord, {**row, "sizes": parse_json(row["sizes"], where)}) for row in _rows(tables["modules"])
        ]
        [run] = _rows(tables["run"])
        order, unsupported = (parse_json(run[name], where) for name in ("order", "unsupported"))
        trains: dict[str, list[SpikeTrain]] = {}
        for i, train in _trains(tables, max_bytes):
            layer = _at(layers, i)
            if train.spikes.shape[-1] != layer.in_features:
                raise InputError(
                    f"a train of {train.spikes.shape[-1]} channels for {layer.in_features} of {layer.name!r}"
                )
            trains.setdefault(layer.name, []).append(train)
    except (SpikebrainError, ValueError, TypeError, KeyError, RuntimeError) as error:
        raise InputError(
            f"{where}: expected a recording that spikebrain wrote, got another content: {error}"
        ) from error
    by_name = {layer.name: layer for layer in layers}, {module.name: module for module in modules}
    if (len(by_name[0]), len(by_name[1])) != (len(layers), len(modules)):
        raise InputError(f"{where}: expected layers and modules of different names. Export it again.")
    return Recording(by_name[0], trains, by_name[1], tuple(unsupported), run["model"], list(order))


def _check(tables: Mapping[str, Mapping[str, np.ndarray]], where: str) -> None:
    """Raise an InputError unless the format is ours and tables have their columns, of their kinds and of one length."""
    version = tables.get("run", {}).get("format", np.empty(0)).tolist()
    if version != [FORMAT]:
        got = f"format {version[0]}" if version else "no format version"
        raise InputError(
            f"{where}: expected a recording in format {FORMAT}, got {got}. Read it with the version of spikebrain that "
            "wrote it."
        )
    for table, kinds in COLUMNS.items():
        found = tables.get(table, {})
        if found.keys() != kinds.keys() or not all(_fits(found[name], kind, name) for name, kind in kinds.items()):
            raise InputError(
                f"{where}: expected a table {table!r} with the columns {', '.join(kinds)}, got "
                f"{', '.join(found) or 'none'}, or a column holds what it cannot. Export it again."
            )
        if len({len(column) for column in found.values()}) > 1:
            raise InputError(f"{where}: expected columns of one length in the table {table!r}. Export it again.")


def _fits(column: np.ndarray, kind: str, name: str) -> bool:
    if column.ndim != 1 or (column.dtype.kind != "U" if kind == TEXT else column.dtype != kind):
        return False
    return kind != INT or name in _SIGNED or not bool((column < 0).any())


def _rows(table: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    return [
        dict(zip(table, row, strict=True)) for row in zip(*(column.tolist() for column in table.values()), strict=True)
    ]


def _tuples(table: Mapping[str, np.ndarray]) -> list[tuple[int, ...]]:
    return list(zip(*(column.tolist() for column in table.values()), strict=True))


def _record(cls: type[T], row: Mapping[str, Any]) -> T:
    """Return a record; NaN stands for None."""
    return cls(**{name: None if isinstance(v, float) and math.isnan(v) else v for name, v in row.items()})


def _at(layers: list[LayerRecord], i: int) -> LayerRecord:
    if i >= len(layers):
        raise InputError(f"layer {i} of {len(layers)}")
    return layers[i]


def _trains(tables: Mapping[str, Mapping[str, np.ndarray]], max_bytes: int) -> list[tuple[int, SpikeTrain]]:
    """Return the layer of each train and the train."""
    rows = _rows(tables["trains"])
    claimed = 0
    for row in rows:
        claimed += row["num_timesteps"] * row["num_tokens"] * row["num_channels"]
    if claimed > max_bytes:
        raise InputError(
            f"trains of {claimed:,} bytes, more than max_bytes={max_bytes:,}. Pass a larger one if the memory has room."
        )
    weights, spikes = (_by_train(tables[name], len(rows)) for name in ("weights", "spikes"))
    found = []
    for row, (timestep, weight), (time, token, channel, value) in zip(rows, weights, spikes, strict=True):
        if not np.array_equal(timestep, np.arange(row["num_timesteps"])):
            raise InputError("a train whose timesteps are not in order")
        shape = (row["num_tokens"], row["num_channels"])
        if bool(((token >= shape[0]) | (channel >= shape[1])).any()):
            raise InputError(f"a spike outside of [tokens, channels] = {shape}")
        address = token * shape[1] + channel
        where, at, kind, weights_of = (torch.from_numpy(column.copy()) for column in (time, address, value, weight))
        events = AEREvents(where, at, kind, weights_of, shape, row["zero_point"])
        found.append((row["layer"], events.to_train()))
    return found


def _by_train(table: Mapping[str, np.ndarray], num_trains: int) -> list[list[np.ndarray]]:
    """Return the columns of each train's rows, which follow each other in the order of trains."""
    train = table["train"]
    if len(train) and (train[-1] >= num_trains or bool((np.diff(train) < 0).any())):
        raise InputError("rows of trains that do not follow each other")
    ends = np.searchsorted(train, np.arange(num_trains + 1))
    columns = [column for name, column in table.items() if name != "train"]
    return [[column[a:b] for column in columns] for a, b in itertools.pairwise(ends)]
