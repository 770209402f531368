"""The files of a report: its JSON, a table of layers, and plots; and the machine that they are from."""

from __future__ import annotations

import csv
import os
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import analysis
from ..analysis.perplexity import one_thread
from ..analysis.stats import merged_histogram
from ..energy import DigitalEnergy, ModelCounts, waterfall
from ..errors import InputError
from ..files import whole_file, write_json
from ..models import LayerRecord
from ..models.recording import record

WRITTEN = ("report.json", "layers.csv", "histogram.png", "raster.png", "waterfall.png")
_RASTER_TOKENS = 12


def describe_environment(device: str) -> dict[str, Any]:
    """Return the machine and the versions that figures may depend on."""
    packages = ("spikebrain", "torch", "transformers", "numba", "numpy")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "num_cpus": os.cpu_count(),
        "num_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        **{package: version(package) for package in packages},
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
    Raises:
        InputError: a file cannot be written.
    """
    most = max(layer.num_tokens for layer in records)
    # A layer that every token passes, with about as many spikes as all of them.
    whole = [row for row, layer in zip(found["layers"], records, strict=True) if layer.num_tokens == most]
    typical = min(whole, key=lambda row: abs(row["mean_spikes"] - found["spikes"]["mean_spikes"]))["name"]
    try:
        analysis.plot_histogram(merged_histogram(records), out / "histogram.png", title)
        _draw_raster(model, tokenizer, window[:_RASTER_TOKENS], typical, out / "raster.png")
        analysis.plot_waterfall(waterfall(counts, DigitalEnergy()), out / "waterfall.png", title)
        _write_csv(found["layers"], out / "layers.csv")
        found["seconds"]["total"] = time.perf_counter() - start
        write_json(out / "report.json", found)
    except InputError as error:
        raise InputError(f"{error} What was measured is kept in {out}: run again once it can be written.") from error


@torch.inference_mode()
def _draw_raster(model: nn.Module, tokenizer: Any, ids: Tensor, name: str, path: Path) -> None:
    # On one thread as in the measurement, so that the same spikes are drawn.
    with one_thread(), record(model, layers=(name,), keep_trains=True) as recording:
        model(input_ids=ids[None].to(next(model.parameters()).device), use_cache=False)
    tokens = [str(tokenizer.decode([i])) for i in ids.tolist()] if tokenizer else None
    train = recording.trains[name][-1]  # sink tokens, if there are any, run by themselves before
    analysis.plot_raster(train, path, title=f"Spikes into {name}", tokens=tokens)


def _write_csv(rows: list[dict[str, Any]], path: Path) -> None:
    with whole_file(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
