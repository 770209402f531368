"""Light training: a model learns from the Transformer that it was made of, or is a copy of, in stages.

Each batch depends only on the settings and the number of the step; nothing else is random. A training that was
interrupted, or even killed, therefore goes on from its last saved state and gives the same losses as without the
interruption, on the same machine.

Source: SpikingBrain (arXiv:2509.05276), section 3.1, for conversion followed by light training in stages of growing
context; the layer-wise objective as in LoLCATs, arXiv:2410.10254.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from ...errors import CheckpointError, InputError, TrainingError
from ...interrupt import held_interrupt
from ...module_check import check_module
from ...neuro.faults import marked_faults
from ..conversion.calibrate import check_tokens
from ..conversion.to_spiking import k_of_queries, set_settings, spikingbrain_settings
from ..conversion.unshare import unshare_experts
from ..layers.settings import SpikeSettings
from ..layers.spike_aware import SpikeAware, spike_aware
from ..layers.spike_linear import spiking_layers
from ..spikingbrain.causal_lm import SpikingBrainForCausalLM
from .gradients import Gradients
from .objectives import check_head
from .sampling import WrittenText
from .settings import DistillResult, DistillSettings, LossPoint, Stage
from .state import SavedState, save_state
from .team import ALONE, Team

# Parameters that the Transformer does not have, and those of attention, by a part of their name.
_NEW = (".gk_proj.", ".g_norm.", ".s_norm.", ".branch_weight", "model.sinks", ".router.")
_ATTENTION = (*_NEW, ".attn.")
# Losses are read after this many steps, since reading one waits for the GPU.
_READ_EVERY = 16
# About this many numbers of each parameter go into a fingerprint.
_SAMPLED = 256


def distill(
    student: PreTrainedModel,
    teacher: Any,
    tokens: Tensor | WrittenText,
    settings: DistillSettings,
    out: Path | None = None,
    progress: Callable[[str, int], Callable[[int], None]] | None = None,
    origin: str = "",
    team: Team = ALONE,
) -> DistillResult:
    """Train a model in place, alone or with other processes that do the same.

    Args:
        student: a float model from `from_transformer`, or an ordinary Transformer, such as a copy of the teacher that
            learns to run on spikes (`settings.spikes`); float32 parameters learn best. Equal experts get weights of
            their own first (`unshare_experts`), unless no stage trains them. Attention outputs are matched in a
            SpikingBrain model alone.
        teacher: the Transformer, on the same device.
        tokens: token ids, [N]; each stage cuts them into texts of its context, without overlap. Or texts that the
            teacher writes meanwhile, none of which is read twice.
        settings: stages and options.
        out: folder for loss.json and training.safetensors, the state from which the same call goes on; None to keep
            nothing. If it holds the state of this job, the student gets its parameters from there.
        progress: called with the title and the number of steps of a stage; returns a function that is told how many
            more steps are done.
        origin: identifies the student before any training, for example by its `fingerprint`; the state of another
            student is refused. It is an argument because a student that goes on may have been trained already.
        team: the processes that train together. All call this with equal arguments but for the rank and, where the
            teacher writes the text, with texts of their own; the first one writes to `out`, which all can read.
    Returns:
        The losses.
    Raises:
        InputError: there are too few tokens or ids outside the vocabulary, the models do not belong together, the
            student spikes (the settings train with spikes), a stage or a setting is not for such a student, out holds
            the state of another job, or a batch does not divide among the processes.
        TrainingError: a loss is NaN or infinite; the saved state is of an earlier step.
        CheckpointError: the state cannot be read or written.
    """
    start = time.perf_counter()
    _check(student, teacher, tokens, settings, team)
    if isinstance(student, SpikingBrainForCausalLM) and any(stage.trainable == "all" for stage in settings.stages):
        unshare_experts(student)
    losses: list[LossPoint] = []
    saved, key, before_s = None, "", 0.0
    if out is not None:
        _make(out)
        key = _key(student, teacher, tokens, settings, origin)
        saved = SavedState(out, key)
        if saved.progress is not None:
            saved.restore_model(student)
            losses = [LossPoint(**point) for point in saved.progress["losses"]]
            before_s = saved.progress.get("seconds", 0.0)  # which states of older versions do not have
    team.equalise(student)

    def progressed() -> dict[str, Any]:
        return {"losses": [asdict(point) for point in losses], "seconds": before_s + time.perf_counter() - start}

    finished, writes = True, out is not None and team.is_first
    # Ctrl-C ends training behind a step, whose state is saved.
    with held_interrupt() as interrupted, _prepared(student, teacher, settings) as aware:
        for number, stage in enumerate(settings.stages):
            done = sum(point.stage == number for point in losses)
            if done == stage.steps:
                continue
            optimizer = _optimizer(student, stage, settings)
            gradients = Gradients(student, teacher, stage, settings, _penalty(aware, settings))
            if saved is not None and saved.progress is not None and done:
                saved.restore_optimizer(student, optimizer)
            advance = progress(f"{number + 1} {stage.objective}", stage.steps) if progress else lambda steps: None
            advance(done)
            last_save, fresh = time.perf_counter(), list[Tensor]()
            for step in range(done, stage.steps):
                in_time = settings.budget_s is None or time.perf_counter() - start < settings.budget_s
                finished = team.agree(in_time and not interrupted())
                if not finished:
                    break
                _grow(aware, stage, step)
                fresh.append(_step(gradients, tokens, settings, number, step, optimizer, team))
                advance(1)
                is_due = writes and time.perf_counter() - last_save > settings.save_every_s
                if is_due or len(fresh) == _READ_EVERY:
                    losses += _read(fresh, stage, number, step + 1)
                    fresh.clear()
                if out is not None and is_due:
                    save_state(out, key, student, optimizer, progressed())
                    last_save = time.perf_counter()
            losses += _read(fresh, stage, number, sum(point.stage == number for point in losses) + len(fresh))
            if out is not None and writes:
                save_state(out, key, student, optimizer, progressed())
            if not finished:
                break
    sizes = [stage.batch_size * stage.accumulation * stage.context for stage in settings.stages]
    num_tokens = sum(sizes[point.stage] for point in losses)
    return DistillResult(tuple(losses), finished, before_s + time.perf_counter() - start, num_tokens)


def batch_of(
    tokens: Tensor | WrittenText, stage: Stage, seed: int, index: int, number: int = 0, team: Team = ALONE
) -> Tensor:
    """Return a batch by its number. Every text comes once, in random order, before any comes again.

    Args:
        tokens: token ids, [N], or texts that are written.
        stage: gives context and batch_size.
        seed: random seed for the orders.
        index: number of the batch within the stage, from 0.
        number: of the stage, from 0.
        team: of whose batch a process takes its part.
    Returns:
        Token ids, [batch_size / processes, context].
    """
    size = team.share(stage.batch_size)
    if isinstance(tokens, WrittenText):
        return tokens.batch(number, stage.context, index * size, size)
    seed += 1000 * number
    num_texts = len(tokens) // stage.context
    rows = []
    first = index * stage.batch_size + team.rank * size
    for i in range(first, first + size):
        text = _order(num_texts, seed + i // num_texts)[i % num_texts]
        rows.append(tokens[text * stage.context : (text + 1) * stage.context])
    return torch.stack(rows)


@lru_cache(maxsize=2)  # a batch may end one order and begin the next
def _order(num_texts: int, seed: int) -> list[int]:
    return torch.randperm(num_texts, generator=torch.Generator().manual_seed(seed)).tolist()


def _step(
    gradients: Gradients,
    tokens: Tensor | WrittenText,
    settings: DistillSettings,
    number: int,
    step: int,
    optimizer: torch.optim.Optimizer,
    team: Team,
) -> Tensor:
    """Take an optimiser step, and return its loss. A GPU may still be computing it."""
    stage = settings.stages[number]
    losses = []
    for i in range(stage.accumulation):
        ids = batch_of(tokens, stage, settings.seed, step * stage.accumulation + i, number, team)
        losses.append(gradients.add(ids))
    learning = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    loss = team.average(learning, torch.stack(losses).mean())
    nn.utils.clip_grad_norm_(learning, settings.max_norm)
    for group in optimizer.param_groups:
        group["lr"] = stage.learning_rate_at(step) * group["rate"]
    optimizer.step()
    optimizer.zero_grad(set_to_none=not gradients.is_captured)
    return loss


def _read(fresh: list[Tensor], stage: Stage, number: int, end: int) -> list[LossPoint]:
    """Read the losses of the steps before `end`, which waits for a GPU.

    Raises:
        TrainingError: a loss is NaN or infinite.
    """
    points = []
    for step, loss in enumerate(torch.stack(fresh).tolist() if fresh else [], end - len(fresh)):
        if not math.isfinite(loss):
            raise TrainingError(
                f"distill: expected a finite loss, got {loss} at step {step} of stage {number} ({stage.objective}). "
                "Use a lower learning rate, a longer warm-up or float32."
            )
        points.append(LossPoint(number, step, loss, stage.learning_rate_at(step)))
    return points


def _optimizer(student: nn.Module, stage: Stage, settings: DistillSettings) -> torch.optim.Optimizer:
    """Let only the parameters of the stage require gradients, and return their optimiser."""
    parts = {"new": _NEW, "attention": _ATTENTION, "all": ("",)}[stage.trainable]
    new, old = list[nn.Parameter](), list[nn.Parameter]()
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(any(part in name for part in parts))
        parameter.grad = None
        if parameter.requires_grad:
            (new if any(part in name for part in _NEW) else old).append(parameter)
    groups = [{"params": new, "rate": stage.new_rate}, {"params": old, "rate": 1.0}]
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise InputError(f"distill: the model has no parameters of the kind {stage.trainable!r}. Train others.")
    return torch.optim.AdamW(groups, lr=stage.learning_rate, weight_decay=settings.weight_decay, fused=True)


@contextmanager
def _prepared(student: Any, teacher: Any, settings: DistillSettings) -> Iterator[SpikeAware | None]:
    """Prepare both models for training inside a `with` block, and restore them afterwards."""
    modes, requires = (student.training, teacher.training), [p.requires_grad for p in student.parameters()]
    is_ours, spikes = isinstance(student, SpikingBrainForCausalLM), _spikes(settings)
    with ExitStack() as stack:
        counts_bytes = settings.read is not None
        aware = None
        if spikes is not None:
            aware = stack.enter_context(spike_aware(student, spikes, counts_bytes=counts_bytes))
        stack.enter_context(marked_faults())  # as on a GPU: the loss is NaN, and the error says what to change
        stack.enter_context((_as_ours if is_ours else _as_transformer)(student, spikes, settings))
        try:
            teacher.eval()
            yield aware
        finally:
            student.train(modes[0])
            teacher.train(modes[1])
            for parameter, required in zip(student.parameters(), requires, strict=True):
                parameter.requires_grad_(required)
                parameter.grad = None


def _grow(aware: SpikeAware | None, stage: Stage, step: int) -> None:
    """Let silence be as much as it is at a step."""
    if aware is not None:
        aware.grow(stage.grown_at(step))


def _penalty(aware: SpikeAware | None, settings: DistillSettings) -> Callable[[], Tensor] | None:
    """Return what gives the penalty on the bytes that the last call has read, or None."""
    if aware is None or settings.read is None:
        return None
    target, weight = settings.read, settings.read_penalty
    return lambda: weight * (aware.read() / target - 1).clamp(min=0)


@contextmanager
def _as_ours(student: Any, spikes: SpikeSettings | None, settings: DistillSettings) -> Iterator[None]:
    """Prepare a SpikingBrain model: its attention spikes, too, if the settings say so."""
    before, checkpointing = student.settings, student.model.gradient_checkpointing
    try:
        if spikes is not None and spikes.attention is not None:
            k = k_of_queries(spikes, len(before.layers))
            set_settings(student, before.replace(spiking=spikes.attention, k=k, group_size=spikes.group_size))
        student.train()
        student.model.gradient_checkpointing = settings.gradient_checkpointing
        yield
    finally:
        set_settings(student, before)
        student.model.gradient_checkpointing = checkpointing


@contextmanager
def _as_transformer(student: Any, spikes: SpikeSettings | None, settings: DistillSettings) -> Iterator[None]:
    """Prepare an ordinary Transformer: without dropout, since nothing but the batches may be random."""
    student.eval()
    checkpointing = any(getattr(module, "gradient_checkpointing", False) for module in student.modules())
    try:
        if settings.gradient_checkpointing:
            _checkpointing(student, "enable")({"use_reentrant": False})
            for module in student.modules():
                if isinstance(module, GradientCheckpointingLayer):
                    module.training = True  # of its own, without the parts: else it would keep everything
        yield
    finally:
        if settings.gradient_checkpointing and not checkpointing:
            _checkpointing(student, "disable")()


def _checkpointing(student: Any, verb: str) -> Callable[..., None]:
    """Return a method of transformers, whose name changes with its version."""
    return getattr(student, f"activation_checkpointing_{verb}", None) or getattr(
        student, f"gradient_checkpointing_{verb}"
    )


def _spikes(settings: DistillSettings) -> SpikeSettings | None:
    """Return the settings of the spikes in the loop, if there are any."""
    if settings.spiking is None:
        return settings.spikes
    return spikingbrain_settings(settings.spiking, k=settings.k, group_size=settings.group_size)


def _check(student: Any, teacher: Any, tokens: Tensor | WrittenText, settings: DistillSettings, team: Team) -> None:
    check_module("distill", student, "student", PreTrainedModel, "spike_aware trains other models on spikes.")
    check_module("distill", teacher, "teacher")
    is_ours = isinstance(student, SpikingBrainForCausalLM)
    for stage in settings.stages:
        team.share(stage.batch_size)
    if spiking_layers(student) or (is_ours and student.settings.spiking is not None):
        raise InputError(
            "distill: expected a float model, got one that spikes, whose INT8 weights cannot learn. Give the model "
            "before to_spiking; settings.spikes, or settings.spiking, trains it with spikes in the forward pass."
        )
    if is_ours:
        ours, theirs = student.settings, teacher.config
        sizes = (ours.num_layers, ours.hidden_size, ours.vocab_size)
        expected = (theirs.num_hidden_layers, theirs.hidden_size, theirs.vocab_size)
        if sizes != expected:
            raise InputError(
                f"distill: expected a student with the teacher's layers, hidden size and vocabulary, {expected}, got "
                f"{sizes}."
            )
    else:
        _check_transformer(student, teacher, settings)
    if isinstance(tokens, WrittenText):
        return
    longest = max(stage.context for stage in settings.stages)
    if tokens.ndim != 1 or len(tokens) < longest:
        raise InputError(
            f"distill.tokens: expected at least {longest} ids [N], the longest context of a stage, got "
            f"{list(tokens.shape)}. Give more text."
        )
    embedding: Any = student.get_input_embeddings()
    check_tokens(tokens, embedding.num_embeddings, "distill.tokens")


def _check_transformer(student: Any, teacher: Any, settings: DistillSettings) -> None:
    """Raise an InputError if an ordinary Transformer cannot be trained so."""
    kind = type(student).__name__
    for stage in settings.stages:
        if (stage.objective, stage.trainable) != ("logits", "all"):
            raise InputError(
                f'distill: expected stages with objective="logits" and trainable="all" for a {kind}, got '
                f"{stage.objective!r} and {stage.trainable!r}. Attention outputs, and what is new, are those of a "
                "SpikingBrain model from from_transformer."
            )
    if settings.spiking is not None:
        raise InputError(
            f"distill: expected `spikes` for a {kind}, got spiking={settings.spiking!r}, which is how a SpikingBrain "
            "model spikes. Give spikes=SpikeSettings(...)."
        )
    if settings.spikes is not None and settings.spikes.attention is not None:
        raise InputError(
            f"distill: expected `spikes` with attention=None for a {kind}, got {settings.spikes.attention!r}. Only the "
            "attention of SpikingBrain models trains with spikes."
        )
    sizes = [model.get_input_embeddings().num_embeddings for model in (teacher, student)]
    if sizes[0] != sizes[1]:
        raise InputError(
            f"distill: expected a student with the teacher's vocabulary of {sizes[0]:,} tokens, got {sizes[1]:,}."
        )
    check_head(teacher, "teacher")
    check_head(student, "student")


def fingerprint(model: nn.Module) -> str:
    """Return a checksum of a sample of every parameter, the same on all devices."""
    checksum = hashlib.sha256()
    for name, parameter in model.named_parameters():
        flat = parameter.detach().flatten()
        some = flat[:: max(1, len(flat) // _SAMPLED)].to("cpu", torch.float64)
        checksum.update(f"{name} {tuple(parameter.shape)}".encode() + some.numpy().tobytes())
    return checksum.hexdigest()


def _key(
    student: Any,
    teacher: nn.Module,
    tokens: Tensor | WrittenText,
    settings: DistillSettings,
    origin: str,
) -> str:
    is_ours = isinstance(student, SpikingBrainForCausalLM)
    shapes = {name: list(parameter.shape) for name, parameter in student.named_parameters()}
    job = {"settings": settings.job(), "model": student.settings.to_dict() if is_ours else shapes}
    job |= {"teacher": fingerprint(teacher), "student": origin}
    text = tokens.identity().encode() if isinstance(tokens, WrittenText) else tokens.cpu().numpy().tobytes()
    content = json.dumps(job, sort_keys=True).encode() + text
    return hashlib.sha256(content).hexdigest()


def _make(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{out}: cannot be made: {error.strerror}. Name another folder.") from error
