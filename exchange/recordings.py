"""Recordings as files of other tools, and back: NPZ, HDF5 and Parquet hold the tables of `tables_of`.

NPZ and HDF5 hold a column as "TABLE/COLUMN". Parquet holds one table: a row is a layer, and the rows of other tables
that belong to it are lists in it: spikes in trains in layers. Parts that do not spike, and the run, are JSON in its
metadata.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from ..errors import CheckpointError, InputError, SpikebrainError
from ..files import parse_json, whole_file
from ..lazy import optional
from ..models import Recording
from ..models.recording.tables import COLUMNS, TEXT, Tables, dtype_of, recording_of, tables_of

MAX_BYTES = 8 * 2**30
# Tables whose rows belong to a row of another, by the column that says which. Parquet nests them in this order.
_NESTED = {
    "spikes": ("train", "trains"),
    "weights": ("train", "trains"),
    "trains": ("layer", "layers"),
    "weight_reads": ("layer", "layers"),
    "histogram": ("layer", "layers"),
}
_KEY = b"spikebrain-recording"
# Tables of few rows that are JSON in the metadata of a Parquet file.
_IN_METADATA = ("modules", "run")


def export(recording: Recording, path: str | Path) -> None:
    """Write a recording, with its trains if it has any, to a file in one step; the suffix says in which format.

    Args:
        recording: that has ended.
        path: ends in .npz (NumPy), .h5 or .hdf5 (HDF5; needs h5py), or .parquet (Apache Parquet; needs pyarrow).
    Raises:
        InputError: another suffix, or a package of the extra `exchange` is not installed.
        CheckpointError: the file cannot be written.
    """
    path = Path(path)
    write = _format_of(path, "export").write
    tables = tables_of(recording)
    with whole_file(path, CheckpointError) as partial, partial.open("w+b") as file:
        write(tables, file)


def read_recording(path: str | Path, max_bytes: int = MAX_BYTES) -> Recording:
    """Read what `export` wrote: an equal recording.

    Args:
        path: of the file.
        max_bytes: most memory that its columns, or its trains, may claim; nothing is allocated before that is known.
    Raises:
        InputError: another suffix.
        CheckpointError: the file cannot be read, is damaged or was changed, claims more than max_bytes, or is no
            recording; or a package of the extra `exchange` is not installed.
    """
    path = Path(path)
    read = _format_of(path, "read_recording").read
    try:
        with path.open("rb") as file:
            tables = read(file, max_bytes)
        return recording_of(tables, str(path), max_bytes)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}.") from error
    except SpikebrainError as error:
        raise CheckpointError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from error
    except MemoryError:
        raise
    except Exception as error:  # whatever the readers of other people raise over a damaged file
        raise CheckpointError(
            f"{path}: is damaged, or no recording that spikebrain wrote. Export it again. ({type(error).__name__}: "
            f"{error})"
        ) from error


class _Format(NamedTuple):
    write: Callable[[Tables, IO[bytes]], None]
    read: Callable[[IO[bytes], int], Tables]


def _format_of(path: Path, where: str) -> _Format:
    check_suffix(path, f"{where}.path", RECORDING_SUFFIXES)
    return _FORMATS[path.suffix.lower()]


def check_suffix(path: Path, argument: str, known: Iterable[str]) -> None:
    """Raise an InputError that names the argument unless a path has one of the known suffixes."""
    if path.suffix.lower() not in known:
        raise InputError(f"{argument} {path}: expected a name that ends in {', '.join(known)}.")


def _check_size(num_bytes: int, max_bytes: int) -> None:
    if num_bytes > max_bytes:
        raise InputError(
            f"expected columns of at most max_bytes={max_bytes:,}, the file claims {num_bytes:,} bytes. Pass a larger "
            "number if the memory has room, or fetch the file again."
        )


# NumPy


def _write_npz(tables: Tables, file: IO[bytes]) -> None:
    arrays = {f"{table}/{name}": column for table, columns in tables.items() for name, column in columns.items()}
    np.savez_compressed(file, **arrays)  # pyright: ignore[reportArgumentType] - no column is allow_pickle


def _read_npz(file: IO[bytes], max_bytes: int) -> Tables:
    with zipfile.ZipFile(file) as archive:
        _check_size(sum(member.file_size for member in archive.infolist()), max_bytes)
        for member in archive.infolist():
            with archive.open(member) as opened:
                _check_size(_claimed(opened), min(max_bytes, 2 * member.file_size + 1024))
    file.seek(0)
    with np.load(file, allow_pickle=False) as arrays:
        return _tables({name: arrays[name] for name in arrays.files})


def _claimed(file: IO[bytes]) -> int:
    """Return the bytes of an array according to its header."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    size = dtype.itemsize
    for length in shape:
        size *= length
    return size


def _tables(columns: dict[str, np.ndarray]) -> Tables:
    tables: Tables = {}
    for path, column in columns.items():
        table, _, name = path.partition("/")
        tables.setdefault(table, {})[name] = column
    return tables


# HDF5


def _write_hdf5(tables: Tables, file: IO[bytes]) -> None:
    h5py = optional("h5py", "exchange", "export")
    with h5py.File(file, "w") as root:
        for table, columns in tables.items():
            for name, column in columns.items():
                is_text = COLUMNS[table][name] == TEXT
                options = {"compression": "gzip"} if len(column) and not is_text else {}
                data = column.astype(object) if is_text else column
                root.create_dataset(
                    f"{table}/{name}", data=data, dtype=h5py.string_dtype() if is_text else None, **options
                )


def _read_hdf5(file: IO[bytes], max_bytes: int) -> Tables:
    h5py = optional("h5py", "exchange", "read_recording")
    with h5py.File(file, "r") as root:
        found = {(table, name): root[table][name] for table in root for name in root[table]}
        _check_size(sum(int(column.size) * column.dtype.itemsize for column in found.values()), max_bytes)
        columns = {}
        for (table, name), column in found.items():
            is_text = h5py.check_string_dtype(column.dtype) is not None
            columns[f"{table}/{name}"] = np.array(column.asstr()[()].tolist(), str) if is_text else column[()]
        return _tables(columns)


# Parquet


def _write_parquet(tables: Tables, file: IO[bytes]) -> None:
    pyarrow = optional("pyarrow", "exchange", "export")
    parquet = optional("pyarrow.parquet", "exchange", "export")
    columns = {
        table: {name: pyarrow.array(_plain(column)) for name, column in found.items()}
        for table, found in tables.items()
    }
    for child, (key, parent) in _NESTED.items():
        rows = {name: column for name, column in columns[child].items() if name != key}
        num_parents = len(next(iter(tables[parent].values())))
        starts = pyarrow.array(np.searchsorted(tables[child][key], np.arange(num_parents + 1)))
        structs = pyarrow.StructArray.from_arrays(list(rows.values()), list(rows))
        columns[parent][child] = pyarrow.LargeListArray.from_arrays(starts, structs)
    told = {table: {name: column.tolist() for name, column in tables[table].items()} for table in _IN_METADATA}
    table = pyarrow.table(columns["layers"]).replace_schema_metadata({_KEY: json.dumps(told)})
    parquet.write_table(table, file)


def _plain(column: np.ndarray) -> Any:
    """Return a column as Arrow takes it: NumPy's texts only as a list."""
    return column.tolist() if column.dtype.kind == "U" else column


def _read_parquet(file: IO[bytes], max_bytes: int) -> Tables:
    pyarrow = optional("pyarrow", "exchange", "read_recording")
    opened = optional("pyarrow.parquet", "exchange", "read_recording").ParquetFile(file)
    opened.scan_contents()  # here a faulty footer is an error; pyarrow's own look at its columns would end the process
    _check_size(_values(opened.metadata) * 8, max_bytes)
    told = parse_json((opened.schema_arrow.metadata or {})[_KEY].decode(), "its description")
    [batch] = opened.read().combine_chunks().to_batches() or [pyarrow.RecordBatch.from_pylist([], opened.schema_arrow)]
    columns = {"layers": dict(zip(batch.schema.names, batch.columns, strict=True))}
    for child, (key, parent) in reversed(_NESTED.items()):
        lists = columns[parent].pop(child)
        parents = np.repeat(np.arange(len(lists)), lists.value_lengths().to_numpy(zero_copy_only=False))
        rows = lists.flatten()
        columns[child] = {key: pyarrow.array(parents), **{f.name: rows.field(i) for i, f in enumerate(rows.type)}}
    tables = {
        table: {name: _to_numpy(column, COLUMNS[table].get(name)) for name, column in found.items()}
        for table, found in columns.items()
    }
    for table in _IN_METADATA:
        kinds = COLUMNS[table]
        tables[table] = {name: np.array(told[table][name], dtype_of(kind)) for name, kind in kinds.items()}
    return tables


def _values(metadata: Any) -> int:
    """Return how many values the columns of a Parquet file claim."""
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    return sum(group.column(j).num_values for group in groups for j in range(group.num_columns))


def _to_numpy(column: Any, kind: str | None) -> np.ndarray:
    return np.array(column.to_pylist(), str) if kind == TEXT else column.to_numpy(zero_copy_only=False)


_FORMATS = {
    ".npz": _Format(_write_npz, _read_npz),
    ".h5": _Format(_write_hdf5, _read_hdf5),
    ".hdf5": _Format(_write_hdf5, _read_hdf5),
    ".parquet": _Format(_write_parquet, _read_parquet),
}
RECORDING_SUFFIXES = tuple(_FORMATS)
