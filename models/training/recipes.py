"""How to train lightly on a CPU and on a GPU unless told otherwise; docs/results.md has what these recipes gave."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from ...errors import InputError
from .settings import DistillSettings, Stage


@dataclass(frozen=True)
class Recipe:
    """Sizes and learning rates of the two stages: attention outputs first, then logits.

    Attributes:
        context: tokens of a text.
        batch_size: texts of a batch.
        learning_rate: for attention outputs.
        logits_rate: learning rate for logits, as a multiple of learning_rate.
        attention_share: share of the time for attention outputs; few and small steps are best spent there.
        precision: of matrix products, "float32" or "bfloat16".
    Raises:
        InputError: logits_rate or attention_share is out of range; `settings` checks the others.
    """

    context: int
    batch_size: int
    learning_rate: float
    logits_rate: float
    attention_share: float
    precision: str

    def __post_init__(self) -> None:
        if not 0 < self.logits_rate < math.inf:
            raise InputError(f"Recipe.logits_rate: expected a finite number > 0, got {self.logits_rate:g}.")
        if not 0 < self.attention_share < 1:
            raise InputError(f"Recipe.attention_share: expected a number between 0 and 1, got {self.attention_share}.")

    @classmethod
    def for_device(cls, device: str, *, ordinary: bool = False, **changes: Any) -> Recipe:
        """Return the recipe for "cpu" or "cuda".

        Args:
            device: where the training runs.
            ordinary: for an ordinary Transformer that learns to run on spikes, which has no stage for attention
                outputs; else for a SpikingBrain model.
            changes: fields that shall be other than in the recipe; None leaves a field as it is.

        >>> Recipe.for_device("cpu", context=64, precision=None)  # doctest: +NORMALIZE_WHITESPACE
        Recipe(context=64, batch_size=4, learning_rate=0.001, logits_rate=0.1, attention_share=0.5,
            precision='float32')
        """
        recipes = RECIPES_OF_TRANSFORMERS if ordinary else RECIPES
        return replace(recipes[device], **{name: value for name, value in changes.items() if value is not None})

    def shares(self, settings: DistillSettings) -> tuple[float, ...]:
        """Return the share of the time of each stage of `settings`; a single stage gets all of it."""
        if len(settings.stages) == 1:
            return (1.0,)
        shares = {"attention": self.attention_share, "logits": 1 - self.attention_share}
        return tuple(shares[stage.objective] for stage in settings.stages)

    def settings(
        self,
        *,
        attention_steps: int | None = None,
        logits_steps: int | None = None,
        accumulation: int = 1,
        growth: float = 0.0,
        only_attention: bool = False,
        **rest: Any,
    ) -> DistillSettings:
        """Return the settings that this recipe makes.

        Args:
            attention_steps: steps of the stage for attention outputs. 0 leaves the stage out; None stands for a number
                that is still to be found (see `fit_steps`), and is 1 until then.
            logits_steps: the same for logits.
            accumulation: batches whose gradients make a step.
            growth: share of the steps for logits in which silence grows; see `Stage`.
            only_attention: nothing but attention and what is new learns, in both stages.
            rest: other fields of `DistillSettings`.
        Raises:
            InputError: a value out of range, or no step at all.
        """
        wanted = {"attention": attention_steps, "logits": logits_steps}
        for name, steps in wanted.items():
            if steps is not None and steps < 0:
                raise InputError(f"{name}_steps: expected an integer >= 0 or None, got {steps}.")
        if attention_steps == logits_steps == 0:
            raise InputError("attention_steps: expected more than 0, or `logits_steps` more than 0; got 0 for both.")
        stages = tuple(
            Stage(
                objective=name,
                context=self.context,
                steps=steps or 1,
                batch_size=self.batch_size,
                accumulation=accumulation,
                growth=growth if name == "logits" else 0.0,
                learning_rate=self.learning_rate * (1.0 if name == "attention" else self.logits_rate),
                trainable="attention" if name == "attention" or only_attention else "all",
            )
            for name, steps in wanted.items()
            if steps != 0
        )
        return DistillSettings(stages=stages, precision=self.precision, **rest)


RECIPES = {
    "cpu": Recipe(256, 4, 1e-3, 0.1, 0.5, "float32"),
    "cuda": Recipe(512, 32, 2e-3, 0.3, 0.1, "bfloat16"),
}
# Of weights that are trained already. Tried on small models only.
RECIPES_OF_TRANSFORMERS = {
    "cpu": Recipe(256, 4, 5e-5, 1.0, 0.5, "float32"),
    "cuda": Recipe(512, 32, 1e-4, 1.0, 0.5, "bfloat16"),
}
