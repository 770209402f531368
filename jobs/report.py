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
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import torch
from rich.console import Console
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..analysis.energy import describe_energy
from ..analysis.energy_plots import plot_waterfall
from ..analysis.exactness import ExactnessCheck
from ..analysis.histogram import plot_histogram
from ..analysis.perplexity import one_thread, perplexity_of, split_windows, window_nlls
from ..analysis.raster import plot_raster
from ..analysis.stats import code_statistics, merged_histogram, spike_statistics
from ..backends import BACKENDS, Backend, device_of
from ..coding import ENCODERS, BidirectionalBitwise, Encoder
from ..energy import DigitalEnergy, count_operations, waterfall
from ..errors import InputError
from ..models import LayerRecord, Loaded, Recording, SpikeLinear, SpikeSettings, choose_layers, to_dense, to_spiking
from ..models.io import load
from ..models.recording import record
from ..neuro import AdaptiveThreshold
from .progress import progress_bars
from .resume import FILE_NAME, Unfinished

DEFAULT_TEXT = "pydoc_data.topics"
_RASTER_TOKENS = 12
_WRITTEN = ("report.json", "layers.csv", "histogram.png", "raster.png", "waterfall.png")


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
        backend: accumulates; "auto" picks the fastest.
        layers: pattern of layer names that spike.
        group_size: input channels that share a weight scale; None for all.
        seed: of the sample of output elements that is checked.
        device: "cpu"; "cuda"; or "auto" for a GPU if there is one and the backend can run on it.
    """

    model: str = "smollm2"
    text: Path | None = None
    num_tokens: int = 2048
    context: int = 512
    k: float = 3.0
    encoder: Encoder = field(default_factory=BidirectionalBitwise)
    backend: Backend | Literal["auto"] = "auto"
    layers: str = "*"
    group_size: int | None = None
    seed: int = 0
    device: str = "auto"


def run_report(settings: ReportSettings, out: Path, console: Console | None = None) -> dict[str, Any]:
    """Run the model in float, with INT8 weights and spiking, and write what was found.

    Writes report.json, layers.csv, histogram.png, raster.png and waterfall.png into `out`. A run that was interrupted
    goes on after its last finished windows when it is started again with the same arguments.

    Args:
        settings: what to run.
        out: folder to write to; made if it is missing.
        console: where progress is shown; None for standard error.
    Returns:
        The content of report.json.
    Raises:
        SpikebrainError: bad input; the message says which and what to do.
    """
    console = console or Console(stderr=True, markup=False)
    start = time.perf_counter()
    policy = policy_of(settings)
    text, text_source = read_text(settings.text)
    require_writable(out)
    console.print(f"Loading {settings.model}")
    loaded = load(settings.model, console=console)
    settings = _moved(loaded, settings, console)
    converted = is_spiking(loaded.model)
    if not converted:
        choose_layers(loaded.model, policy)  # a pattern that matches nothing is told now, not after the float model ran
    ids = tokenize(loaded, text, settings, console)
    unfinished = Unfinished.of_job(out, _job(settings, loaded, text))
    windows = split_windows(ids, settings.context)
    seconds = {"load": time.perf_counter() - start}
    run = _measure(loaded.model, None if converted else policy, windows, settings.seed, unfinished, console)

    records = [layer for layer in run.recording.layers.values() if layer.num_tokens]  # an expert may be silent
    statistics = spike_statistics(records)
    codes = {name: code_statistics(records, ENCODERS.create(name)) for name in ENCODERS}
    layers = [_layer_row(layer) for layer in records]
    num_tokens = sum(len(window) for window in windows)
    counts = count_operations(run.recording)
    report = {
        "model": {
            "name": settings.model,
            "source": Path(loaded.source).name,
            "architecture": type(loaded.model).__name__,
            "num_spiking_layers": len(run.recording.layers),
        },
        "settings": _describe_settings(settings, run.model, converted),
        "text": {"source": text_source, "sha256": _sha256(text), "num_tokens": num_tokens},
        "perplexity": run.perplexity,
        "spikes": dataclasses.asdict(statistics),
        "codes": {name: dataclasses.asdict(code) if code else None for name, code in codes.items()},
        "layers": layers,
        "energy": describe_energy(counts, DigitalEnergy()),
        "exactness": run.check.state(),
        "environment": _environment(settings.device),
        "seconds": seconds | run.seconds,
    }
    title = f"{Path(loaded.source).stem}, {num_tokens:,} tokens of {text_source}"
    most = max(layer.num_tokens for layer in records)
    whole = [row for row, layer in zip(layers, records, strict=True) if layer.num_tokens == most]  # every token passes
    typical = min(whole, key=lambda row: abs(row["mean_spikes"] - statistics.mean_spikes))["name"]
    try:
        plot_histogram(merged_histogram(records), out / "histogram.png", title)
        _draw_raster(run.model, loaded, windows[0][:_RASTER_TOKENS], typical, out / "raster.png")
        plot_waterfall(waterfall(counts, DigitalEnergy()), out / "waterfall.png", title)
        _write_csv(layers, out / "layers.csv")
        report["seconds"]["total"] = time.perf_counter() - start
        (out / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"--out {out}: cannot be written: {error}. What was measured is kept there: run again once it can be."
        ) from error
    unfinished.remove()
    return report


@dataclass
class _Run:
    """What `_measure` found."""

    model: nn.Module
    perplexity: dict[str, float | None]
    recording: Recording
    check: ExactnessCheck
    seconds: dict[str, float]


def _measure(
    model: nn.Module,
    policy: SpikeSettings | None,
    windows: list[Tensor],
    seed: int,
    unfinished: Unfinished,
    console: Console,
) -> _Run:
    """Run all windows through the float model, the one with INT8 weights, and the spiking one.

    Without a policy the model spikes already, and there is no float model.
    """
    perplexity: dict[str, float | None] = {"float": None}
    seconds: dict[str, float] = {}
    if unfinished.num_windows:
        console.print(f"Going on with the run that was interrupted: {unfinished.num_windows} windows were done.")
    with progress_bars(console) as add_bar:

        def measure(stage: str, title: str, model: nn.Module, *recorders: Any) -> None:
            began = time.perf_counter()
            nlls = unfinished.nlls.setdefault(stage, [])
            done = add_bar(title, sum(len(window) for window in windows))
            done(sum(len(window) for window in windows[: len(nlls)]))
            while len(nlls) < len(windows):
                nlls += window_nlls(model, windows[len(nlls) :][: torch.get_num_threads()], done)
                unfinished.save(*recorders)
            perplexity[stage] = perplexity_of(nlls, windows)
            seconds[stage] = time.perf_counter() - began

        if policy is None:
            console.print("The model was converted before: its own settings are used, and there is no float model.")
        else:
            measure("float", "float", model)
            model = to_spiking(model, policy, inplace=True)
        measure("int8", "INT8 weights", to_dense(model))
        check = ExactnessCheck(seed)
        # Only what `count_operations` asks for by default: other sizes of blocks would be counted for nobody.
        with record(model, block_bytes=(64,)) as recording, check.watch(model):
            unfinished.restore(recording, check)
            measure("spiking", "spiking", model, recording, check)
    return _Run(model, perplexity, recording, check, seconds)


class SpikingText(NamedTuple):
    """A spiking model and what it is to read.

    Attributes:
        model: converted, unless it was before.
        ids: token ids, [tokens].
        source: file, folder or hub id that the model is from.
        text_source: where the text is from.
    """

    model: nn.Module
    ids: Tensor
    source: str
    text_source: str


def load_spiking(settings: ReportSettings, console: Console) -> SpikingText:
    """Load a model and a text, and let the model spike, unless it does.

    Raises:
        SpikebrainError: bad input; the message says which and what to do.
    """
    policy = policy_of(settings)
    text, text_source = read_text(settings.text)
    loaded = load(settings.model, console=console)
    _moved(loaded, settings, console)
    ids = tokenize(loaded, text, settings, console)
    model = loaded.model if is_spiking(loaded.model) else to_spiking(loaded.model, policy, inplace=True)
    return SpikingText(model, ids, loaded.source, text_source)


def _moved(loaded: Loaded, settings: ReportSettings, console: Console) -> ReportSettings:
    """Move a model to where it is to run; returns settings that name the device."""
    backends = [module.backend for module in loaded.model.modules() if isinstance(module, SpikeLinear)]
    device = device_of(settings.device, backends or [settings.backend])
    loaded.model.to(device)
    if device == "cuda":
        console.print(f"Running on {torch.cuda.get_device_name()}; a first run takes minutes to prepare its kernels")
    return dataclasses.replace(settings, device=device)


def is_spiking(model: nn.Module) -> bool:
    """Return whether a model has been converted."""
    return any(isinstance(module, SpikeLinear) for module in model.modules())


def policy_of(settings: ReportSettings) -> SpikeSettings:
    """Return which layers spike, and how; raise an InputError if a setting is wrong."""
    device_of(settings.device)
    if settings.seed < 0:
        raise InputError(f"seed: expected an integer >= 0, got {settings.seed}.")
    if settings.num_tokens < settings.context:
        raise InputError(
            f"num_tokens: expected at least one window of context = {settings.context} tokens, got "
            f"{settings.num_tokens}. Raise num_tokens or lower context."
        )
    return SpikeSettings(
        layers=(settings.layers,),
        neuron=AdaptiveThreshold(settings.k),
        encoder=settings.encoder,
        group_size=settings.group_size,
        backend=settings.backend,
    )


def read_text(path: Path | None) -> tuple[str, str]:
    """Return the text and where it is from."""
    if path is None:
        topics = pydoc_data.topics.topics
        text = "\n\n".join(topics[name] for name in sorted(topics))
        return text, f"{DEFAULT_TEXT} of Python {platform.python_version()}"
    try:
        # Not read_text, which would change line ends and with them the checksum.
        return path.read_bytes().decode("utf-8"), path.name
    except OSError as error:
        raise InputError(f"--text {path}: cannot be read: {error.strerror}. Name a UTF-8 text file.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"--text {path}: expected UTF-8 text, got {error.reason} at byte {error.start}.") from error


def require_writable(out: Path) -> None:
    """Make a folder to write to; raise an InputError if nothing can be written there."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise InputError(f"--out {out}: cannot be written: {error.strerror}. Name another folder.") from error


def tokenize(loaded: Loaded, text: str, settings: ReportSettings, console: Console) -> Tensor:
    """Return the ids of the first tokens of a text, checked against the model."""
    if loaded.tokenizer is None:
        raise InputError(f"{loaded.source}: expected a model with a tokenizer. Put its tokenizer files beside it.")
    config: Any = loaded.model.config
    config = config.get_text_config()
    names = ("max_position_embeddings", "max_seq_len", "n_positions", "seq_length")
    longest = next((value for name in names if isinstance(value := getattr(config, name, None), int)), None)
    if longest is not None and settings.context > longest:
        raise InputError(
            f"A window of {settings.context:,} tokens: expected at most the model's {longest:,} positions. Lower "
            "context (for simulate, num_tokens)."
        )
    ids = torch.tensor(loaded.tokenizer.encode(text, verbose=False), dtype=torch.int64)
    vocabulary = cast(PreTrainedModel, loaded.model).get_input_embeddings()
    if isinstance(vocabulary, nn.Embedding) and len(ids) and int(ids.max()) >= vocabulary.num_embeddings:
        raise InputError(
            f"{loaded.source}: expected token ids below {vocabulary.num_embeddings}, got {int(ids.max())}: the "
            "tokenizer is not this model's. Use the files that belong together."
        )
    if settings.context <= len(ids) < settings.num_tokens:
        console.print(f"The text has only {len(ids):,} tokens, fewer than {settings.num_tokens:,}: all are used.")
    return ids[: settings.num_tokens]


def _job(settings: ReportSettings, loaded: Loaded, text: str) -> dict[str, Any]:
    """Return all that the figures depend on; a model file counts by its name, size and time of change."""
    source = Path(loaded.source)
    files = [source] if source.is_file() else sorted(source.glob("*")) if source.is_dir() else []
    versions = [version(package) for package in ("spikebrain", "torch", "transformers", "numba", "numpy")]
    return {
        "settings": repr(settings),
        "text": _sha256(text),
        "source": loaded.source,
        "commit": getattr(getattr(loaded.model, "config", None), "_commit_hash", None),
        # Not what a report itself writes, in case it goes into the model's folder.
        "files": [
            (file.name, file.stat().st_size, file.stat().st_mtime_ns)
            for file in files
            if file.is_file() and file.name not in _WRITTEN and not file.name.startswith(Path(FILE_NAME).stem)
        ],
        "versions": versions,
    }


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _layer_row(layer: LayerRecord) -> dict[str, Any]:
    sizes = {"in_features": layer.in_features, "out_features": layer.out_features}
    return {"name": layer.name, **sizes, **dataclasses.asdict(spike_statistics([layer]))}


@torch.inference_mode()
def _draw_raster(model: nn.Module, loaded: Loaded, ids: Tensor, name: str, path: Path) -> None:
    # On one thread as in the measurement, so that the same spikes are drawn.
    with one_thread(), record(model, layers=(name,), keep_trains=True) as recording:
        model(input_ids=ids[None].to(next(model.parameters()).device), use_cache=False)
    tokens = [str(loaded.tokenizer.decode([i])) for i in ids.tolist()] if loaded.tokenizer else None
    train = recording.trains[name][-1]  # sink tokens, if there are any, run by themselves before
    plot_raster(train, path, title=f"Spikes into {name}", tokens=tokens)


def _describe_settings(settings: ReportSettings, model: nn.Module, converted: bool) -> dict[str, Any]:
    layer = next(module for module in model.modules() if isinstance(module, SpikeLinear))
    return {
        "num_tokens": settings.num_tokens,
        "context": settings.context,
        "k": getattr(layer.neuron, "k", None),
        "neuron": repr(layer.neuron),
        "encoder": ENCODERS.name_of(layer.encoder) or repr(layer.encoder),
        "backend": "auto" if layer.backend == "auto" else BACKENDS.name_of(layer.backend) or repr(layer.backend),
        "layers": "as converted" if converted else settings.layers,
        "group_size": layer.group_size,
        "seed": settings.seed,
        "device": settings.device,
    }


def _environment(device: str) -> dict[str, Any]:
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


def _write_csv(rows: list[dict[str, Any]], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
