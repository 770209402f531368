"""A model as other tools read it: what its layers do on a text, the layers themselves, or the whole model on spikes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from ..analysis.perplexity import split_windows
from ..backends import BACKENDS, Backend
from ..coding import ENCODERS, Encoder
from ..energy import neurobench_results
from ..errors import InputError
from ..exchange import (
    RECORDING_SUFFIXES,
    TRACE_SUFFIX,
    require_perfetto,
    to_nir,
    write_recording_timeline,
)
from ..exchange import export as export_recording
from ..files import write_json
from ..models import Recording, SpikeSettings, record, spiking_layers, to_spiking
from ..models.io import load, preview, save
from ..neuro import NEURONS, Neuron
from .given import K, refuse, refuse_spikes, spike_settings, usual
from .inputs import alone, is_spiking, load_spiking, look_at_layers, require_new, require_writable
from .progress import SILENT, Progress

_CONTEXT = 512
# Settings of a run, which a model or a graph of layers does not need.
_OF_A_RUN = ("text", "num_tokens", "device", "trains")
_NIR, _NEUROBENCH, _MODEL = ".nir", ".json", ".safetensors"
# An ending that says what a file holds; "llama-3.2-1b" has none.
_ENDING = re.compile(r"\.[a-z][a-z0-9]*")
# Files that need every spike.
_WITH_TRAINS = (_NEUROBENCH, TRACE_SUFFIX)


@dataclass(frozen=True)
class ExportSettings:
    """What is exported.

    A setting that would have no effect is refused, so None stands for "not given".

    Attributes:
        model: anything that `load` takes.
        text: a UTF-8 file; None for the text of the standard library's pydoc_data.topics.
        num_tokens: tokens from the start of the text, in windows of 512; None for 512.
        trains: keep every spike, which takes timesteps x tokens x channels bytes a layer; None for no.
        neuron: turns activations into counts, an object or a registered name; None for `AdaptiveThreshold`.
        k: of the neuron, if it has one: mean |x| of a token divided by its threshold, or one for each pattern of
            names of layers, of which the first that matches counts; None for its own.
        encoder: turns counts into spikes, an object or a registered name; None for `BidirectionalBitwise`.
        backend: computes the integer sums, an object or a registered name; "auto" or None picks the fastest. A model
            keeps it.
        layers: pattern of the names of layers that spike; None for all.
        skip: patterns of the names of layers that stay dense; None for none.
        weights: "int8", "int4", or "stored" for those of a GGUF file as they are; None for "int8".
        group_size: input channels that share a weight scale; None for all, with "int4" for 32.
        attention: how softmax attention spikes, as in `SpikeSettings`; None leaves it in floating point.
        format: of a model's folder: "spikebrain", or "compressed-tensors" for the same INT8 weights without spikes, for
            tools that know only those; None for "spikebrain".
        device: "cpu", "cuda", or "auto" or None for a GPU if there is one.
    """

    model: str = "smollm2"
    text: Path | None = None
    num_tokens: int | None = None
    trains: bool | None = None
    neuron: Neuron | str | None = None
    k: K | None = None
    encoder: Encoder | str | None = None
    backend: Backend | Literal["auto"] | str | None = None
    layers: str | None = None
    skip: tuple[str, ...] | None = None
    weights: str | None = None
    group_size: int | None = None
    attention: str | None = None
    format: str | None = None
    device: str | None = None

    def __post_init__(self) -> None:
        """Put objects in the place of names; raise an InputError if there is no such name."""
        object.__setattr__(self, "neuron", NEURONS.resolve(self.neuron, "neuron", None))
        object.__setattr__(self, "encoder", ENCODERS.resolve(self.encoder, "encoder", None))
        object.__setattr__(self, "backend", BACKENDS.resolve(self.backend, "backend", "auto", None))
        formats = ("spikebrain", "compressed-tensors")
        if self.format not in (None, *formats):
            raise InputError(f"format: expected {' or '.join(formats)}; got {self.format!r}.")

    def spike_settings(self) -> SpikeSettings:
        """Return which layers spike, and how."""
        return spike_settings(self)


class Exported(NamedTuple):
    """What `export` wrote.

    Attributes:
        what: the file holds, in words.
        num_layers: spiking layers in it; of the format compressed-tensors those with INT8 weights.
        num_tokens: that ran; 0 for a graph or a model.
        left_out: what the format cannot say, one sentence each.
    """

    what: str
    num_layers: int
    num_tokens: int = 0
    left_out: tuple[str, ...] = ()


def export(settings: ExportSettings, out: Path, progress: Progress = SILENT, *, force: bool = False) -> Exported:
    """Write a file or a folder for other tools.

    Args:
        settings: what is exported.
        out: what to write; its ending says what it holds: .parquet, .h5, .hdf5 or .npz a recording of the model on a
            text, .json the results of that run as NeuroBench has them, per token, .pftrace which layers spiked when,
            for Perfetto, and .nir the layers as a graph of NIR. Without an ending it is a folder with the model on
            spikes, which transformers opens; .safetensors holds it in one file, for `load`.
        progress: told what happens.
        force: write over what is there.
    Raises:
        SpikebrainError: bad input; the message says which and what to do.
    """
    suffix = out.suffix.lower()
    files = (*RECORDING_SUFFIXES, TRACE_SUFFIX, _NEUROBENCH, _NIR)
    if suffix in files:
        refuse(settings, ("format",), f"on {out.name}, which is no model folder")
    elif suffix == _MODEL or settings.format is not None or not _ENDING.fullmatch(suffix):
        return _export_model(settings, out, progress, force=force)
    else:
        raise InputError(
            f"out {out}: expected a name that ends in {', '.join((*files, _MODEL))}; or one without an ending, or a "
            "`format`, for the folder of a model."
        )
    if suffix == _NIR:
        refuse(settings, (*_OF_A_RUN, "backend", "attention"), f"on {out.name}, a graph of layers that do not run")
    if suffix == TRACE_SUFFIX:
        require_perfetto(f"out {out}")
    if suffix in _WITH_TRAINS:
        refuse(settings, ("trains",), f"on {out.name}, for which trains are always kept")
    require_writable(out.parent)
    if out.exists() and not force:
        raise InputError(f"out {out}: is there already. Name another file, or pass force=True to write over it.")
    if suffix == _NIR:
        return _export_graph(settings, out, progress)
    model, recording, tokens = _run(settings, suffix in _WITH_TRAINS or bool(settings.trains), progress)
    num_tokens = max(layer.num_tokens for layer in recording.layers.values())
    if suffix == _NEUROBENCH:
        write_json(out, neurobench_results(model, recording), indent=4)
        return Exported("results as NeuroBench has them, per token", len(recording.layers), num_tokens)
    if suffix == TRACE_SUFFIX:
        write_recording_timeline(recording, out, tokens)
        return Exported("timeline for Perfetto", len(recording.layers), num_tokens)
    export_recording(recording, out)
    what = "recording with its trains" if settings.trains else "recording"
    return Exported(what, len(recording.layers), num_tokens)


def _run(settings: ExportSettings, trains: bool, progress: Progress) -> tuple[nn.Module, Recording, list[str]]:
    """Run a model on a text, one window after the other, so that trains have an order; return its tokens, too."""
    num_tokens = usual(settings.num_tokens, _CONTEXT)
    context = min(num_tokens, _CONTEXT)
    inputs = {"num_tokens": num_tokens, "context": context, "device": usual(settings.device, "auto")}
    model, ids, _, _, tokenizer = load_spiking(settings.model, settings.text, settings, progress=progress, **inputs)
    windows = split_windows(ids, context)
    device = next(model.parameters()).device
    done = progress.bar("spiking", sum(len(window) for window in windows), "tokens")
    with record(model, keep_trains=trains) as recording, torch.inference_mode():
        for window in windows:
            model(input_ids=window[None].to(device), use_cache=False)
            done(len(window))
    return model, recording, [str(tokenizer.decode([i])) for i in ids.tolist()]


def _export_graph(settings: ExportSettings, out: Path, progress: Progress) -> Exported:
    model, _ = _load_on_spikes(settings, progress)
    found = to_nir(model)
    found.write(out)
    return Exported("graph of NIR", len(spiking_layers(model)), left_out=found.left_out)


@alone
def _export_model(settings: ExportSettings, out: Path, progress: Progress, *, force: bool) -> Exported:
    """Write the model itself, on spikes."""
    is_file = out.suffix.lower() == _MODEL
    refuse(settings, _OF_A_RUN, f"on {out.name}, a model that does not run")
    if is_file:
        refuse(settings, ("format",), f"on {out.name}, which is no folder")
    if settings.format == "compressed-tensors":
        refuse(settings, ("attention",), "in the format compressed-tensors, whose models do not spike")
    require_new(out, sources=(settings.model,), force=force, or_file=True)
    model, tokenizer = _load_on_spikes(settings, progress)
    save(model, out, tokenizer, format=usual(settings.format, "spikebrain"))
    return Exported("model file" if is_file else "model folder", len(spiking_layers(model)))


def _load_on_spikes(settings: ExportSettings, progress: Progress) -> tuple[nn.Module, Any]:
    """Return a model, put on spikes unless it is already, and its tokenizer."""
    look_at_layers(preview(settings.model), settings)
    model, tokenizer, source = load(settings.model, say=progress.say, bar=progress.bar)
    if is_spiking(model):
        refuse_spikes(settings, source)
        return model, tokenizer
    return to_spiking(model, settings.spike_settings(), inplace=True), tokenizer
