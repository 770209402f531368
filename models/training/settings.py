"""Settings and result of light training."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from ...errors import InputError
from ..layers.settings import ATTENTION as SPIKING

OBJECTIVES = ("attention", "logits")
TRAINABLE = ("new", "attention", "all")
PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A part of the training.

    Attributes:
        objective: "attention": attention outputs and hidden states layer by layer; "logits": the teacher's predictions.
        context: tokens of a text.
        steps: of the optimiser.
        learning_rate: the largest, after the warm-up; it falls to 0 along a cosine.
        batch_size: texts at the same time.
        accumulation: batches whose gradients make a step.
        trainable: "new": what the Transformer has not (gates, norms and weights of branches, sink tokens, routers);
            "attention": all of attention as well; "all".
        new_rate: learning rate of what the Transformer has not, as a multiple of learning_rate.
        warmup: steps in which the learning rate rises from 0.
        temperature: of both logits; only for "logits".
        ce_weight: of the text's own next token; only for "logits".
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
        _require(0 <= self.ce_weight < math.inf, "Stage.ce_weight", "a finite number >= 0", self.ce_weight)

    def learning_rate_at(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        warm = min((step + 1) / (self.warmup + 1), 1.0)
        return self.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / self.steps))


@dataclass(frozen=True, kw_only=True)
class DistillSettings:
    """How to train.

    Attributes:
        stages: one after the other.
        spiking: None, or the setting of `to_spiking` whose roundings are in the forward pass; gradients pass them
            unchanged.
        k: of the adaptive threshold, if it spikes.
        group_size: input channels that share a weight scale, if it spikes; None for all.
        precision: "bfloat16" for autocast; parameters and optimiser stay as they are.
        gradient_checkpointing: compute layers again in the backward pass, to save memory; for "logits".
        max_norm: gradients are scaled down to this norm.
        weight_decay: of AdamW.
        seed: of the order of the texts.
        budget_s: seconds after which training stops, with its state kept; None for no limit.
        save_every_s: seconds between two saves of the state.
    Raises:
        InputError: a value out of range; the message names the field.
    """

    stages: tuple[Stage, ...]
    spiking: str | None = None
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
        for name, allowed in (("spiking", (None, *SPIKING)), ("precision", PRECISIONS)):
            value = getattr(self, name)
            _require(value in allowed, f"DistillSettings.{name}", f"one of {allowed}", value)
        _require(self.max_norm > 0, "DistillSettings.max_norm", "a number > 0", self.max_norm)
        fine = self.budget_s is None or self.budget_s >= 0
        _require(fine, "DistillSettings.budget_s", "a number >= 0 or None", self.budget_s)

    def job(self) -> dict[str, Any]:
        """Return all that the losses depend on, as JSON values."""
        fields = asdict(self)
        del fields["budget_s"], fields["save_every_s"]
        return fields


@dataclass(frozen=True)
class LossPoint:
    """One step: its stage and number, both from 0, the loss before it, and its learning rate."""

    stage: int
    step: int
    loss: float
    learning_rate: float


@dataclass(frozen=True)
class DistillResult:
    """What `distill` did.

    Attributes:
        losses: of every step so far, those before an interruption included.
        finished: False if the budget ended first.
        seconds: of this call.
        num_tokens: that the steps in `losses` saw.
    """

    losses: tuple[LossPoint, ...]
    finished: bool
    seconds: float
    num_tokens: int


def _require(fine: bool, field: str, expected: str, got: Any) -> None:
    if not fine:
        raise InputError(f"{field}: expected {expected}, got {got!r}.")
