"""The files of a report: its JSON, a table of layers, and plots; and the machine that they are from."""

from __future__ import annotations

import csv
import os
import platform
import re
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import analysis, pages
from ..analysis.histogram import BARS, bars_of
from ..analysis.perplexity import one_thread
from ..analysis.stats import merged_histogram
from ..coding import SpikeTrain
from ..energy import DigitalEnergy, ModelCounts, waterfall
from ..errors import InputError
from ..files import whole_file, write_json
from ..models import LayerRecord
from ..models.recording import record
from ..version import __version__

WRITTEN = ("report.json", "report.html", "layers.csv", "histogram.png", "raster.png", "waterfall.png")
_RASTER_TOKENS = 12
# Bytes of trains that are kept for the rasters, and places of a raster that the page holds.
_MOST_TRAINS, _MOST_PLACES = 200_000_000, 200_000


def describe_environment(device: str) -> dict[str, Any]:
    """Return the machine and the versions that figures may depend on."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "num_cpus": os.cpu_count(),
        "num_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "spikebrain": __version__,
        **{package: version(package) for package in ("torch", "transformers", "numba", "numpy")},
    }


def write_files(
    out: Path,
    found: dict[str, Any],
    title: str,
    start: float,
    model: nn.Module,
    records: list[LayerRecord],
    counts: ModelCounts,
    window: Tensor,
    tokenizer: Any,
    meanings: dict[str, str],
) -> None:
    """Write all files of a report.

    Args:
        out: folder.
        found: the report; gets its total of seconds.
        title: of the plots.
        start: time.perf_counter() at the start of the job.
        model: the spiking model, of which a layer's spikes are drawn.
        records: of the layers that ran.
        counts: of the run.
        window: token ids whose first tokens are drawn.
        tokenizer: names the tokens in the raster; may be None.
        meanings: of the settings, by name.
    Raises:
        InputError: a file cannot be written.
    """
    most = max(layer.num_tokens for layer in records)
    # A layer that every token passes, with about as many spikes as all of them.
    whole = [row for row, layer in zip(found["layers"], records, strict=True) if layer.num_tokens == most]
    typical = min(whole, key=lambda row: abs(row["mean_spikes"] - found["spikes"]["mean_spikes"]))["name"]
    try:
        analysis.plot_histogram(merged_histogram(records), out / "histogram.png", title)
        found["histograms"] = {"counts": BARS, "layers": {x.name: bars_of(x.count_histogram) for x in records}}
        found["rasters"] = _draw_rasters(model, tokenizer, window[:_RASTER_TOKENS], typical, records, out)
        analysis.plot_waterfall(waterfall(counts, DigitalEnergy()), out / "waterfall.png", title)
        _write_csv(found["layers"], out / "layers.csv")
        found["seconds"]["total"] = time.perf_counter() - start
        write_json(out / "report.json", found)
        pages.write_page(found, out / "report.html", WRITTEN, meanings)
    except InputError as error:
        raise InputError(f"{error} What was measured is kept in {out}: run again once it can be written.") from error


def _draw_rasters(
    model: nn.Module, tokenizer: Any, ids: Tensor, typical: str, records: list[LayerRecord], out: Path
) -> list[dict[str, Any]]:
    """Draw the spikes into one layer, and return those into the layers of its block as JSON values."""
    names, size = [], 0
    for layer in sorted(records, key=lambda x: x.name != typical):  # the typical layer whatever its size
        size += layer.num_timesteps * len(ids) * layer.in_features
        if layer.name == typical or (_block(layer.name) == _block(typical) and size <= _MOST_TRAINS):
            names.append(layer.name)
    trains = _run_trains(model, ids, names)
    tokens = [str(tokenizer.decode([i])) for i in ids.tolist()] if tokenizer else [f"token {i}" for i in ids.tolist()]
    title = f"Spikes into {typical}"
    analysis.plot_raster(trains[typical], out / "raster.png", title=title, tokens=tokens if tokenizer else None)
    groups: list[tuple[SpikeTrain, list[str]]] = []
    for layer in records:
        train = trains.get(layer.name)
        if train is None or train.spikes.shape[1] != len(ids):  # an expert sees some tokens only
            continue
        same = next((names for other, names in groups if _equal(train, other)), None)
        if same is None:
            groups.append((train, [layer.name]))
        else:
            same.append(layer.name)
    return [{"layers": names, **_raster_data(train, tokens)} for train, names in groups]


def _raster_data(train: SpikeTrain, tokens: list[str]) -> dict[str, Any]:
    num_timesteps, num_tokens, _ = train.spikes.shape
    most = max(1, _MOST_PLACES // (num_timesteps * num_tokens))
    return analysis.raster(train, tokens=tokens, num_neurons=most).to_data()


@torch.inference_mode()
def _run_trains(model: nn.Module, ids: Tensor, names: list[str]) -> dict[str, SpikeTrain]:
    # On one thread as in the measurement, so that the same spikes are drawn.
    with one_thread(), record(model, layers=tuple(names), keep_trains=True) as recording:
        model(input_ids=ids[None].to(next(model.parameters()).device), use_cache=False)
    # Sink tokens, if there are any, run by themselves before.
    return {name: trains[-1] for name, trains in recording.trains.items()}


def _block(name: str) -> str:
    """Return what the names of a block's layers have in common."""
    return re.sub(r"(\.\d+)\..*", r"\1", f".{name}")


def _equal(a: SpikeTrain, b: SpikeTrain) -> bool:
    return torch.equal(a.timestep_weight, b.timestep_weight) and torch.equal(a.spikes, b.spikes)


def _write_csv(rows: list[dict[str, Any]], path: Path) -> None:
    with whole_file(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
