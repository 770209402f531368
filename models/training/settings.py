"""Settings and result of light training."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from ...errors import InputError
from ...registry import to_dict
from ..conversion.descent import rate_at
from ..layers.settings import ATTENTION, SpikeSettings

OBJECTIVES = ("attention", "logits")
TRAINABLE = ("new", "attention", "all")
PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A part of the training, with an objective and sizes of its own.

    Attributes:
        objective: "attention" matches attention outputs and hidden states layer by layer; "logits" matches the
            teacher's predictions.
        context: tokens of a text.
        steps: number of optimiser steps.
        learning_rate: its peak, after the warm-up; it falls to 0 along a cosine.
        batch_size: texts of a batch.
        accumulation: batches whose gradients make a step.
        trainable: which parameters learn. "new": those that the Transformer does not have (gates, norms and weights of
            branches, sink tokens, routers); "attention": these and all of attention; "all".
        new_rate: learning rate of the new parameters, as a multiple of learning_rate.
        warmup: steps in which the learning rate rises from 0.
        growth: share of the steps in which silence grows, where spikes are in the loop: dead zones and the edges of
            coarse rows rise in a line from 0 to what the settings say. 0 to train with all of it from the start.
        temperature: divides both logits in the KL term; only for "logits".
        ce_weight: weight of the cross-entropy with the text's next token; only for "logits".
    Raises:
        InputError: a value out of range; the message names the field.
    """

    objective: str
    context: int
    steps: int
    learning_rate: float
    batch_size: int = 8
    accumulation: int = 1
    trainable: str = "all"
    new_rate: float = 1.0
    warmup: int = 10
    growth: float = 0.0
    temperature: float = 1.0
    ce_weight: float = 0.0

    def __post_init__(self) -> None:
        for name, allowed in (("objective", OBJECTIVES), ("trainable", TRAINABLE)):
            _require(getattr(self, name) in allowed, f"Stage.{name}", f"one of {allowed}", getattr(self, name))
        for name, least in (("context", 2), ("steps", 1), ("batch_size", 1), ("accumulation", 1), ("warmup", 0)):
            value = getattr(self, name)
            _require(type(value) is int and value >= least, f"Stage.{name}", f"an integer >= {least}", value)
        for name in ("learning_rate", "new_rate", "temperature"):
            value = getattr(self, name)
            _require(0 < value < math.inf, f"Stage.{name}", "a finite number > 0", value)
        _require(0 <= self.growth <= 1, "Stage.growth", "a number from 0 to 1", self.growth)
        _require(0 <= self.ce_weight < math.inf, "Stage.ce_weight", "a finite number >= 0", self.ce_weight)

    def learning_rate_at(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        return rate_at(step, self.steps, self.learning_rate, self.warmup)

    def grown_at(self, step: int) -> float:
        """Return how much of the silence has grown at a step, counted from 0: up to 1.

        >>> stage = Stage(objective="logits", context=2, steps=8, learning_rate=1.0, growth=0.5)
        >>> [stage.grown_at(step) for step in (0, 2, 4, 7)]
        [0.0, 0.5, 1.0, 1.0]
        """
        growing = self.growth * self.steps
        return min(step / growing, 1.0) if growing > 0 else 1.0


@dataclass(frozen=True, kw_only=True)
class DistillSettings:
    """How to train.

    Attributes:
        stages: run one after the other.
        spiking: None, or how a SpikingBrain model spikes, as `spikingbrain_settings` has it: the forward pass then
            rounds as that model does, and gradients pass the rounding unchanged.
        spikes: in the place of `spiking`, for any student: the settings that `to_spiking` will get; see `spike_aware`.
        read: with spikes, bytes of weights, scales and minima that a token may read, as a share of what the layers
            would read as dense INT8 ones. Beyond it a penalty pulls activations towards silence, in stages for logits;
            see `SpikeAware.read`. None for no penalty.
        read_penalty: its weight: read_penalty * max(0, bytes read / read - 1) is added to the loss.
        k: of the adaptive threshold, if spiking is set.
        group_size: input channels that share a weight scale, if spiking is set; None for all.
        precision: "float32", or "bfloat16" for autocast; parameters and optimiser keep their dtype.
        gradient_checkpointing: compute layers again in the backward pass, to save memory; only for "logits".
        max_norm: larger gradients are scaled down to this norm.
        weight_decay: of AdamW.
        seed: random seed for the order of the texts.
        budget_s: seconds after which training stops and keeps its state; None for no limit.
        save_every_s: seconds between two saves of the state.
    Raises:
        InputError: a value out of range; the message names the field.
    """

    stages: tuple[Stage, ...]
    spiking: str | None = None
    spikes: SpikeSettings | None = None
    read: float | None = None
    read_penalty: float = 1.0
    k: float = 3.0
    group_size: int | None = None
    precision: str = "float32"
    gradient_checkpointing: bool = False
    max_norm: float = 1.0
    weight_decay: float = 0.0
    seed: int = 0
    budget_s: float | None = None
    save_every_s: float = 120.0

    def __post_init__(self) -> None:
        are_stages = isinstance(self.stages, tuple) and all(isinstance(stage, Stage) for stage in self.stages)
        _require(are_stages and len(self.stages) > 0, "DistillSettings.stages", "a tuple of Stage", self.stages)
        for name, allowed in (("spiking", (None, *ATTENTION)), ("precision", PRECISIONS)):
            value = getattr(self, name)
            _require(value in allowed, f"DistillSettings.{name}", f"one of {allowed}", value)
        fine = self.spikes is None or (isinstance(self.spikes, SpikeSettings) and self.spiking is None)
        _require(
            fine, "DistillSettings.spikes", "SpikeSettings(...), without `spiking` beside it, or None", self.spikes
        )
        fine = self.read is None or 0 < self.read < math.inf
        _require(fine, "DistillSettings.read", "a finite number > 0 or None", self.read)
        _require(0 <= self.read_penalty < math.inf, "DistillSettings.read_penalty", "a number >= 0", self.read_penalty)
        if self.read is not None and (self.gradient_checkpointing or (self.spikes is None and self.spiking is None)):
            raise InputError(
                "DistillSettings.read: has no effect without spikes, and expects gradient_checkpointing=False, since "
                "bytes are counted in the forward pass. Leave one of them out."
            )
        _require(self.max_norm > 0, "DistillSettings.max_norm", "a number > 0", self.max_norm)
        fine = self.budget_s is None or self.budget_s >= 0
        _require(fine, "DistillSettings.budget_s", "a number >= 0 or None", self.budget_s)

    def job(self) -> dict[str, Any]:
        """Return the fields that the losses depend on, as JSON values."""
        names = [field.name for field in fields(self) if field.name not in ("budget_s", "save_every_s")]
        found = {name: getattr(self, name) for name in names}
        found["stages"] = [asdict(stage) for stage in self.stages]
        found["spikes"] = None if self.spikes is None else to_dict(self.spikes)
        return found


@dataclass(frozen=True)
class LossPoint:
    """One step: its stage and its number (both count from 0), the loss before the step, and the learning rate."""

    stage: int
    step: int
    loss: float
    learning_rate: float


@dataclass(frozen=True)
class DistillResult:
    """What `distill` did.

    Attributes:
        losses: of every step so far, including those before an interruption.
        finished: False if the time budget ended first.
        seconds: time of this call, and of those before it that were interrupted.
        num_tokens: tokens that the steps in `losses` trained on.
    """

    losses: tuple[LossPoint, ...]
    finished: bool
    seconds: float
    num_tokens: int

    def __repr__(self) -> str:
        """Return what came of the training; the losses are many."""
        ends = f", loss {self.losses[0].loss:.4g} -> {self.losses[-1].loss:.4g}" if self.losses else ""
        state = "" if self.finished else ", not finished"
        return f"{len(self.losses):,} steps on {self.num_tokens:,} tokens in {self.seconds:.0f} s{ends}{state}"


def _require(fine: bool, field: str, expected: str, got: Any) -> None:
    if not fine:
        raise InputError(f"{field}: expected {expected}, got {got!r}.")
