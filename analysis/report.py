"""The main job: one model and one text in, perplexities, spike statistics, energy and an exactness check out."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import os
import platform
import pydoc_data.topics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn

from ..backends import Backend
from ..coding import BidirectionalBitwise, Encoder
from ..energy import EnergyReport, PaperEnergy, count_operations
from ..errors import InputError
from ..models import Loaded, Policy, Recording, SpikeLinear, convert, dequantize, load, record
from ..neuro import AdaptiveThreshold
from .exactness import ExactnessCheck
from .histogram import plot_histogram
from .perplexity import measure_perplexity, split_windows
from .raster import plot_raster
from .stats import merged_histogram, spike_statistics

DEFAULT_TEXT = "pydoc_data.topics"
_RASTER_TOKENS = 12


@dataclass(frozen=True)
class ReportSettings:
    """What to run.

    Attributes:
        model: anything that `load` takes.
        text: a UTF-8 file, or None for the text of the standard library's pydoc_data.topics.
        num_tokens: tokens from the start of the text; a shorter text is used whole.
        context: tokens per window.
        k: of `AdaptiveThreshold`.
        encoder: turns counts into spikes.
        backend: accumulates; None picks the fastest.
        layers: pattern of layer names that spike.
        group_size: input channels that share a weight scale; None for all.
        seed: of the sample of output elements that is checked.
    """

    model: str = "smollm2"
    text: Path | None = None
    num_tokens: int = 2048
    context: int = 512
    k: float = 3.0
    encoder: Encoder = field(default_factory=BidirectionalBitwise)
    backend: Backend | None = None
    layers: str = "*"
    group_size: int | None = None
    seed: int = 0


def run_report(settings: ReportSettings, out: Path, console: Console | None = None) -> dict[str, Any]:
    """Run the model in float, with INT8 weights and spiking, and write what was found.

    Writes report.json, layers.csv, histogram.png and raster.png into `out`.

    Args:
        settings: what to run.
        out: folder to write to; made if it is missing.
        console: where progress is shown; None for standard error.
    Returns:
        The content of report.json.
    Raises:
        SpikebrainError: bad input; the message says which and what to do.
    """
    console = console or Console(stderr=True)
    start = time.perf_counter()
    policy = _policy(settings)
    text, text_source = _read_text(settings.text)
    _require_writable(out)
    console.print(f"Loading {settings.model}")
    loaded = load(settings.model, console=console)
    ids = _tokenize(loaded, text, settings, console)
    windows = split_windows(ids, settings.context)
    num_tokens = sum(len(window) for window in windows)
    seconds = {"load": time.perf_counter() - start}

    model = loaded.model
    already = any(isinstance(module, SpikeLinear) for module in model.modules())
    perplexity: dict[str, float | None] = {"float": None}
    with _progress(console) as progress:

        def measure(stage: str, title: str, model: nn.Module) -> None:
            began = time.perf_counter()
            perplexity[stage] = measure_perplexity(model, windows, progress(title, num_tokens)).value
            seconds[stage] = time.perf_counter() - began

        if already:
            console.print("The model was converted before: its own settings are used, and there is no float model.")
        else:
            measure("float", "float", model)
            model = convert(model, policy, inplace=True).model
        measure("int8", "INT8 weights", dequantize(model))
        check = ExactnessCheck(settings.seed)
        with record(model) as recording, check.watch(model):
            measure("spiking", "spiking", model)
    statistics = spike_statistics(recording.layers.values())
    layers = [_layer_row(recording, name) for name in recording.layers]
    energy = PaperEnergy().estimate(count_operations(recording))

    title = f"{Path(loaded.source).stem}, k = {settings.k:g}, {num_tokens:,} tokens of {text_source}"
    plot_histogram(merged_histogram(recording.layers.values()), out / "histogram.png", title)
    typical = min(layers, key=lambda row: abs(row["mean_spikes"] - statistics.mean_spikes))["name"]
    _draw_raster(model, loaded, windows[0][:_RASTER_TOKENS], typical, out / "raster.png")
    seconds["total"] = time.perf_counter() - start
    report = {
        "model": _describe_model(settings, loaded, recording),
        "settings": _describe_settings(settings, model),
        "text": {"source": text_source, "sha256": hashlib.sha256(text.encode()).hexdigest(), "num_tokens": num_tokens},
        "perplexity": perplexity,
        "spikes": dataclasses.asdict(statistics),
        "layers": layers,
        "energy": {"paper": _describe_energy(energy)},
        "exactness": {"num_checked": check.num_checked, "num_mismatches": check.num_mismatches},
        "environment": _environment(),
        "seconds": seconds,
    }
    if check.first_mismatch:
        report["exactness"]["first_mismatch"] = check.first_mismatch
    _write_csv(layers, out / "layers.csv")
    (out / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report


def _policy(settings: ReportSettings) -> Policy:
    if settings.num_tokens < settings.context:
        raise InputError(
            f"num_tokens: expected at least one window of context = {settings.context} tokens, got "
            f"{settings.num_tokens}. Raise num_tokens or lower context."
        )
    return Policy(
        layers=(settings.layers,),
        neuron=AdaptiveThreshold(settings.k),
        encoder=settings.encoder,
        group_size=settings.group_size,
        backend=settings.backend,
    )


def _read_text(path: Path | None) -> tuple[str, str]:
    """Return the text and where it is from."""
    if path is None:
        topics = pydoc_data.topics.topics
        return "\n\n".join(topics[name] for name in sorted(topics)), f"{DEFAULT_TEXT} of Python {platform.python_version()}"
    try:
        # Not read_text, which would change line ends and with them the checksum.
        return path.read_bytes().decode("utf-8"), path.name
    except OSError as error:
        raise InputError(f"--text {path}: cannot be read: {error.strerror}. Name a UTF-8 text file.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"--text {path}: expected UTF-8 text, got {error.reason} at byte {error.start}.") from error


def _require_writable(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise InputError(f"--out {out}: cannot be written: {error.strerror}. Name another folder.") from error


def _tokenize(loaded: Loaded, text: str, settings: ReportSettings, console: Console) -> Tensor:
    if loaded.tokenizer is None:
        raise InputError(f"{loaded.source}: expected a model with a tokenizer. Put its tokenizer files beside it.")
    longest = getattr(getattr(loaded.model, "config", None), "max_position_embeddings", None)
    if longest is not None and settings.context > longest:
        raise InputError(f"context: expected at most the model's {longest} positions, got {settings.context}.")
    ids = torch.tensor(loaded.tokenizer(text, verbose=False)["input_ids"], dtype=torch.int64)
    if settings.context <= len(ids) < settings.num_tokens:
        console.print(f"The text has only {len(ids):,} tokens, fewer than {settings.num_tokens:,}: all are used.")
    return ids[: settings.num_tokens]


@contextmanager
def _progress(console: Console) -> Iterator[Callable[[str, int], Callable[[int], None]]]:
    """Yield a function that adds a bar and returns what moves it on."""
    columns = (TextColumn("{task.description:13}"), BarColumn(), MofNCompleteColumn(), TextColumn("tokens"))
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as progress:

        def add(title: str, total: int) -> Callable[[int], None]:
            task = progress.add_task(title, total=total)
            return lambda tokens: progress.advance(task, tokens)

        yield add


def _layer_row(recording: Recording, name: str) -> dict[str, Any]:
    layer = recording.layers[name]
    sizes = {"in_features": layer.in_features, "out_features": layer.out_features}
    return {"name": name, **sizes, **dataclasses.asdict(spike_statistics([layer]))}


@torch.inference_mode()
def _draw_raster(model: nn.Module, loaded: Loaded, ids: Tensor, name: str, path: Path) -> None:
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the measurement, so that the same spikes are drawn
    try:
        with record(model, layers=(name,), keep_trains=True) as recording:
            model(input_ids=ids[None], use_cache=False)
    finally:
        torch.set_num_threads(num_threads)
    tokens = [loaded.tokenizer.decode([i]) for i in ids.tolist()] if loaded.tokenizer else None
    train = recording.spikes_of(name)
    plot_raster(train, path, title=f"Spikes into {name}", tokens=tokens)


def _describe_model(settings: ReportSettings, loaded: Loaded, recording: Recording) -> dict[str, Any]:
    return {
        "name": settings.model,
        "source": Path(loaded.source).name,
        "architecture": type(loaded.model).__name__,
        "num_parameters": sum(p.numel() for p in loaded.model.parameters()),
        "num_spiking_layers": len(recording.layers),
    }


def _describe_settings(settings: ReportSettings, model: nn.Module) -> dict[str, Any]:
    layer = next(module for module in model.modules() if isinstance(module, SpikeLinear))
    return {
        "num_tokens": settings.num_tokens,
        "context": settings.context,
        "neuron": repr(layer.neuron),
        "encoder": repr(layer.encoder),
        "backend": type(layer.backend).__name__ if layer.backend else "auto",
        "layers": settings.layers,
        "group_size": layer.group_size,
        "seed": settings.seed,
    }


def _describe_energy(energy: EnergyReport) -> dict[str, Any]:
    return {
        "average_spikes": energy.average_spikes,
        "fp16_mac_pj": energy.fp16_mac_pj,
        "int8_mac_pj": energy.int8_mac_pj,
        "spike_mac_pj": energy.spike_mac_pj,
        "saving_vs_fp16": energy.saving_vs_fp16,
        "saving_vs_int8": energy.saving_vs_int8,
        "ratio_vs_fp16": energy.ratio_vs_fp16,
        "ratio_vs_int8": energy.ratio_vs_int8,
        "fp16_total_pj": energy.fp16_total_pj,
        "int8_total_pj": energy.int8_total_pj,
        "spike_total_pj": energy.spike_total_pj,
        "table": {"name": energy.table.name, "process": energy.table.process, "source": energy.table.source},
        "assumptions": list(energy.assumptions),
        "left_out": list(energy.left_out),
    }


def _environment() -> dict[str, Any]:
    packages = ("spikebrain", "torch", "transformers", "numba", "numpy")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "num_cpus": os.cpu_count(),
        "num_threads": torch.get_num_threads(),
        **{package: version(package) for package in packages},
    }


def _write_csv(rows: list[dict[str, Any]], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
