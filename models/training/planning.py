"""How many steps fit into a given time: a learning rate that falls to 0 must know its end from the start."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

from torch import Tensor

from ...errors import InputError
from ..spikingbrain.causal_lm import SpikingBrainForCausalLM
from .distill import distill
from .settings import DistillSettings

# A step that takes longer is timed once, a shorter one so many times.
_LONG_S, _TIMED = 1.0, 4


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
        trial, alone = copy.deepcopy(student), replace(settings, stages=(stage,), budget_s=None)
        _time_of(1, trial, teacher, tokens, alone)  # compiles and allocates
        a_step = _time_of(1, trial, teacher, tokens, alone)
        if a_step < _LONG_S:
            a_step = _time_of(_TIMED, trial, teacher, tokens, alone)
        stages.append(replace(stage, steps=max(int(seconds * share / a_step), 1)))
    return replace(settings, stages=tuple(stages))


def _time_of(
    steps: int, student: SpikingBrainForCausalLM, teacher: Any, tokens: Tensor, settings: DistillSettings
) -> float:
    """Return the seconds that one of so many steps of the only stage takes."""
    stages = (replace(settings.stages[0], steps=steps),)
    return distill(student, teacher, tokens, replace(settings, stages=stages)).seconds / steps
