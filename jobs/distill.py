"""Light training: a recipe, steps that fit the time, text of the teacher's own, and a result."""

from __future__ import annotations

import hashlib
import json
import math
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from .. import analysis
from ..backends import device_of
from ..errors import InputError
from ..files import read_json, remove
from ..models import Loaded, SpikeSettings
from ..models.io import load
from ..models.io.checksums import of_text
from ..models.layers.coarse import Coarse
from ..models.spikingbrain import SpikingBrainForCausalLM
from ..models.training import (
    DistillResult,
    DistillSettings,
    Recipe,
    Team,
    WrittenText,
    fit_steps,
)
from ..models.training import (
    distill as train,
)
from ..models.training.distill import fingerprint
from ..models.training.gradients import why_not_captured
from ..models.training.state import FILE_NAME as STATE
from ..models.training.state import LOSSES
from ..neuro import DeadZoneThreshold, Neuron
from ..registry import to_dict
from .calibration import Budget
from .calibration.run import check_budget
from .distill_student import Student, save_student, student_of
from .distill_text import SAMPLES, text_of, write_job
from .given import K, refuse, spike_settings, usual
from .inputs import alone, check_positions, is_spiking, look_ahead, read_text, require_new
from .progress import SILENT, Progress
from .ranks import processes

MINUTES = 10.0
# Where arguments and steps of a training are kept until it is finished.
PLAN = "plan.json"
_INTERRUPTED = (PLAN, SAMPLES, STATE, LOSSES)
# Arguments that the result depends on; those of the recipe are compared with it.
_OF_THE_RESULT = (
    *("sample", "fresh", "minutes", "attention_steps", "logits_steps", "accumulation"),
    *("only_attention", "spiking", "k", "dead_zone"),
    *("weights", "group_size", "compact_scales", "coarse", "skip", "include_head", "growth", "budget", "checkpointing"),
    "seed",
)


@dataclass(frozen=True)
class DistillRun:
    """What to train on, for how long, and what to change about the recipe.

    None stands for what the recipe of the device says (`models.training.RECIPES`).

    Attributes:
        teacher: the Transformer that the student was made of; anything that `load` takes.
        student: what learns: folder of a converted model, not on spikes; an ordinary Transformer, as `load` takes it,
            such as the teacher itself, which learns to run on spikes; or a folder on spikes, as `calibrate` writes it,
            whose settings hold and whose float weights are the teacher's, or those of an earlier training.
        text: UTF-8 files to train on.
        sample: train on this many tokens that the teacher writes beforehand; None for none.
        fresh: train on tokens that the teacher writes meanwhile, none of them twice, instead of `text` and `sample`.
        minutes: the number of steps that are not given is chosen so that training takes about this long; None for 10.
        context: tokens of a text.
        batch_size: texts of a batch.
        accumulation: batches whose gradients make a step.
        attention_steps: steps that match attention outputs; 0 for none, None for as many as fit the time.
        logits_steps: steps that match logits; 0 for none, None for as many as fit the time.
        learning_rate: for attention outputs; of an ordinary Transformer for logits.
        logits_rate: learning rate for logits, as a multiple of learning_rate.
        only_attention: nothing but attention and what is new in a SpikingBrain model learns. Experts, which are equal
            after conversion, then stay one set of weights; else each gets its own.
        spiking: train a SpikingBrain model with spikes in the forward pass, "as-described" or "as-released"; None for
            without. An ordinary Transformer always trains with spikes.
        k: of an ordinary Transformer on spikes: mean |x| of a token divided by its threshold, or one for each pattern
            of names of layers, of which the first that matches counts; None for 3, with a dead zone for 8.
        dead_zone: a channel is silent below it, in units of the token's mean |x|; None for none.
        weights: "int8" or "int4"; None for "int8".
        group_size: input channels that share a weight scale; None for all, with "int4" for 32.
        compact_scales: keep scales and minima of groups in few bits; see `SpikeSettings`.
        coarse: pairs (bits, up_to): counts up to `up_to` read rows of that few bits; None for none.
        skip: patterns of the names of layers that stay dense; None for none.
        include_head: put the output head on spikes, too.
        growth: share of the steps in which dead zones and the edges of coarse rows grow from 0; None for 0.
        budget: of bytes read, by a penalty on those beyond it; None for none.
        precision: "float32", or "bfloat16" for autocast.
        checkpointing: compute layers again in the backward pass, which saves memory.
        device: "cpu", "cuda", or "auto" for a GPU if there is one.
        seed: random seed for the order of texts, and for the tokens that the teacher writes.
    Raises:
        InputError: there is nothing to train on, a number is out of range, or an argument would have no effect.
    """

    teacher: str
    student: str | Path
    text: tuple[Path, ...] = ()
    sample: int | None = None
    fresh: bool = False
    minutes: float | None = None
    context: int | None = None
    batch_size: int | None = None
    accumulation: int = 1
    attention_steps: int | None = None
    logits_steps: int | None = None
    learning_rate: float | None = None
    logits_rate: float | None = None
    only_attention: bool = False
    spiking: str | None = None
    k: K | None = None
    dead_zone: float | None = None
    weights: str | None = None
    group_size: int | None = None
    compact_scales: bool = False
    coarse: Coarse | None = None
    skip: tuple[str, ...] | None = None
    include_head: bool = False
    growth: float | None = None
    budget: Budget | None = None
    precision: str | None = None
    checkpointing: bool = False
    device: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.text and self.sample is None and not self.fresh:
            raise InputError(
                "text: expected a UTF-8 file to train on, `sample`, or both; or `fresh`; got none of them."
            )
        if self.fresh and (self.text or self.sample is not None):
            raise InputError("fresh: expected no `text` and no `sample` beside it: the teacher writes all of the text.")
        if self.sample is not None and self.sample < 1:
            raise InputError(f"sample: expected an integer >= 1, got {self.sample}.")
        if self.minutes is not None and not 0 < self.minutes < math.inf:
            raise InputError(f"minutes: expected a finite number > 0, got {self.minutes:g}.")
        if None not in (self.attention_steps, self.logits_steps):
            refuse(self, ("minutes",), "where both `attention_steps` and `logits_steps` are given")
        if self.logits_steps == 0:
            refuse(self, ("logits_rate", "checkpointing"), "without steps that match logits (`logits_steps` 0)")
        if self.weights == "stored":
            raise InputError("weights: expected int8 or int4, which follow from weights that learn, got stored.")
        if self.budget is not None:
            refuse(self, ("checkpointing",), "with a `budget`, for which bytes are counted in the forward pass")
            check_budget(self.budget, ("read",))
        self.spike_settings()

    @property
    def neuron(self) -> Neuron | None:
        """The neuron, but for its k; None for `AdaptiveThreshold`."""
        return None if self.dead_zone is None else DeadZoneThreshold(dead_zone=self.dead_zone)

    def spike_settings(self) -> SpikeSettings:
        """Return how an ordinary Transformer will run on spikes."""
        return spike_settings(self)

    def recipe(self, device: str, *, ordinary: bool = False) -> Recipe:
        """Return the recipe of a device, with the changes."""
        names = ("context", "batch_size", "learning_rate", "logits_rate", "precision")
        return Recipe.for_device(device, ordinary=ordinary, **{name: getattr(self, name) for name in names})

    def settings(self, recipe: Recipe, spikes: SpikeSettings | None = None) -> DistillSettings:
        """Return how a recipe trains; steps that are still to be found are 1.

        Args:
            recipe: sizes and rates.
            spikes: of an ordinary Transformer.
        """
        return recipe.settings(
            attention_steps=self.attention_steps if spikes is None else 0,
            logits_steps=self.logits_steps,
            accumulation=self.accumulation,
            growth=usual(self.growth, 0.0),
            only_attention=self.only_attention,
            spiking=self.spiking,
            spikes=spikes,
            read=None if spikes is None or self.budget is None else self.budget.value,
            gradient_checkpointing=self.checkpointing,
            seed=self.seed,
        )

    def job(self, device: str) -> dict[str, Any]:
        """Return the arguments that the result depends on, as JSON values; models, text and recipe are not in it."""
        found = {name: getattr(self, name) for name in _OF_THE_RESULT} | {"device": device}
        # As JSON has them, to be compared with those of a file.
        return json.loads(json.dumps(found))


@dataclass(frozen=True)
class Distilled:
    """What `distill` did.

    Attributes:
        model: the trained student, on the CPU.
        settings: as they were used.
        result: losses, time and number of tokens.
    """

    model: nn.Module
    settings: DistillSettings
    result: DistillResult


def distill_in_parallel(
    run: DistillRun, out: Path, progress: Progress = SILENT, *, force: bool = False
) -> Distilled | None:
    """Let the processes that torchrun started train one model together, each a part of every batch; see `distill`.

    Each has the models, on a GPU of its own if there are any. A step is that of one process; with `fresh`, each trains
    on texts of its own, so a training goes on with as many processes as it was begun with.

    Returns:
        What the first process did and saved; None in the others.
    Raises:
        SpikebrainError: bad input, a batch that does not divide among the processes, or no processes of torchrun.
    """
    with processes(device_of(run.device)):
        team = Team.of_processes()
        if team.is_first:
            return _alone(run, out, progress, force, team)
        _train(run, out, SILENT, force, team)
        return None


def distill(run: DistillRun, out: Path, progress: Progress = SILENT, *, force: bool = False) -> Distilled:
    """Train a model lightly, so that it recovers what it lost, and save it: an ordinary Transformer on spikes.

    An interrupted training goes on when it is started again with the same arguments: `out` keeps its state, the tokens
    that the teacher wrote (samples.json), and arguments and steps (plan.json). State and plan are deleted at the end.

    Args:
        run: what to train on, and how.
        out: folder for the trained model and its losses (loss.json, loss.png): a new one, or that of an interrupted
            training. The float weights of an ordinary Transformer are in its folder `float`.
        progress: told what happens.
        force: write over what is in the folder, such as a trained model or a training with other arguments.
    Raises:
        SpikebrainError: bad input; the message says which and what to do.
    """
    return _alone(run, out, progress, force, Team())


def _train(run: DistillRun, out: Path, progress: Progress, force: bool, team: Team) -> Distilled:
    where = device_of(run.device)
    recipe = run.recipe(where)
    run.settings(recipe)  # raises for what cannot be, before anything is loaded
    team.share(recipe.batch_size)
    job = run.job(where) | ({"processes": team.size} if team.size > 1 and run.fresh else {})
    if team.is_first:
        sources = (run.teacher, run.student)
        require_new(out, sources=sources, known=_INTERRUPTED, force=force or (out / STATE).exists())
        going_on(out, job, force)
    texts = [read_text(path)[0] for path in run.text]
    if run.text and run.sample is None:
        look_ahead(run.teacher, texts, ", ".join(path.name for path in run.text), recipe.context)
    (teacher, tokenizer, source), of_student = _load_both(run, recipe.context, progress)
    teacher, student = cast(Any, teacher).to(where), of_student.model.to(where)
    spikes = of_student.spikes
    recipe = run.recipe(where, ordinary=spikes is not None)
    settings = run.settings(recipe, spikes)
    origin = fingerprint(student)
    named = origin if spikes is None else of_text(origin + json.dumps(to_dict(spikes)))
    job |= {**asdict(recipe), "teacher": fingerprint(teacher), "student": named}
    if team.is_first:
        going_on(out, job, force)
    tokens = None
    if not run.fresh and team.is_first:
        writing = (run.sample, run.seed, recipe.context)
        tokens = text_of(texts, teacher, tokenizer, source, writing, out, progress)
    tokens = team.told(tokens)
    if tokens is not None:
        job["text"] = hashlib.sha256(tokens.numpy().tobytes()).hexdigest()
    kept = going_on(out, job, force) if team.is_first else None
    _say_how(student, tokens, settings, recipe, where, progress)
    if tokens is None:
        tokens = _written(teacher, None if kept is None else kept.get("at_once"), recipe.context, run.seed, team)
    start, steps = time.perf_counter(), None
    if kept is not None:
        steps = kept["steps"]
        progress.say(f"Going on with an interrupted training: {_listed(steps)}.")
    elif team.is_first:
        steps = plan(student, teacher, tokens, _shared(settings, team), run, recipe, progress)
        at_once = {"at_once": tokens.at_once} if isinstance(tokens, WrittenText) else {}
        write_job(out / PLAN, {"job": job, "steps": steps, **at_once})
    steps = team.told(steps)
    planned_s = time.perf_counter() - start
    stages = tuple(replace(stage, steps=steps[stage.objective]) for stage in settings.stages)
    settings = replace(settings, stages=stages)
    result = train(
        student,
        teacher,
        tokens,
        settings,
        out,
        lambda title, total: progress.bar(title, total, "steps"),
        origin,
        team,
    )
    result = replace(result, seconds=result.seconds + planned_s)
    if not team.is_first:
        return Distilled(student, settings, result)
    return _saved(of_student._replace(model=student.cpu()), settings, result, out)


_alone = alone(_train)


def _saved(student: Student, settings: DistillSettings, result: DistillResult, out: Path) -> Distilled:
    """Write what was trained, and remove what an interrupted training would have needed."""
    trained = save_student(student, out)
    analysis.plot_losses(result, settings.stages, out / "loss.png")
    for name in (PLAN, STATE):
        remove(out / name)
    return Distilled(trained, settings, result)


def _written(teacher: Any, at_once: int | None, longest: int, seed: int, team: Team) -> WrittenText:
    """Return the texts that the teacher writes meanwhile, as many at once as the first process has room for."""
    tokens = WrittenText(teacher, at_once=team.told(at_once), longest=longest, seed=seed, team=team)
    tokens.at_once = team.told(tokens.at_once)
    return tokens


def _shared(settings: DistillSettings, team: Team) -> DistillSettings:
    """Return settings with the batches that one process of a team takes."""
    stages = tuple(replace(stage, batch_size=team.share(stage.batch_size)) for stage in settings.stages)
    return replace(settings, stages=stages)


def _load_both(run: DistillRun, context: int, progress: Progress) -> tuple[Loaded, Student]:
    """Load teacher and student, and raise an InputError unless they fit each other and texts of so many tokens."""
    found = load(run.teacher, say=progress.say, bar=progress.bar)
    if is_spiking(found.model):
        raise InputError(
            f"teacher: expected a float model, got {found.source}, which spikes. Name the model that it was made from."
        )
    if isinstance(found.model, SpikingBrainForCausalLM):
        raise InputError(
            f"teacher: expected a Transformer, got {found.source}, a SpikingBrain model. Name the Transformer that it "
            "was converted from."
        )
    student = student_of(run, found.model, progress)
    _check_tokenizers(found.tokenizer, student.tokenizer, run)
    for model in (found.model, student.model):
        check_positions(model, context, "`context`")
    return found, student


def _say_how(
    student: nn.Module,
    tokens: Tensor | None,
    settings: DistillSettings,
    recipe: Recipe,
    where: str,
    progress: Progress,
) -> None:
    rates = " and ".join(f"{stage.learning_rate:g}" for stage in settings.stages)
    sizes = f"{recipe.batch_size} texts of {recipe.context} at a time, rates {rates}, {recipe.precision}"
    what = "tokens that the teacher writes meanwhile" if tokens is None else f"{len(tokens):,} tokens"
    progress.say(f"Training on {what} on {where}: {sizes}")
    reason = why_not_captured(student, settings) if where == "cuda" else None
    if reason is not None:
        progress.say(f"Steps run kernel by kernel and not as a CUDA graph: {reason}.")


def _check_tokenizers(teachers: Any, students: Any, run: DistillRun) -> None:
    """Raise an InputError if both models have a tokenizer, and the same tokens do not mean the same."""
    if teachers is None or students is None:
        return
    ours, theirs = students.get_vocab(), teachers.get_vocab()
    if ours != theirs:
        text, _ = min(ours.items() ^ theirs.items())
        raise InputError(
            f"student: expected the teacher's tokenizer, got another: {text!r} is token {ours.get(text, 'none')} in "
            f"{run.student} and {theirs.get(text, 'none')} in {run.teacher}. Give the Transformer that it was made of."
        )


def going_on(out: Path, job: dict[str, Any], force: bool = False) -> dict[str, Any] | None:
    """Return the plan of an interrupted training, if this one goes on with it.

    Args:
        out: folder of the training.
        job: all that its result depends on, or a part of that.
        force: a training with another job is deleted. Without, it is refused if it has begun to train.
    Raises:
        InputError: the folder holds a training with other arguments, or plan.json is no plan.
    """
    path = out / PLAN
    if not path.exists():
        return None
    try:
        found = read_json(path)
        other = [name for name, value in job.items() if found["job"].get(name) != value]
        found["steps"] = {name: int(number) for name, number in found["steps"].items()}
    except (InputError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise InputError(f"{path}: is no plan of a training: {error}. Delete it to start again.") from error
    if not other:
        return found
    if (out / STATE).exists() and not force:
        name = other[0]
        was = "another" if name in ("teacher", "student", "text") else f"{found['job'].get(name)}, not {job[name]}"
        raise InputError(
            f"{name}: {out} holds a training that was begun with {was}. Give the same to go on with it, name another "
            "folder, or pass force=True to start again."
        )
    for name in (PLAN, STATE):
        remove(out / name)
    return None


def plan(
    student: Any,
    teacher: Any,
    tokens: Tensor | WrittenText,
    settings: DistillSettings,
    run: DistillRun,
    recipe: Recipe,
    progress: Progress = SILENT,
) -> dict[str, int]:
    """Return the steps of each objective: those that are given, and as many as fit the time of the others.

    Args:
        student: as for `models.training.distill`.
        teacher: as for `models.training.distill`.
        tokens: as for `models.training.distill`.
        settings: stages; steps that are not given do not matter.
        run: gives steps and minutes.
        recipe: gives each stage's share of the time.
        progress: told what happens.
    """
    given = {"attention": run.attention_steps, "logits": run.logits_steps}
    if all(given[stage.objective] is not None for stage in settings.stages):
        return {stage.objective: stage.steps for stage in settings.stages}
    minutes = usual(run.minutes, MINUTES)
    progress.say(f"Timing a few steps, to train for {minutes:g} minutes")
    fitted = fit_steps(
        student,
        teacher,
        tokens,
        settings,
        60 * minutes,
        recipe.shares(settings),
        lambda title, total: progress.bar(title, total, "stages"),
    )
    steps = {stage.objective: given[stage.objective] or stage.steps for stage in fitted.stages}
    progress.say(f"Training for {_listed(steps)}")
    return steps


def _listed(steps: dict[str, int]) -> str:
    return " and ".join(f"{number:,} steps of {name}" for name, number in steps.items())
