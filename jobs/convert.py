"""A Transformer becomes a SpikingBrain model, on spikes or not; a SpikingBrain model is put on spikes."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from ..analysis import measure_perplexity
from ..backends import device_of
from ..errors import InputError
from ..models import spikingbrain_settings
from ..models.conversion import from_transformer, to_spiking
from ..models.conversion.calibrate import STEPS
from ..models.io import load, save
from ..models.layers.settings import ATTENTION
from ..models.spikingbrain import LayerPlan, SpikingBrainConfig, SpikingBrainForCausalLM, parse_layers
from .given import K, for_all_layers, refuse, usual
from .inputs import alone, check_length, positions_of, read_text, require_new, require_tokenizer, token_ids
from .progress import SILENT, Progress

# Tokens of a text that parameters are fitted to.
_CONTEXT = 512
# Tokens that the result is measured on, at most.
_MEASURED = 1024
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
        fit: what is fitted, as for `models.calibrate`: "layers", "columns" or "o-proj"; None for "layers".
        steps: gradient steps of each layer, with `fit` "layers"; None for 50.
        placement: "alternate" for linear layers where the layout has them, or "measured" for those that cost least;
            None for "alternate".
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
    steps: int | None = None
    placement: str | None = None
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
            names = ("calibrate_tokens", "fit", "steps", "placement", "device")
            refuse(self, names, "without a text to `calibrate` on")
        if usual(self.fit, "layers") != "layers":
            refuse(self, ("steps",), f'with `fit` "{self.fit}"')
        if self.spiking is None:
            refuse(self, ("k", "weights", "format"), "on a model that does not spike (`spiking`)")


@dataclass(frozen=True)
class Converted:
    """What `convert` did.

    Attributes:
        model: the converted model, on the CPU.
        perplexity: of the float model on the text that it was calibrated on, behind the tokens that it was fitted to,
            or on the last of these where the text ends there; None if nothing was calibrated.
        teacher_perplexity: the same of the Transformer.
        num_tokens: tokens that both are measured on.
    """

    model: SpikingBrainForCausalLM
    perplexity: float | None = None
    teacher_perplexity: float | None = None
    num_tokens: int = 0


@alone
def convert(settings: ConvertSettings, out: Path, progress: Progress = SILENT, *, force: bool = False) -> Converted:
    """Convert a model, and save it.

    Args:
        settings: what becomes of which model.
        out: folder to write to, which must be new or empty.
        progress: told what happens.
        force: write over what is in the folder.
    Returns:
        The converted model, and how far it is from the Transformer.
    Raises:
        SpikebrainError: bad input; the message says which and what to do.
    """
    require_new(out, sources=(settings.model,), force=force, or_file=settings.spiking is not None)
    where = device_of(usual(settings.device, "auto")) if settings.calibrate is not None else "cpu"
    teacher, tokenizer, found = load(settings.model, say=progress.say, bar=progress.bar)
    start: dict[str, Any] = {}
    if isinstance(teacher, SpikingBrainForCausalLM):
        _check_for_spikingbrain(settings, found)
        require_tokenizer(tokenizer, found)
        student = teacher
    else:
        layout = usual(settings.layout, "7b")
        num_layers = getattr(getattr(teacher, "config", None), "num_hidden_layers", None)
        if num_layers is not None:  # else from_transformer says what it can convert
            _check_layout(settings, parse_layers(layout, num_layers))
        longest = positions_of(teacher) or _CONTEXT
        tokens, held_out = _calibration(settings, tokenizer, found, longest, where, progress)
        choices = {"window": settings.window, "num_sinks": settings.num_sinks, "num_experts": settings.num_experts}
        student = from_transformer(
            teacher.to(where),
            layout,
            calibration=tokens,
            fit=usual(settings.fit, "layers"),
            steps=usual(settings.steps, STEPS),
            placement=usual(settings.placement, "alternate"),
            seed=usual(settings.seed, 0),
            progress=lambda title, total: progress.bar(title, total, "parts"),
            **{name: value for name, value in choices.items() if value is not None},
        )
        _tell_of_windows(student.settings, positions_of(teacher), progress)
        if held_out is not None:
            progress.say("Measuring how far it is from the Transformer")
            start = {"perplexity": _perplexity(student, held_out), "teacher_perplexity": _perplexity(teacher, held_out)}
            start["num_tokens"] = held_out.numel()
        student = student.cpu()
    if settings.spiking is not None:
        how = {"k": for_all_layers(usual(settings.k, 3.0)), "weights": usual(settings.weights, "int8")}
        student = to_spiking(student, spikingbrain_settings(settings.spiking, **how), inplace=True)
    save(student, out, tokenizer, format=usual(settings.format, "spikebrain"))
    return Converted(student, **start)


def _tell_of_windows(settings: SpikingBrainConfig, positions: int | None, progress: Progress) -> None:
    """Say what a window loses that slides past the first token of a text.

    Source:
        Xiao et al., Efficient Streaming Language Models with Attention Sinks, arXiv:2309.17453.
    """
    has_windows = any(plan.softmax == "swa" for plan in settings.layers)
    if has_windows and not settings.num_sinks and positions is not None and settings.window < positions:
        progress.say(
            f"Beyond {settings.window:,} tokens the windows lose the first token of a text, on which attention rests "
            "that goes nowhere else; `num_sinks` 1 keeps a token for it."
        )


def _perplexity(model: Any, rows: Tensor) -> float:
    return measure_perplexity(model, list(rows.to(model.device)))


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
    if "gla" not in mixers and not settings.num_sinks:
        refuse(settings, ("calibrate",), said + "linear attention or sink tokens, the parts that are fitted")
    if not has_experts:
        refuse(settings, ("num_experts",), said + "experts")
    if "gla" not in mixers and not has_experts:
        refuse(settings, ("seed",), said + "gates or routers")


def _calibration(
    settings: ConvertSettings, tokenizer: Any, source: str, longest: int, device: str, progress: Progress
) -> tuple[Tensor | None, Tensor | None]:
    """Return the token ids that parameters are fitted to, and those that the result is measured on, [B, L] each.

    Windows are at most as long as the model has positions, `longest`.
    """
    if settings.calibrate is None:
        progress.say("Without a text to `calibrate` on, what linear attention loses is lost until it has been trained.")
        return None, None
    num_tokens = usual(settings.calibrate_tokens, 4096)
    if num_tokens < 2:
        raise InputError(f"calibrate_tokens: expected 2 or more, got {num_tokens}.")
    text, name = read_text(settings.calibrate, "calibrate")
    ids = token_ids(text, tokenizer, source)
    length = min(_CONTEXT, num_tokens, longest)
    check_length(name, len(ids), length, "calibrate_tokens")
    rows = ids[: len(ids) // length * length].view(-1, length)
    tokens, rest = rows[: num_tokens // length], rows[num_tokens // length :]
    held_out = (rest if len(rest) else tokens[-1:])[: max(_MEASURED // length, 1)]
    progress.say(f"Fitting {tokens.numel():,} tokens of {name} on {device}")
    return tokens, held_out
