"""Perplexity of a model in float, with integer weights and on spikes; an interrupted run goes on where it stopped."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..analysis.exactness import ExactnessCheck
from ..analysis.perplexity import perplexity_of, window_nlls
from ..models import Recording, SpikeSettings, spiking_layers, to_dense, to_spiking
from ..models.layers import Conversion
from ..models.layers.attention_interface import attention_modules, runs_on_counts
from ..models.layers.settings import COUNTED
from ..models.recording import record
from ..models.spikingbrain import SpikingBrainForCausalLM
from .progress import SILENT, Progress
from .resume import Unfinished


@dataclass(frozen=True)
class Measured:
    """What `measure` found.

    Attributes:
        model: the spiking model.
        perplexity: of the stages "float" (None for a model that spiked already), "int8" and "spiking".
        recording: what the spiking layers did.
        check: of the spiking stage.
        seconds: of each stage.
    """

    model: nn.Module
    perplexity: dict[str, float | None]
    recording: Recording
    check: ExactnessCheck
    seconds: dict[str, float]


def measure(
    model: nn.Module,
    spike_settings: SpikeSettings | None,
    windows: list[Tensor],
    seed: int,
    unfinished: Unfinished,
    progress: Progress = SILENT,
) -> Measured:
    """Run all windows through the float model, the one with integer weights, and the spiking one.

    Args:
        model: put on spikes in place.
        spike_settings: which layers spike, and how; None for a model that spikes already, which has no float stage.
        windows: token ids, each [L].
        seed: of the sample of outputs that is checked.
        unfinished: finished windows of an earlier run; saved after every few windows.
        progress: told what happens.
    """
    perplexity: dict[str, float | None] = {"float": None}
    seconds: dict[str, float] = {}
    num_tokens = [len(window) for window in windows]
    if unfinished.num_windows:
        progress.say(f"Going on with the run that was interrupted: {unfinished.num_windows} windows were done.")

    def run_windows(stage: str, title: str, model: nn.Module, *recorders: Any) -> None:
        began = time.perf_counter()
        nlls = unfinished.nlls.setdefault(stage, [])
        done = progress.bar(title, sum(num_tokens), "tokens")
        done(sum(num_tokens[: len(nlls)]))
        while len(nlls) < len(windows):
            nlls += window_nlls(model, windows[len(nlls) :][: torch.get_num_threads()], done)
            unfinished.save(*recorders)
        perplexity[stage] = perplexity_of(nlls, windows)
        seconds[stage] = time.perf_counter() - began

    if spike_settings is None:
        progress.say("The model spikes already: its own settings are used, and there is no float model.")
    else:
        run_windows("float", "float", model)
        model = to_spiking(model, spike_settings, inplace=True)
    run_windows("int8", f"{weights_in_words(model)} weights", to_dense(model))
    check = ExactnessCheck(seed)
    # Only what `count_operations` asks for by default: other sizes of blocks would be counted for nobody.
    with record(model, block_bytes=(64,)) as recording, check.watch(model):
        unfinished.restore(recording, check)
        run_windows("spiking", "spiking", model, recording, check)
    return Measured(model, perplexity, recording, check, seconds)


def attention_of(model: Any) -> str | None:
    """Return how the softmax attention of a spiking model runs, as `SpikeSettings.attention` says it."""
    if isinstance(model, SpikingBrainForCausalLM):
        return model.settings.spiking
    return COUNTED if any(map(runs_on_counts, attention_modules(model).values())) else None


def weights_in_words(model: nn.Module) -> str:
    """Return what the weights of a spiking model are: "INT8", "4-bit", both, or those "stored" in its file."""
    names = {2: "2-bit", 4: "4-bit", 8: "INT8"}
    bits = sorted({layer.weight_bits for layer in spiking_layers(model).values()})
    conversion = getattr(model, "conversion", None)
    is_stored = isinstance(conversion, Conversion) and conversion.settings.weights == "stored"
    return ("stored " if is_stored else "") + " and ".join(names[width] for width in bits)
