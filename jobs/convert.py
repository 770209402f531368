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
from ..models.spikingbrain import LayerPlan, SpikingBrainForCausalLM, parse_layers
from .given import K, for_all_layers, refuse, usual
from .inputs import alone, read_text, require_new, require_tokenizer, token_ids
from .progress import SILENT, Progress

# Tokens of a text that parameters are fitted to.
_CONTEXT = 512
# Settings that a SpikingBrain model takes, too.
_OF_SPIKES = ("model", "spiking", "k", "weights", "format")


@dataclass(frozen=True)
class ConvertSettings:
    """What becomes of which model. All but `model`, `spiking` and `k` are for a Transformer.

    A setting that would have no effect is refused, so None stands for "not given".

    Attributes:
        model: a Llama or Qwen2 model, as `load` takes it; or a SpikingBrain model that is put on spikes.
        layout: "7b", "76b", or a plan per layer such as "gla,swa,gla+full/moe"; None for "7b".
        window: tokens that window attention looks back; None for 4096.
        num_sinks: sink tokens; None for those of the layout.
        num_experts: experts; None for those of the layout.
        calibrate: a UTF-8 text that new parameters are fitted to; None to leave them as they start.
        calibrate_tokens: tokens from the start of that text; None for 4096.
        fit: what is fitted: "columns" or "o-proj"; None for "columns".
        spiking: None, "as-described" or "as-released".
        k: of `AdaptiveThreshold`, with `spiking`: mean |x| of a token divided by its threshold, or one for each
            pattern of names of layers, of which the first that matches counts; None for 3.
        weights: with `spiking`: "int8", "int4", or "stored" for those of a GGUF file as they are; None for "int8".
        format: with `spiking`: "spikebrain", or "compressed-tensors" for the same INT8 weights without spikes, for
            tools that know only those; None for "spikebrain".
        device: where it is calibrated: "cpu", "cuda", or "auto" or None for a GPU if there is one.
        seed: random seed for new parameters of gates and routers; None for 0.
    Raises:
        InputError: a setting would have no effect beside the others.
    """

    model: str
    layout: str | None = None
    window: int | None = None
    num_sinks: int | None = None
    num_experts: int | None = None
    calibrate: Path | None = None
    calibrate_tokens: int | None = None
    fit: str | None = None
    spiking: str | None = None
    k: K | None = None
    weights: str | None = None
    format: str | None = None
    device: str | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.spiking not in (None, *ATTENTION):
            raise InputError(f"spiking: expected none, {' or '.join(ATTENTION)}; got {self.spiking!r}.")
        if self.num_experts is not None and self.num_experts < 1:
            raise InputError(f"num_experts: expected 1 or more, got {self.num_experts}. Choose layers without experts.")
        if self.calibrate is None:
            refuse(self, ("calibrate_tokens", "fit", "device"), "without a text to `calibrate` on")
        if self.spiking is None:
            refuse(self, ("k", "weights", "format"), "on a model that does not spike (`spiking`)")


@alone
def convert(
    settings: ConvertSettings, out: Path, progress: Progress = SILENT, *, force: bool = False
) -> SpikingBrainForCausalLM:
    """Convert a model, and save it.

    Args:
        settings: what becomes of which model.
        out: folder to write to, which must be new or empty.
        progress: told what happens.
        force: write over what is in the folder.
    Returns:
        The converted model, on the CPU.
    Raises:
        SpikebrainError: bad input; the message says which and what to do.
    """
    require_new(out, sources=(settings.model,), force=force)
    where = device_of(usual(settings.device, "auto")) if settings.calibrate is not None else "cpu"
    teacher, tokenizer, found = load(settings.model, say=progress.say, bar=progress.bar)
    if isinstance(teacher, SpikingBrainForCausalLM):
        _check_for_spikingbrain(settings, found)
        require_tokenizer(tokenizer, found)
        student = teacher
    else:
        layout = usual(settings.layout, "7b")
        num_layers = getattr(getattr(teacher, "config", None), "num_hidden_layers", None)
        if num_layers is not None:  # else from_transformer says what it can convert
            _check_layout(settings, parse_layers(layout, num_layers))
        tokens = _calibration(settings, tokenizer, found, where, progress)
        choices = {"window": settings.window, "num_sinks": settings.num_sinks, "num_experts": settings.num_experts}
        student = from_transformer(
            teacher.to(where),
            layout,
            calibration=tokens,
            fit=usual(settings.fit, "columns"),
            seed=usual(settings.seed, 0),
            progress=lambda title, total: progress.bar(title, total, "parts"),
            **{name: value for name, value in choices.items() if value is not None},
        ).cpu()
    if settings.spiking is not None:
        how = {"k": for_all_layers(usual(settings.k, 3.0)), "weights": usual(settings.weights, "int8")}
        student = to_spiking(student, spikingbrain_settings(settings.spiking, **how), inplace=True)
    save(student, out, tokenizer, format=usual(settings.format, "spikebrain"))
    return student


def _check_for_spikingbrain(settings: ConvertSettings, source: str) -> None:
    """Raise an InputError unless a SpikingBrain model is to be put on spikes, and nothing else."""
    names = [field.name for field in fields(settings) if field.name not in _OF_SPIKES]
    given = [f"`{name}`" for name in names if getattr(settings, name) is not None]
    if settings.spiking is None or given:
        raise InputError(
            f"{source}: is a SpikingBrain model already. It can be put on spikes with `spiking` "
            f"({' or '.join(ATTENTION)}) and `k` alone; got {', '.join(given) or '`spiking` none'}."
        )


def _check_layout(settings: ConvertSettings, plans: tuple[LayerPlan, ...]) -> None:
    """Raise an InputError if a setting is for layers that the layout does not have."""
    mixers, has_experts = {mixer for plan in plans for mixer in plan.mixers}, any(plan.ffn == "moe" for plan in plans)
    said = "in this layout, which has no "
    if "swa" not in mixers:
        refuse(settings, ("window",), said + "window attention")
    if "gla" not in mixers:
        refuse(settings, ("calibrate",), said + "linear attention, the part that is fitted")
    if not has_experts:
        refuse(settings, ("num_experts",), said + "experts")
    if "gla" not in mixers and not has_experts:
        refuse(settings, ("seed",), said + "gates or routers")


def _calibration(
    settings: ConvertSettings, tokenizer: Any, source: str, device: str, progress: Progress
) -> Tensor | None:
    """Return the token ids that parameters are fitted to, [B, L], or None."""
    if settings.calibrate is None:
        progress.say("Without a text to `calibrate` on, the model writes noise until it has been trained.")
        return None
    num_tokens = usual(settings.calibrate_tokens, 4096)
    if num_tokens < 2:
        raise InputError(f"calibrate_tokens: expected 2 or more, got {num_tokens}.")
    text, name = read_text(settings.calibrate, "calibrate")
    ids = token_ids(text, tokenizer, source)[:num_tokens]
    length = max(min(_CONTEXT, len(ids)), 1)
    tokens = ids[: len(ids) // length * length].view(-1, length)
    progress.say(f"Fitting {tokens.numel():,} tokens of {name} on {device}")
    return tokens
