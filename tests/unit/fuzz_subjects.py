"""What the fuzzer damages: for every reader a sound file, and a call that reads it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple


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


def subjects() -> dict[str, Callable[[Path], Subject]]:
    """Return what makes the subject of each reader in an empty folder."""
    return {
        **{"table": _table, "chip": _chip, "json": _json, "report": _report, "progress": _progress},
        **{"index": _index, "shard": _shard, "model-file": _model_file, "gguf": _gguf},
        **{
            "config": _config(False),
            "spiking-config": _config(True),
            "spec": _spec,
            "study": _study,
            "evaluation": _evaluation,
        },
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


def _config(spikes: bool) -> Callable[[Path], Subject]:
    """Return the configuration of a folder without its checksum, so that what follows the checksum is met."""

    def make(folder: Path) -> Subject:
        from transformers import LlamaConfig, LlamaForCausalLM  # noqa: PLC0415

        from spikebrain import load, save, to_spiking  # noqa: PLC0415
        from spikebrain.models.io.preview import preview  # noqa: PLC0415
        from spikebrain.models.io.shards import INDEX  # noqa: PLC0415

        sizes: dict[str, Any] = {
            "hidden_size": 8,
            "intermediate_size": 8,
            "num_attention_heads": 1,
            "num_hidden_layers": 1,
        }
        model = LlamaForCausalLM(LlamaConfig(vocab_size=9, **sizes))
        if spikes:
            save(to_spiking(model), folder)
            index = json.loads((folder / INDEX).read_text())
            del index["metadata"]["sha256"]["config.json"]
            (folder / INDEX).write_text(json.dumps(index))
        else:
            model.save_pretrained(folder)

        def read(path: Path) -> Any:
            return preview(path.parent), load(path.parent)

        return Subject((folder / "config.json").read_bytes(), "config.json", read)

    return make


def _spec(folder: Path) -> Subject:
    from spikebrain.errors import InputError  # noqa: PLC0415
    from spikebrain.jobs.sweep import SweepSettings, read_spec  # noqa: PLC0415

    content = b"""format = 1
model = "smollm2"
num_tokens = 1024
objectives = ["perplexity", "spikes"]

[options]
encoder = "ternary"
"k.*down_proj" = [3, 4]
"k.*" = {low = 2, high = 3, step = 0.5}
weights = ["int8", "int4"]
"""

    def read(path: Path) -> Any:
        found = read_spec(path)
        try:
            return [*SweepSettings(**{"options": {}, **found}).grid()]
        except InputError as error:  # speaks of the settings, wherever they are from
            raise InputError(f"{path}: {error}") from error

    return Subject(content, "spec.toml", read)


def _study(folder: Path) -> Subject:
    from spikebrain.jobs.sweep import SweepSettings  # noqa: PLC0415
    from spikebrain.jobs.sweep.results import best_rows, rows_of  # noqa: PLC0415
    from spikebrain.jobs.sweep.storage import JOURNAL  # noqa: PLC0415
    from spikebrain.jobs.sweep.study import Study  # noqa: PLC0415

    settings = SweepSettings({"k": [2.0, 3.0, 4.0]})

    def opened(folder: Path) -> Study:
        study = Study(settings, None, "sweep", folder)
        study.begin({"model": "m"})
        return study

    study = opened(folder)
    for finish in (lambda attempt: study.complete(attempt, {"perplexity": 7.5, "spikes": 1.25}), lambda attempt: None):
        attempt = study.take()
        assert attempt is not None
        finish(attempt)

    def read(path: Path) -> Any:
        rows = rows_of(settings, opened(path.parent).settled())
        return rows, best_rows(rows, settings)

    return Subject((folder / JOURNAL).read_bytes(), JOURNAL, read)


def _evaluation(folder: Path) -> Subject:
    from spikebrain.jobs.eval_journal import FILE_NAME, Journal  # noqa: PLC0415

    journal = Journal.of_job(folder, {"model": "m"})
    journal.add((("float", "text", 0), [1.5, 2.5]))
    journal.add((("k=3", "text", 0), [1.75, 2.75]))

    def read(path: Path) -> bool:
        return Journal.of_job(path.parent, {"model": "m"}).parts.items() <= journal.parts.items()  # or fewer

    return Subject(journal.path.read_bytes(), FILE_NAME, read, True)
