"""What a run costs by an energy table: counted from a model that is run here, or read from an earlier report."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from .. import analysis, pages
from ..analysis.energy import describe_energy
from ..analysis.perplexity import split_windows, window_nlls
from ..backends import BACKENDS, Backend
from ..coding import ENCODERS, Encoder
from ..energy import (
    DigitalEnergy,
    EnergyReport,
    EnergyTable,
    ModelCounts,
    SynopEnergy,
    break_even,
    count_operations,
    waterfall,
)
from ..energy.counts import PROJECTION
from ..errors import InputError
from ..files import read_json, write_json
from ..models import SpikeSettings
from ..models.recording import record
from ..neuro import NEURONS, Neuron
from .given import SPIKES, K, refuse, spike_settings, usual
from .inputs import alone, load_spiking, require_writable
from .progress import SILENT, Progress

# Tokens of a window.
_CONTEXT = 512
# Settings of a run, which a report has had already.
_OF_A_RUN = ("block_bytes", "shared_tokens", *SPIKES, "text", "num_tokens", "device")
_WHOLE = "with the table {} of a chip, whose energies are whole"
_WRITTEN = ("report.json", "energy.json")


@dataclass(frozen=True)
class EnergySettings:
    """Whose energy is estimated. All but `source` and `energy` are for a model, which is run.

    A model that spikes already keeps its own settings: how it is to spike must then not be given.

    Attributes:
        source: a model, that is anything that `load` takes; or a report.json or energy.json, or the folder of one.
        energy: `DigitalEnergy` prices every counted operation and byte; `SynopEnergy` gives one number, by the energy
            of a published chip's synaptic operation.
        block_bytes: size of a memory block, where weights are read per block; None for 64.
        shared_tokens: consecutive tokens that share a read of weights; None for 1.
        neuron: turns activations into counts, an object or a registered name; None for `AdaptiveThreshold`.
        k: of the neuron, if it has one: mean |x| of a token divided by its threshold, or one for each pattern of
            names of layers, of which the first that matches counts; None for its own.
        encoder: turns counts into spikes, an object or a registered name; None for `BidirectionalBitwise`.
        backend: computes the integer sums, an object or a registered name; "auto" or None picks the fastest.
        weights: "int8", "int4", or "stored" for those of a GGUF file as they are; None for "int8".
        attention: how softmax attention spikes, as in `SpikeSettings`; None leaves it in floating point.
        text: a UTF-8 file, or None for the text of the standard library's pydoc_data.topics.
        num_tokens: tokens from the start of the text; None for 512.
        device: "cpu"; "cuda"; or "auto" or None for a GPU if there is one and the backend can run on it.
    """

    source: str = "smollm2"
    energy: DigitalEnergy | SynopEnergy = field(default_factory=DigitalEnergy)
    block_bytes: int | None = None
    shared_tokens: int | None = None
    neuron: Neuron | str | None = None
    k: K | None = None
    encoder: Encoder | str | None = None
    backend: Backend | Literal["auto"] | str | None = None
    weights: str | None = None
    attention: str | None = None
    text: Path | None = None
    num_tokens: int | None = None
    device: str | None = None

    def spike_settings(self) -> SpikeSettings:
        """Return how the layers spike."""
        return spike_settings(self)

    def __post_init__(self) -> None:
        """Put objects in the place of names; raise an InputError if there is no such name."""
        object.__setattr__(self, "neuron", NEURONS.resolve(self.neuron, "neuron", None))
        object.__setattr__(self, "encoder", ENCODERS.resolve(self.encoder, "encoder", None))
        object.__setattr__(self, "backend", BACKENDS.resolve(self.backend, "backend", "auto", None))


def energy_model(table: EnergyTable, **options: Any) -> DigitalEnergy | SynopEnergy:
    """Return the model that a table is for: `DigitalEnergy` with these options, or `SynopEnergy`, which has none.

    Raises:
        InputError: an option has no effect, or a wrong value.
    """
    if "synop" in table and "int8_add" not in table:
        refuse(options, options, _WHOLE.format(table.name))
        return SynopEnergy(table)
    if "token_s" in options and "leakage_w" not in options:
        raise InputError("token_s: has no effect without `leakage_w`, the power of the idle chip. Give both.")
    return DigitalEnergy(table, **options)


@dataclass(frozen=True)
class EnergyEstimate:
    """What `energy` found.

    Attributes:
        counts: operations and bytes of the run.
        figures: the content of energy.json, with `DigitalEnergy`; else None.
        by_synops: the estimate of `SynopEnergy`; else None.
        files: names of the files that were written.
    """

    counts: ModelCounts
    figures: dict[str, Any] | None
    by_synops: EnergyReport | None
    files: tuple[str, ...]


@alone
def energy(settings: EnergySettings, out: Path | None = None, progress: Progress = SILENT) -> EnergyEstimate:
    """Estimate what a run on spikes costs beside dense INT8 and FP16.

    Args:
        settings: of what, and how.
        out: folder for energy.html, energy.json, waterfall.png and break_even.png; None to write nothing.
        progress: told what happens.
    Raises:
        SpikebrainError: bad input; the message says which and what to do.
    """
    model = settings.energy
    if isinstance(model, SynopEnergy) and out is not None:
        raise InputError(
            f"out {out}: nothing is written with the table {model.table.name}, which gives one number. Leave it out."
        )
    path = _file_of(settings.source)
    if path is not None:
        refuse(settings, _OF_A_RUN, f"on {path}, whose model has run already")
        counts = read_counts(path)
    else:
        _refuse_reads(settings, out)
        counts = count_run(settings, progress)
    if isinstance(model, SynopEnergy):
        return EnergyEstimate(counts, None, model.estimate(counts), ())
    if model.shifts_per != "timestep" and not any(x.spiking.num_shifts_per_spike for x in counts.layers.values()):
        progress.say("All spikes of this code weigh the same, so none is shifted: per spike or timestep is the same.")
    figures = {"kind": "energy", "format": pages.FORMAT, **describe_energy(counts, model)}
    return EnergyEstimate(counts, figures, None, () if out is None else _write(figures, counts, model, out))


def _refuse_reads(settings: EnergySettings, out: Path | None) -> None:
    """Raise an InputError if it was said how weights are read, and no figure depends on it."""
    model = settings.energy
    if isinstance(model, SynopEnergy):
        names = ("block_bytes", "shared_tokens")
        refuse(settings, names, _WHOLE.format(model.table.name))
    elif model.reads_per != "block" and out is None:
        why = f"where weights are read per {model.reads_per} (`reads_per`) and no counts are written (`out`)"
        refuse(settings, ("block_bytes",), why)


def read_counts(path: Path) -> ModelCounts:
    """Return the counts that a report.json or energy.json holds.

    Raises:
        InputError: the file is none of this version, or it was changed; the message says where.
    """
    content = read_json(path)
    pages.check_kind(content, str(path), ("report", "energy"))
    energy = content.get("energy", content)
    if not isinstance(energy, dict) or "counts" not in energy:
        raise InputError(
            f"{path}: expected a report.json of this version, with the counts of its run. Run spikebrain report again."
        )
    try:
        return ModelCounts.from_dict(energy["counts"])
    except InputError as error:
        raise InputError(f"{path}: {error} Run spikebrain report again.") from error


def count_run(settings: EnergySettings, progress: Progress = SILENT) -> ModelCounts:
    """Run a model on a text and count its operations and bytes."""
    num_tokens = usual(settings.num_tokens, _CONTEXT)
    context = min(num_tokens, _CONTEXT)
    inputs = {"num_tokens": num_tokens, "context": context, "device": usual(settings.device, "auto")}
    model, ids, *_ = load_spiking(settings.source, settings.text, settings, progress=progress, **inputs)
    windows = split_windows(ids, context)
    block_bytes, shared_tokens = usual(settings.block_bytes, 64), usual(settings.shared_tokens, 1)
    with record(model, block_bytes=(block_bytes,), shared_tokens=(shared_tokens,)) as recording:
        done = progress.bar("spiking", sum(len(window) for window in windows), "tokens")
        for first in range(0, len(windows), torch.get_num_threads()):
            window_nlls(model, windows[first : first + torch.get_num_threads()], done)
    return count_operations(recording, block_bytes=block_bytes, shared_tokens=shared_tokens)


def _file_of(source: str) -> Path | None:
    """Return the file that holds counts, or None if the source is a model."""
    path = Path(source)
    if source.endswith(".json"):
        return path
    if (path / "config.json").exists():  # a model's folder, even if a report was written into it
        return None
    return next((path / name for name in _WRITTEN if (path / name).is_file()), None)


def _write(figures: dict[str, Any], counts: ModelCounts, model: DigitalEnergy, out: Path) -> tuple[str, ...]:
    title = f"{counts.model}, table {model.table.name}, weights read per {model.reads_per}"
    groups = counts.grouped()
    spiking = [name for name, layer in groups.layers.items() if layer.kind == PROJECTION and layer.spiking.num_spikes]
    points = [break_even(groups, model, name) for name in spiking]
    require_writable(out)
    write_json(out / "energy.json", figures)
    analysis.plot_waterfall(waterfall(counts, model), out / "waterfall.png", title)
    analysis.plot_break_even(points, out / "break_even.png", title)
    files = ("energy.html", "energy.json", "waterfall.png", "break_even.png")
    pages.write_page(figures, out / "energy.html", files)
    return files
