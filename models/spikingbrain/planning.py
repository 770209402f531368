"""How many steps fit into a given time: a learning rate that falls to 0 must know its end from the start."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

from torch import Tensor

from ...errors import InputError
from .causal_lm import SpikingBrainForCausalLM
from .distill import distill
from .training import DistillSettings

# Steps that are not timed, since they compile and allocate, and steps that are.
_WARM, _TIMED = 2, 4


def fit_steps(
    student: SpikingBrainForCausalLM,
    teacher: Any,
    tokens: Tensor,
    settings: DistillSettings,
    seconds: float,
    shares: tuple[float, ...],
) -> DistillSettings:
    """Return the settings with as many steps in each stage as its share of the time allows, one at least.

    A few steps of each stage are run on a copy of the student, which takes that long in addition.

    Args:
        student: as for `distill`; stays as it is.
        teacher: as for `distill`.
        tokens: as for `distill`.
        settings: whose steps do not matter.
        seconds: for all stages.
        shares: of each stage; they need not sum to 1.
    Raises:
        InputError: not one share for each stage, a negative time, or what `distill` refuses.
    """
    if len(shares) != len(settings.stages) or seconds < 0:
        raise InputError(
            f"fit_steps: expected seconds >= 0 and {len(settings.stages)} shares, one per stage, got {seconds:g} "
            f"and {shares}."
        )
    stages = []
    for stage, share in zip(settings.stages, shares, strict=True):
        trial, a_step = copy.deepcopy(student), 0.0
        for steps in (_WARM, _TIMED):
            some = replace(settings, stages=(replace(stage, steps=steps),), budget_s=None)
            a_step = distill(trial, teacher, tokens, some).seconds / steps
        stages.append(replace(stage, steps=max(int(seconds * share / a_step), 1)))
    return replace(settings, stages=tuple(stages))
