"""The main job: one model and one text in, perplexities, spike statistics, energy and an exactness check out."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from .. import pages
from ..analysis.energy import describe_energy
from ..analysis.mixtures import mixture_statistics
from ..analysis.perplexity import split_windows
from ..analysis.stats import code_statistics, spike_statistics
from ..backends import BACKENDS, Backend, device_of
from ..coding import ENCODERS, Encoder
from ..energy import DigitalEnergy, ModelCounts, count_operations
from ..models import LayerRecord, Loaded, SpikeSettings, choose_layers, spiking_layers
from ..models.io import load
from ..models.io.checksums import of_text
from ..models.layers.graded_linear import owner_of
from ..neuro import NEURONS, Neuron
from ..neuro.band import without_band
from ..paths import model_name
from ..registry import describe, label
from ..text_table import few_in_words, kind_of
from .calibration import calibration_of
from .given import K, refuse_spikes, spike_settings, usual
from .inputs import (
    alone,
    check_seed,
    check_windows,
    first_tokens,
    is_spiking,
    look_ahead,
    look_at_layers,
    move,
    read_text,
    require_writable,
)
from .measure import Measured, attention_of, measure, weights_in_words
from .progress import SILENT, Progress
from .report_files import WRITTEN, describe_environment, write_files
from .resume import FILE_NAME, Unfinished, describe_source

# Raised when an older unfinished report could not go on.
_FORMAT = 4


@dataclass(frozen=True)
class ReportSettings:
    """What to run.

    A model that spikes already keeps its own settings: how it is to spike must then not be given.

    Attributes:
        model: anything that `load` takes.
        text: a UTF-8 file, or None for the text of the standard library's pydoc_data.topics.
        num_tokens: tokens from the start of the text; a shorter text is used whole.
        context: tokens per window.
        neuron: turns activations into counts, an object or a registered name; None for `AdaptiveThreshold`.
        k: of the neuron, if it has one: mean |x| of a token divided by its threshold, or one for each pattern of
            names of layers, of which the first that matches counts; None for its own.
        encoder: turns counts into spikes, an object or a registered name; None for `BidirectionalBitwise`.
        backend: computes the integer sums, an object or a registered name; "auto" or None picks the fastest.
        layers: pattern of the names of layers that spike; None for all.
        skip: patterns of the names of layers that stay dense; None for none.
        weights: "int8", "int4", or "stored" for those of a GGUF file as they are; None for "int8".
        group_size: input channels that share a weight scale; None for all, with "int4" for 32.
        attention: how softmax attention spikes, as in `SpikeSettings`; None leaves it in floating point.
        seed: random seed for the sample of outputs that is checked.
        device: "cpu"; "cuda"; or "auto" for a GPU if there is one and the backend can run on it.
    """

    model: str = "smollm2"
    text: Path | None = None
    num_tokens: int = 2048
    context: int = 512
    neuron: Neuron | str | None = None
    k: K | None = None
    encoder: Encoder | str | None = None
    backend: Backend | Literal["auto"] | str | None = None
    layers: str | None = None
    skip: tuple[str, ...] | None = None
    weights: str | None = None
    group_size: int | None = None
    attention: str | None = None
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        """Put objects in the place of names; raise an InputError if there is no such name."""
        object.__setattr__(self, "neuron", NEURONS.resolve(self.neuron, "neuron", None))
        object.__setattr__(self, "encoder", ENCODERS.resolve(self.encoder, "encoder", None))
        object.__setattr__(self, "backend", BACKENDS.resolve(self.backend, "backend", "auto", None))

    def spike_settings(self) -> SpikeSettings:
        """Return which layers spike, and how."""
        return spike_settings(self)


@alone
def report(settings: ReportSettings, out: Path, progress: Progress = SILENT) -> dict[str, Any]:
    """Run a model in floating point, with INT8 weights and on spikes, and write what was found.

    Writes report.html, report.json, layers.csv and the plots into `out`. A run that was interrupted
    goes on after its last finished windows when it is started again with the same settings.

    Args:
        settings: what to run.
        out: folder to write to; made if it is missing.
        progress: told what happens.
    Returns:
        The content of report.json.
    Raises:
        SpikebrainError: bad input; the message says which and what to do.
    """
    start = time.perf_counter()
    device_of(settings.device)
    check_seed(settings.seed)
    check_windows(settings.num_tokens, settings.context)
    chosen = settings.spike_settings()
    text, text_source = read_text(settings.text)
    require_writable(out)
    look_at_layers(look_ahead(settings.model, [text], text_source, settings.context), settings)
    progress.say(f"Loading {settings.model}")
    loaded = load(settings.model, say=progress.say, bar=progress.bar)
    device = move(loaded.model, settings.device, chosen.backend, progress)
    settings = dataclasses.replace(settings, device=device)
    if spikes_already := is_spiking(loaded.model):
        refuse_spikes(settings, loaded.source)
    else:
        # A pattern that matches nothing is told now, not after the float model ran.
        choose_layers(loaded.model, chosen)
    ids = first_tokens(loaded, text, settings.num_tokens, settings.context, progress)
    unfinished = Unfinished.of_job(out, _job(settings, loaded, text))
    if unfinished.replaces:
        progress.say(f"{unfinished.path} is of another text, model, version or settings: this report starts anew.")
    windows = split_windows(ids, settings.context)
    loading_s = time.perf_counter() - start
    run = measure(loaded.model, None if spikes_already else chosen, windows, settings.seed, unfinished, progress)

    records = [layer for layer in run.recording.layers.values() if layer.num_tokens]  # an expert may be silent
    counts = count_operations(run.recording)
    num_tokens = sum(len(window) for window in windows)
    found = {
        "kind": "report",
        "format": pages.FORMAT,
        "model": {
            "name": settings.model,
            "source": Path(loaded.source).name,
            "architecture": type(loaded.model).__name__,
            "num_spiking_layers": sum(not layer.is_coarse for layer in run.recording.layers.values()),
        },
        "settings": _describe_settings(settings, run.model, spikes_already),
        "text": {"source": text_source, "sha256": of_text(text), "num_tokens": num_tokens},
        **_figures(run, records, counts),
        "environment": describe_environment(device),
        "seconds": {"load": loading_s, **run.seconds},
    }
    calibration = calibration_of(settings.model)
    if calibration is not None:
        found["calibration"] = calibration
    title = f"{model_name(loaded.source)}, {num_tokens:,} tokens of {text_source}"
    meanings = pages.attributes_of(ReportSettings)
    write_files(out, found, title, start, run.model, records, counts, windows[0], loaded.tokenizer, meanings)
    unfinished.remove()
    return found


def _describe_settings(settings: ReportSettings, model: nn.Module, converted: bool) -> dict[str, Any]:
    """Return the settings that were used: those of the spiking layers where the model has its own."""
    layers = spiking_layers(model)
    layer = next(iter(layers.values()))
    neurons = {name: without_band(layer.neuron) for name, layer in layers.items()}
    return {
        "num_tokens": settings.num_tokens,
        "context": settings.context,
        "k": dict(settings.k) if isinstance(settings.k, Mapping) else _k_of(neurons),
        "neuron": few_in_words(map(label, neurons.values()), "neurons"),
        "lossy_code": layer.encoder.lossy,
        "encoder": ENCODERS.name_of(layer.encoder) or label(layer.encoder),
        "backend": "auto" if layer.backend == "auto" else BACKENDS.name_of(layer.backend) or label(layer.backend),
        "layers": "as converted" if converted else usual(settings.layers, "*"),
        "skip": [] if converted else list(usual(settings.skip, ())),
        "weights": weights_in_words(model),
        "group_size": layer.group_size,
        "attention": attention_of(model),
        "seed": settings.seed,
        "device": settings.device,
    }


def _k_of(neurons: Mapping[str, Neuron]) -> Any:
    """Return k of neurons: one, or that of each kind of layer, or a list of those that it has."""
    by_kind: dict[str, list[Any]] = {}
    for name, neuron in neurons.items():
        numbers = by_kind.setdefault(kind_of(owner_of(name)), [])
        if (k := getattr(neuron, "k", None)) not in numbers:
            numbers.append(k)
    found = {kind: numbers if len(numbers) > 1 else numbers[0] for kind, numbers in by_kind.items()}
    first, *others = found.values()
    return first if not isinstance(first, list) and all(k == first for k in others) else found


def _figures(run: Measured, records: list[LayerRecord], counts: ModelCounts) -> dict[str, Any]:
    """Return what was measured, counted, modelled and checked, as JSON values."""
    neurons = {name: layer.neuron for name, layer in spiking_layers(run.model).items()}
    exact = {name: cls() for name, cls in ENCODERS.registered.items() if not cls.lossy}
    codes = {name: code_statistics(records, encoder) for name, encoder in exact.items()}
    mixture = mixture_statistics(run.recording)
    return {
        "perplexity": run.perplexity,
        "spikes": dataclasses.asdict(spike_statistics(records)),
        "codes": {name: dataclasses.asdict(code) if code else None for name, code in codes.items()},
        **({} if mixture is None else {"mixture": dataclasses.asdict(mixture)}),
        "layers": [_layer_row(layer, neurons[layer.name]) for layer in records],
        "energy": describe_energy(counts, DigitalEnergy()),
        "exactness": run.check.state(),
    }


def _layer_row(layer: LayerRecord, neuron: Neuron) -> dict[str, Any]:
    sizes = {"in_features": layer.in_features, "out_features": layer.out_features}
    return {
        "name": layer.name,
        **sizes,
        "k": getattr(without_band(neuron), "k", None),
        **dataclasses.asdict(spike_statistics([layer])),
    }


def _job(settings: ReportSettings, loaded: Loaded, text: str) -> dict[str, Any]:
    """Return all that the figures depend on."""
    return {
        "format": _FORMAT,
        "settings": {
            name: describe(value) if name in ("neuron", "encoder", "backend") else repr(value)
            for name, value in vars(settings).items()
        },
        "text": of_text(text),
        **describe_source(loaded, WRITTEN, FILE_NAME),
    }
