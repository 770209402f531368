"""Damaged files, made at run time, for every reader: an error of ours or the same content, in little time and memory.

As a script it runs many of them, in several processes, and goes on where it stopped:

    python tests/unit/fuzz.py --count 100000 --processes 2 --state fuzz.json

An input follows from its reader and its number alone, so that a failure can be run again with --first N --count 1.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import resource
import signal
import struct
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

PORTION = 1000
# What an input may take beyond what the process has; and how long, in seconds.
MEMORY_BYTES, LONGEST_S = 2**30, 20
_HUGE = (0, 1, 2**31 - 1, 2**32 - 1, 10**18, 2**63 - 1, 2**64 - 1)
_PIECES = (
    *(b"-", b"9" * 400, b"9" * 5000, b"1e999", b"NaN", b"null", b"1000000000000000000", b"-1", b"{}", b"[]"),
    *(b"[" * 2000, b'{"a":' * 2000, b"\xff", b'"', b"true"),
)


class Subject(NamedTuple):
    """A reader and a sound file.

    Attributes:
        content: of the file.
        name: of the file in its folder.
        read: called with the path.
        expected: what it returns for a sound file if a changed one must never give another result, else None.
        stop: only the bytes before are changed; None for all.
    """

    content: bytes
    name: str
    read: Callable[[Path], Any]
    expected: Any = None
    stop: int | None = None


def mutated(content: bytes, rng: random.Random, stop: int | None = None) -> bytes:  # noqa: PLR0911 - a kind each
    """Return the bytes with one fault: bits, bytes, lines or values changed, lost, doubled, or huge numbers."""
    at = rng.randrange(stop or len(content))
    kind = rng.randrange(8)
    if kind == 0:  # flip a bit
        return content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]
    if kind == 1:  # cut some bytes out
        return content[:at] + content[at + rng.randrange(1, 40) :]
    if kind == 2:  # double some
        return content[:at] + content[max(0, at - rng.randrange(1, 40)) :]
    if kind == 3:  # cut the file short
        return content[:at]
    if kind == 4:  # a count or a length that is huge
        number = struct.pack("<Q", rng.choice(_HUGE))[: rng.choice((4, 8))]
        return content[:at] + number + content[at + len(number) :]
    if kind == 5:  # other bytes
        return content[:at] + rng.randbytes(4) + content[at + 4 :]
    lines = content.splitlines(keepends=True)
    line = rng.randrange(len(lines))
    if kind == 6:  # lose a line
        del lines[line]
        return b"".join(lines)
    # Something else in the place of a value.
    key, separator, rest = lines[line].partition(rng.choice((b"=", b":")))
    end = min((rest.index(mark) for mark in (b",", b"}", b"\n") if mark in rest), default=len(rest))
    lines[line] = key + separator + rng.choice(_PIECES) + rest[end:]
    return b"".join(lines)


def subjects() -> dict[str, Callable[[Path], Subject]]:
    """Return what makes the subject of each reader in an empty folder."""
    return {
        **{"table": _table, "chip": _chip, "json": _json, "report": _report, "progress": _progress},
        **{"index": _index, "shard": _shard, "model-file": _model_file, "gguf": _gguf},
        **{"npz": _recording(".npz"), "hdf5": _recording(".h5"), "parquet": _recording(".parquet")},
    }


def _table(folder: Path) -> Subject:
    from spikebrain.energy import load_table, table  # noqa: PLC0415 - as in all of these, what others do not need

    return Subject((table._FOLDER / "horowitz_45nm.toml").read_bytes(), "it.toml", load_table)


def _chip(folder: Path) -> Subject:
    from spikebrain.chip import description  # noqa: PLC0415

    return Subject((description._FOLDER / "loihi.toml").read_bytes(), "it.toml", description.load_description)


def _json(folder: Path) -> Subject:
    from spikebrain.files import read_json  # noqa: PLC0415

    return Subject(_report(folder).content, "config.json", read_json)


def _report(folder: Path) -> Subject:
    import torch  # noqa: PLC0415
    from torch import nn  # noqa: PLC0415

    from spikebrain import SpikeLinear, count_operations, record  # noqa: PLC0415
    from spikebrain.jobs.energy import read_counts  # noqa: PLC0415

    layer = SpikeLinear.from_linear(nn.Linear(4, 2))
    with record(layer) as recording, torch.no_grad():
        layer(torch.tensor([[1.0, -1.0, 4.0, 0.0]]))
    counts = count_operations(recording)
    content = json.dumps({"kind": "report", "format": 1, "energy": {"counts": counts.to_dict()}}, indent=1)
    return Subject(content.encode(), "report.json", read_counts, counts)


def _progress(folder: Path) -> Subject:
    from spikebrain.jobs.resume import FILE_NAME, Unfinished  # noqa: PLC0415

    found = Unfinished.of_job(folder, {"model": "m"})
    found.nlls["float"] = [1.5, 2.5]
    found.save()
    content = found.path.read_bytes()

    def read(path: Path) -> bool:
        nlls = Unfinished.of_job(path.parent, {"model": "m"}).nlls
        return nlls in ({}, {"float": [1.5, 2.5]})  # a damaged one is as none

    return Subject(content, FILE_NAME, read, True)


def _tensors() -> dict[str, Any]:
    import torch  # noqa: PLC0415

    return {"a.weight": torch.arange(6.0).reshape(2, 3), "b.weight": torch.ones(4, dtype=torch.int8)}


def _index(folder: Path) -> Subject:
    from safetensors.torch import save_file  # noqa: PLC0415

    from spikebrain.models.io.shards import INDEX, Shards, shard_name  # noqa: PLC0415

    file = shard_name(1, 1)
    save_file(_tensors(), folder / file)
    index = {"metadata": {"sha256": {}}, "weight_map": dict.fromkeys(_tensors(), file)}
    return Subject(json.dumps(index, indent=1).encode(), INDEX, lambda path: Shards(path.parent).shapes)


def _shard(folder: Path) -> Subject:
    import torch  # noqa: PLC0415

    from spikebrain.files import write_tensors  # noqa: PLC0415
    from spikebrain.models.io.checksums import of_tensor  # noqa: PLC0415
    from spikebrain.models.io.shards import CHECKSUMS, SINGLE, Shards  # noqa: PLC0415

    told = json.dumps({name: of_tensor(tensor) for name, tensor in _tensors().items()})
    write_tensors(folder / SINGLE, _tensors(), {"format": "pt", CHECKSUMS: told})

    def read(path: Path) -> Any:
        shards = Shards(path.parent)
        return {name: shards.read(name, torch.device("cpu")).tolist() for name in shards.shapes}

    return Subject((folder / SINGLE).read_bytes(), SINGLE, read)


def _model_file(folder: Path) -> Subject:
    from torch import nn  # noqa: PLC0415

    from spikebrain import to_spiking  # noqa: PLC0415
    from spikebrain.models.io.single_file import read_file, write_file  # noqa: PLC0415

    net = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    write_file(to_spiking(net), folder / "it.safetensors")

    def read(path: Path) -> Any:
        model, _ = read_file(path, nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)))
        return {name: tensor.tolist() for name, tensor in model.state_dict().items()}

    content = (folder / "it.safetensors").read_bytes()
    return Subject(content, "it.safetensors", read, read(folder / "it.safetensors"))


def _gguf(folder: Path) -> Subject:
    import gguf  # noqa: PLC0415
    import numpy as np  # noqa: PLC0415

    from spikebrain.models.io import gguf_file  # noqa: PLC0415

    writer = gguf.GGUFWriter(folder / "made.gguf", "llama")
    writer.add_block_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_token_list(["a", "bc", "def"])
    writer.add_token_types([1, 1, 3])
    writer.add_tensor("token_embd.weight", np.ones((3, 32), np.float32))
    writer.add_tensor("output_norm.weight", np.ones(32, np.float32))
    for write in (
        writer.write_header_to_file,
        writer.write_kv_data_to_file,
        writer.write_tensors_to_file,
        writer.close,
    ):
        write()
    content = (folder / "made.gguf").read_bytes()

    def read(path: Path) -> Any:
        try:
            with gguf_file._alone(path) as (_, reader, places):
                settings, tensors = gguf_file._inventory(reader, path)
            return settings, tensors.keys(), places
        except BaseException as error:
            raise gguf_file.fault(error, path, "cannot be read as a GGUF model.") from error

    return Subject(content, "it.gguf", read, stop=len(content) - 13 * 32)


def _recording(suffix: str) -> Callable[[Path], Subject]:
    def make(folder: Path) -> Subject:
        import torch  # noqa: PLC0415
        from torch import nn  # noqa: PLC0415

        from spikebrain import SpikeLinear, export, read_recording, record  # noqa: PLC0415
        from spikebrain.models.recording.tables import tables_of  # noqa: PLC0415

        layer = SpikeLinear.from_linear(nn.Linear(4, 2))
        with record(layer, keep_trains=True) as recording, torch.no_grad():
            layer(torch.tensor([[1.0, -1.0, 4.0, 0.0]]))
        export(recording, folder / f"made{suffix}")

        def read(path: Path) -> Any:
            tables = tables_of(read_recording(path, 2**28))
            return {(table, name): column.tolist() for table in tables for name, column in tables[table].items()}

        content = (folder / f"made{suffix}").read_bytes()
        return Subject(content, f"it{suffix}", read, read(folder / f"made{suffix}"))

    return make


def run_one(subject: Subject, folder: Path, name: str, number: int) -> tuple[bool, str | None]:
    """Read one damaged file; return whether it was refused with our error, and what went wrong."""
    from spikebrain.errors import SpikebrainError  # noqa: PLC0415

    path = folder / subject.name
    path.write_bytes(mutated(subject.content, random.Random(f"{name} {number}"), subject.stop))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = subject.read(path)
    except SpikebrainError as error:
        said = str(error)
        named = subject.name in said or folder.name in said
        return True, None if named else f"does not name the file: {said}"
    except Exception as error:
        return False, f"{type(error).__name__}: {error}"
    if subject.expected is not None and found != subject.expected:
        return False, "another content"
    return False, None


def run_portion(name: str, first: int, count: int) -> dict[str, Any]:
    """Read damaged files first to first + count - 1 with limits on memory and time."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        subject = subjects()[name](folder)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, resource.RLIM_INFINITY))
        signal.signal(signal.SIGALRM, _too_long)
        refused, faults, began = 0, [], time.monotonic()
        for number in range(first, first + count):
            signal.alarm(LONGEST_S)
            was_refused, fault = run_one(subject, folder, name, number)
            refused += was_refused
            if fault is not None:
                faults.append([number, fault[:300]])
        signal.alarm(0)
    seconds = time.monotonic() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"count": count, "refused": refused, "faults": faults, "seconds": seconds, "peak_bytes": peak}


def _too_long(*arguments: Any) -> None:
    raise TimeoutError(f"took longer than {LONGEST_S} s")


def _run(task: tuple[str, int, int]) -> tuple[tuple[str, int, int], dict[str, Any]]:
    return task, run_portion(*task)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--readers", nargs="*", default=list(subjects()))
    parser.add_argument("--count", type=int, default=1000, help="inputs a reader")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--state", type=Path, help="JSON file of the portions that are done; they are not run again")
    options = parser.parse_args()
    done = json.loads(options.state.read_text()) if options.state and options.state.exists() else {}
    end = options.first + options.count
    tasks = [
        (name, first, min(PORTION, end - first))
        for first in range(options.first, end, PORTION)
        for name in options.readers
    ]
    tasks = [task for task in tasks if str(task) not in done]
    # A process of its own for each portion: a reader that ends its process is seen, and nothing is carried over.
    with multiprocessing.get_context("spawn").Pool(options.processes, maxtasksperchild=4) as pool:
        for task, found in pool.imap_unordered(_run, tasks):
            done[str(task)] = {"reader": task[0], **found}
            if options.state:
                partial = options.state.with_suffix(".partial")
                partial.write_text(json.dumps(done))
                os.replace(partial, options.state)
    for name in options.readers:
        rows = [row for row in done.values() if row["reader"] == name]
        total, refused = (sum(row[key] for row in rows) for key in ("count", "refused"))
        faults = [fault for row in rows for fault in row["faults"]]
        print(f"{name:12} {total:8,} inputs  {refused:8,} refused  {len(faults):4} faults  {faults[:3]}")


if __name__ == "__main__":
    main()
