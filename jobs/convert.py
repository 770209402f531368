"""A Transformer becomes a SpikingBrain model, on spikes or not; a SpikingBrain model is put on spikes."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from ..backends import device_of
from ..errors import InputError
from ..models import spikingbrain_settings
from ..models.conversion import from_transformer, to_spiking
from ..models.io import load, save
from ..models.layers.settings import ATTENTION
from ..models.spikingbrain import SpikingBrainForCausalLM
from .inputs import read_text, require_tokenizer, token_ids
from .progress import SILENT, Progress

# Tokens of a text that parameters are fitted to.
_CONTEXT = 512


@dataclass(frozen=True)
class ConvertSettings:
    """What becomes of which model. All but `model`, `spiking` and `k` are for a Transformer.

    Attributes:
        model: a Llama or Qwen2 model, as `load` takes it; or a SpikingBrain model that is put on spikes.
        layout: "7b", "76b", or a plan per layer such as "gla,swa,gla+full/moe".
        window: tokens that window attention looks back.
        num_sinks: sink tokens; None for those of the layout.
        num_experts: experts; None for those of the layout.
        calibrate: a UTF-8 text that new parameters are fitted to; None to leave them as they start.
        calibrate_tokens: tokens from the start of that text.
        fit: what is fitted: "columns" or "o-proj".
        spiking: None, "as-described" or "as-released".
        k: of `AdaptiveThreshold`: mean |x| of a token divided by its threshold.
        device: where it is calibrated: "cpu", "cuda", or "auto" for a GPU if there is one.
        seed: random seed for new parameters of gates and routers.
    """

    model: str
    layout: str = "7b"
    window: int = 4096
    num_sinks: int | None = None
    num_experts: int | None = None
    calibrate: Path | None = None
    calibrate_tokens: int = 4096
    fit: str = "columns"
    spiking: str | None = None
    k: float = 3.0
    device: str = "auto"
    seed: int = 0


def convert(settings: ConvertSettings, out: Path, progress: Progress = SILENT) -> SpikingBrainForCausalLM:
    """Convert a model, and save it.

    Args:
        settings: what becomes of which model.
        out: folder to write to.
        progress: told what happens.
    Returns:
        The converted model, on the CPU.
    Raises:
        SpikebrainError: bad input; the message says which and what to do.
    """
    check_spiking(settings.spiking)
    source = Path(settings.model)
    if out.exists() and source.exists() and out.resolve() == source.resolve():
        raise InputError(f"out {out}: is the model's own folder, which would be lost. Name another.")
    where = device_of(settings.device)
    teacher, tokenizer, found = load(settings.model, say=progress.say, bar=progress.bar)
    if isinstance(teacher, SpikingBrainForCausalLM):
        _check_for_spikingbrain(settings, found)
        require_tokenizer(tokenizer, found)
        student = teacher
    else:
        tokens = _calibration(settings, tokenizer, found, where, progress)
        choices = {"window": settings.window, "num_sinks": settings.num_sinks, "num_experts": settings.num_experts}
        student = from_transformer(
            teacher.to(where),
            settings.layout,
            calibration=tokens,
            fit=settings.fit,
            seed=settings.seed,
            progress=lambda title, total: progress.bar(title, total, "parts"),
            **{name: value for name, value in choices.items() if value is not None},
        ).cpu()
    if settings.spiking is not None:
        student = to_spiking(student, spikingbrain_settings(settings.spiking, k=settings.k), inplace=True)
    save(student, out, tokenizer)
    return student


def check_spiking(spiking: str | None) -> None:
    """Raise an InputError unless that is a way in which a SpikingBrain model spikes, or None."""
    if spiking not in (None, *ATTENTION):
        raise InputError(f"spiking: expected none, {' or '.join(ATTENTION)}; got {spiking!r}.")


def _check_for_spikingbrain(settings: ConvertSettings, source: str) -> None:
    """Raise an InputError unless a SpikingBrain model is to be put on spikes, and nothing else."""
    usual = ConvertSettings(settings.model)
    names = [field.name for field in fields(settings) if field.name not in ("spiking", "k")]
    given = [f"`{name}`" for name in names if getattr(settings, name) != getattr(usual, name)]
    if settings.spiking is None or given:
        raise InputError(
            f"{source}: is a SpikingBrain model already. It can be put on spikes with `spiking` "
            f"({' or '.join(ATTENTION)}) and `k` alone; got {', '.join(given) or '`spiking` none'}."
        )


def _calibration(
    settings: ConvertSettings, tokenizer: Any, source: str, device: str, progress: Progress
) -> Tensor | None:
    """Return the token ids that parameters are fitted to, [B, L], or None."""
    if settings.calibrate is None:
        progress.say("Without a text to `calibrate` on, the model writes noise until it has been trained.")
        return None
    if settings.calibrate_tokens < 2:
        raise InputError(f"calibrate_tokens: expected 2 or more, got {settings.calibrate_tokens}.")
    text, name = read_text(settings.calibrate, "calibrate")
    ids = token_ids(text, tokenizer, source)[: settings.calibrate_tokens]
    length = max(min(_CONTEXT, len(ids)), 1)
    tokens = ids[: len(ids) // length * length].view(-1, length)
    progress.say(f"Fitting {tokens.numel():,} tokens of {name} on {device}")
    return tokens
