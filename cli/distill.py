"""The command `spikebrain distill`: light training of a converted model."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from torch import Tensor

from ..analysis import plot_losses
from ..backends import device_of
from ..errors import InputError
from ..files import write_whole
from ..jobs.progress import progress_bars
from ..models.io import load, save
from ..models.training import DistillSettings, Stage, distill, fit_steps, sample_from
from ..models.training.distill import fingerprint
from .convert import DEVICE, OUT, check_spiking, load_ours, new_console, print_line, tokens_of


@dataclass(frozen=True)
class _Recipe:
    """How `distill` trains unless told otherwise; docs/results.md has what it gave.

    Attributes:
        context: tokens of a text.
        batch_size: texts of a step.
        learning_rate: for attention outputs.
        logits_rate: for logits, as a multiple of that.
        attention_share: of --minutes, for attention outputs: few and small steps are best spent there.
        precision: of products.
    """

    context: int
    batch_size: int
    learning_rate: float
    logits_rate: float
    attention_share: float
    precision: str


_RECIPES = {
    "cpu": _Recipe(256, 4, 1e-3, 0.1, 0.5, "float32"),
    "cuda": _Recipe(512, 32, 2e-3, 0.3, 0.1, "bfloat16"),
}
# Part of a GPU's free memory that keys and values may take while the teacher writes, and most texts at a time.
_SAMPLING_MEMORY, _SAMPLING_TEXTS = 0.25, 2048


def distill_command(
    teacher: Annotated[str, typer.Argument(help="The Transformer that the student was made of.")],
    student: Annotated[Path, typer.Argument(help="Folder that `spikebrain convert` wrote, not spiking.")],
    out: Annotated[Path, OUT],
    text: Annotated[list[Path] | None, typer.Option(help="UTF-8 text to train on; may be given again.")] = None,
    sample: Annotated[int | None, typer.Option(help="Train on so many tokens that the teacher writes.")] = None,
    minutes: Annotated[float, typer.Option(help="As many steps as take about so long.")] = 10.0,
    context: Annotated[int | None, typer.Option(help="Tokens of a text.", show_default="256; cuda: 512")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Texts at the same time.", show_default="4; cuda: 32")] = None,
    accumulation: Annotated[int, typer.Option(help="Batches whose gradients make a step.")] = 1,
    attention_steps: Annotated[int | None, typer.Option(help="Steps that match attention outputs; 0: none.")] = None,
    logits_steps: Annotated[int | None, typer.Option(help="Steps that match logits; 0: none.")] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="For attention outputs.", show_default="1e-3; cuda: 2e-3")
    ] = None,
    logits_rate: Annotated[
        float | None, typer.Option(help="For logits, as a multiple of that.", show_default="0.1; cuda: 0.3")
    ] = None,
    spiking: Annotated[str, typer.Option(help="Train with spikes in the forward pass: a setting, or none.")] = "none",
    precision: Annotated[
        str | None, typer.Option(help="float32, or bfloat16 for autocast.", show_default="float32; cuda: bfloat16")
    ] = None,
    checkpointing: Annotated[
        bool, typer.Option(help="Compute layers again in the backward pass: less memory.")
    ] = False,
    device: Annotated[str, DEVICE] = "auto",
    seed: Annotated[int, typer.Option(help="Of the order of texts, and of samples.")] = 0,
) -> None:
    """Train a converted model lightly, so that it recovers what it lost. Interrupted, the same command goes on."""
    if not text and sample is None:
        raise InputError("spikebrain distill: expected --text FILE, --sample N or both, got neither.")
    check_spiking(spiking)
    for name, value in (("minutes", minutes), ("logits-rate", logits_rate)):
        if value is not None and not 0 < value < float("inf"):
            raise InputError(f"--{name}: expected a number > 0, got {value:g}.")
    where = device_of(device)
    given = {
        "context": context,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "logits_rate": logits_rate,
        "precision": precision,
    }
    recipe = replace(_RECIPES[where], **{name: value for name, value in given.items() if value is not None})
    wanted = {"attention": attention_steps, "logits": logits_steps}
    stages = {
        name: Stage(
            objective=name,
            context=recipe.context,
            steps=wanted[name] or 1,
            batch_size=recipe.batch_size,
            accumulation=accumulation,
            learning_rate=recipe.learning_rate * (1.0 if name == "attention" else recipe.logits_rate),
            trainable="attention" if name == "attention" else "all",
        )
        for name in wanted
        if wanted[name] != 0
    }
    settings = DistillSettings(
        stages=tuple(stages.values()),
        spiking=None if spiking == "none" else spiking,
        precision=recipe.precision,
        gradient_checkpointing=checkpointing,
        seed=seed,
    )
    console = new_console()
    old, tokenizer, source = load(teacher, console=console)
    new: Any = load_ours(student, console)[0]
    old, new = old.to(where), new.to(where)
    parts = [tokens_of(path, tokenizer, source) for path in text or []]
    if sample is not None:
        parts.insert(0, _sampled(old, sample, recipe.context, seed, out, console))
    tokens = torch.cat(parts)
    rates = " and ".join(f"{stage.learning_rate:g}" for stage in settings.stages)
    sizes = f"{recipe.batch_size} texts of {recipe.context} at a time, rates {rates}, {recipe.precision}"
    console.print(f"Training on {len(tokens):,} tokens on {where}: {sizes}")
    if None in [wanted[name] for name in stages]:
        shares = {"attention": recipe.attention_share, "logits": 1 - recipe.attention_share}
        settings = _planned(new, old, tokens, settings, wanted, minutes, shares, out, console)
    with progress_bars(console, "steps") as add:
        result = distill(new, old, tokens, settings, out, add, fingerprint(new))
    save(new.cpu(), out, tokenizer)
    plot_losses(result, settings.stages, out / "loss.png")
    losses = ", ".join(
        f"{stage.objective} {_mean(found[:10]):.4g} -> {_mean(found[-10:]):.4g}"
        for i, stage in enumerate(settings.stages)
        if (found := [point.loss for point in result.losses if point.stage == i])
    )
    print_line(f"Written to {out}: {result.num_tokens:,} tokens, loss {losses}; {result.seconds / 60:.1f} minutes.")


def _planned(
    student: Any,
    teacher: Any,
    tokens: Tensor,
    settings: DistillSettings,
    wanted: dict[str, int | None],
    minutes: float,
    shares: dict[str, float],
    out: Path,
    console: Console,
) -> DistillSettings:
    """Return the settings with steps that fit the time: those of plan.json, if an earlier call wrote one."""
    names = [stage.objective for stage in settings.stages]
    plan = out / "plan.json"
    if plan.exists():
        try:
            steps = {name: int(json.loads(plan.read_text())[name]) for name in names}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{plan}: is no plan of these stages: {error}. Delete it to start again.") from error
        console.print(f"Going on with the steps of {plan}: {steps}")
    else:
        console.print("Timing a few steps")
        parts = tuple(shares[name] if len(names) > 1 else 1.0 for name in names)
        fitted = fit_steps(student, teacher, tokens, settings, 60 * minutes, parts)
        steps = {name: wanted[name] or stage.steps for name, stage in zip(names, fitted.stages, strict=True)}
        _write_text(plan, json.dumps(steps) + "\n")
    stages = tuple(replace(stage, steps=steps[stage.objective]) for stage in settings.stages)
    return replace(settings, stages=stages)


def _sampled(teacher: Any, num_tokens: int, context: int, seed: int, out: Path, console: Console) -> Tensor:
    """Return tokens that the teacher writes: those of an earlier call, if it wrote as many."""
    path = out / "samples.json"
    job = {"num_tokens": num_tokens, "length": context, "seed": seed, "teacher": fingerprint(teacher)}
    if path.exists():
        try:
            kept = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: cannot be read: {error}. Delete it to sample again.") from error
        if kept.get("job") == job:
            return torch.tensor(kept["tokens"], dtype=torch.int64)
    console.print(f"Sampling {num_tokens:,} tokens")
    writer = teacher if teacher.device.type == "cpu" else copy.deepcopy(teacher).bfloat16()
    tokens = sample_from(writer, num_tokens, length=context, batch_size=_texts_at_once(writer, context), seed=seed)
    _write_text(path, json.dumps({"job": job, "tokens": tokens.tolist()}) + "\n")
    return tokens


def _texts_at_once(teacher: Any, length: int) -> int:
    """Return how many texts a model may write at the same time."""
    if teacher.device.type == "cpu":
        return 32
    config = teacher.config
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    one = 2 * config.num_hidden_layers * config.num_key_value_heads * dim * length * teacher.dtype.itemsize
    free, _ = torch.cuda.mem_get_info(teacher.device)
    return max(1, min(int(_SAMPLING_MEMORY * free / one), _SAMPLING_TEXTS))


def _write_text(path: Path, text: str) -> None:
    """Write a file in one step, and its folder if there is none."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}. Name another folder.") from error


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
