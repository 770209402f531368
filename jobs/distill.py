"""Light training of a converted model: a recipe, steps that fit the time, text of the teacher's own, and a result."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..analysis.losses import plot_losses
from ..backends import device_of
from ..errors import InputError
from ..files import make_folder, read_json, write_json
from ..models.io import load, save
from ..models.spikingbrain import SpikingBrainForCausalLM
from ..models.training import (
    DistillResult,
    DistillSettings,
    Recipe,
    fit_steps,
    sample_from,
    texts_at_once,
)
from ..models.training import (
    distill as train,
)
from ..models.training.distill import fingerprint
from .inputs import load_spikingbrain, read_text, token_ids
from .progress import SILENT, Progress


@dataclass(frozen=True)
class DistillRun:
    """What to train on, for how long, and what to change about the recipe.

    None stands for what the recipe of the device says (`models.training.RECIPES`).

    Attributes:
        teacher: the Transformer that the student was made of; anything that `load` takes.
        student: folder of a converted model, not on spikes.
        text: UTF-8 files to train on.
        sample: train on this many tokens that the teacher writes; None for none.
        minutes: the number of steps is chosen so that training takes about this long.
        context: tokens of a text.
        batch_size: texts of a batch.
        accumulation: batches whose gradients make a step.
        attention_steps: steps that match attention outputs; 0 for none, None for as many as fit the time.
        logits_steps: steps that match logits; 0 for none, None for as many as fit the time.
        learning_rate: for attention outputs.
        logits_rate: learning rate for logits, as a multiple of learning_rate.
        spiking: train with spikes in the forward pass, "as-described" or "as-released"; None for without.
        precision: "float32", or "bfloat16" for autocast.
        checkpointing: compute layers again in the backward pass, which saves memory.
        device: "cpu", "cuda", or "auto" for a GPU if there is one.
        seed: random seed for the order of texts, and for the tokens that the teacher writes.
    Raises:
        InputError: there is nothing to train on, or a number is out of range.
    """

    teacher: str
    student: Path
    text: tuple[Path, ...] = ()
    sample: int | None = None
    minutes: float = 10.0
    context: int | None = None
    batch_size: int | None = None
    accumulation: int = 1
    attention_steps: int | None = None
    logits_steps: int | None = None
    learning_rate: float | None = None
    logits_rate: float | None = None
    spiking: str | None = None
    precision: str | None = None
    checkpointing: bool = False
    device: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.text and self.sample is None:
            raise InputError("text: expected a UTF-8 file to train on, `sample`, or both; got neither.")
        if self.sample is not None and self.sample < 1:
            raise InputError(f"sample: expected an integer >= 1, got {self.sample}.")
        if not 0 < self.minutes < math.inf:
            raise InputError(f"minutes: expected a finite number > 0, got {self.minutes:g}.")

    def recipe(self, device: str) -> Recipe:
        """Return the recipe of a device, with the changes."""
        names = ("context", "batch_size", "learning_rate", "logits_rate", "precision")
        return Recipe.for_device(device, **{name: getattr(self, name) for name in names})

    def settings(self, recipe: Recipe) -> DistillSettings:
        """Return how a recipe trains; steps that are still to be found are 1."""
        return recipe.settings(
            attention_steps=self.attention_steps,
            logits_steps=self.logits_steps,
            accumulation=self.accumulation,
            spiking=self.spiking,
            gradient_checkpointing=self.checkpointing,
            seed=self.seed,
        )


@dataclass(frozen=True)
class Distilled:
    """What `distill` did.

    Attributes:
        model: the trained student, on the CPU.
        settings: as they were used.
        result: losses, time and number of tokens.
    """

    model: SpikingBrainForCausalLM
    settings: DistillSettings
    result: DistillResult


def distill(run: DistillRun, out: Path, progress: Progress = SILENT) -> Distilled:
    """Train a converted model lightly, so that it recovers what it lost, and save it.

    An interrupted training goes on when it is started again with the same arguments: `out` keeps its state, the tokens
    that the teacher wrote (samples.json) and the number of steps (plan.json).

    Args:
        run: what to train on, and how.
        out: folder for the trained model, its losses (loss.json, loss.png) and the state of the training.
        progress: told what happens.
    Raises:
        SpikebrainError: bad input; the message says which and what to do.
    """
    where = device_of(run.device)
    recipe = run.recipe(where)
    settings = run.settings(recipe)
    teacher, tokenizer, source = load(run.teacher, say=progress.say, bar=progress.bar)
    student: Any = load_spikingbrain(run.student, progress).model
    teacher, student = teacher.to(where), student.to(where)
    parts = [token_ids(read_text(path)[0], tokenizer, source) for path in run.text]
    if run.sample is not None:
        parts.insert(0, samples(teacher, run.sample, recipe.context, run.seed, out, progress))
    tokens = torch.cat(parts)
    rates = " and ".join(f"{stage.learning_rate:g}" for stage in settings.stages)
    sizes = f"{recipe.batch_size} texts of {recipe.context} at a time, rates {rates}, {recipe.precision}"
    progress.say(f"Training on {len(tokens):,} tokens on {where}: {sizes}")
    steps = {"attention": run.attention_steps, "logits": run.logits_steps}
    if None in [steps[stage.objective] for stage in settings.stages]:
        settings = plan(student, teacher, tokens, settings, recipe.shares(settings), run.minutes, steps, out, progress)
    result = train(
        student,
        teacher,
        tokens,
        settings,
        out,
        lambda title, total: progress.bar(title, total, "steps"),
        fingerprint(student),
    )
    save(student.cpu(), out, tokenizer)
    plot_losses(result, settings.stages, out / "loss.png")
    return Distilled(student, settings, result)


def plan(
    student: Any,
    teacher: Any,
    tokens: Tensor,
    settings: DistillSettings,
    shares: tuple[float, ...],
    minutes: float,
    steps: dict[str, int | None],
    out: Path,
    progress: Progress = SILENT,
) -> DistillSettings:
    """Return the settings with steps that fit the time: those of plan.json, if an earlier call wrote one.

    Args:
        student: as for `models.training.distill`.
        teacher: as for `models.training.distill`.
        tokens: as for `models.training.distill`.
        settings: stages, whose steps do not matter.
        shares: of the time, for each stage.
        minutes: for all stages.
        steps: of each objective, where they are given; None where they are to be found.
        out: folder of plan.json.
        progress: told what happens.
    Raises:
        InputError: plan.json is no plan of these stages, or cannot be written.
    """
    names = [stage.objective for stage in settings.stages]
    path = out / "plan.json"
    if path.exists():
        try:
            kept = read_json(path)
            found = {name: int(kept[name]) for name in names}
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            raise InputError(f"{path}: is no plan of these stages: {error}. Delete it to start again.") from error
        progress.say(f"Going on with the steps of {path}: {found}")
    else:
        progress.say("Timing a few steps")
        fitted = fit_steps(student, teacher, tokens, settings, 60 * minutes, shares)
        found = {name: steps[name] or stage.steps for name, stage in zip(names, fitted.stages, strict=True)}
        _write(path, found)
    stages = tuple(replace(stage, steps=found[stage.objective]) for stage in settings.stages)
    return replace(settings, stages=stages)


def samples(teacher: Any, num_tokens: int, context: int, seed: int, out: Path, progress: Progress = SILENT) -> Tensor:
    """Return tokens that the teacher writes: those of samples.json, if an earlier call of the same job wrote it.

    On a GPU the teacher writes in bfloat16.

    Args:
        teacher: a Transformer.
        num_tokens: tokens to write.
        context: tokens of one text.
        seed: random seed for the tokens that are drawn.
        out: folder of samples.json.
        progress: told what happens.
    Returns:
        Token ids, int64 [num_tokens], on the CPU.
    Raises:
        InputError: samples.json cannot be read or written.
    """
    path = out / "samples.json"
    job = {"num_tokens": num_tokens, "length": context, "seed": seed, "teacher": fingerprint(teacher)}
    if path.exists():
        try:
            kept = read_json(path)
            if kept["job"] == job:
                return torch.tensor(kept["tokens"], dtype=torch.int64)
        except (ValueError, KeyError, TypeError, RuntimeError) as error:
            raise InputError(f"{path}: holds no samples: {error} Delete it to sample again.") from error
    progress.say(f"Sampling {num_tokens:,} tokens")
    writer = teacher if teacher.device.type == "cpu" else copy.deepcopy(teacher).bfloat16()
    tokens = sample_from(writer, num_tokens, length=context, batch_size=texts_at_once(writer, context), seed=seed)
    _write(path, {"job": job, "tokens": tokens.tolist()})
    return tokens


def _write(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file in one step, and its folder if there is none."""
    make_folder(path.parent)
    write_json(path, content, indent=None)
