"""How many steps fit a given time. A learning rate that falls to 0 must know the number of steps from the start."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

from torch import Tensor

from ...errors import InputError
from ..spikingbrain.causal_lm import SpikingBrainForCausalLM
from .distill import distill
from .settings import DistillSettings

# A step that takes longer than _LONG_S seconds is timed once; a shorter one _NUM_TIMED times.
_LONG_S, _NUM_TIMED = 1.0, 4


def fit_steps(
    student: SpikingBrainForCausalLM,
    teacher: Any,
    tokens: Tensor,
    settings: DistillSettings,
    seconds: float,
    shares: tuple[float, ...],
) -> DistillSettings:
    """Return settings whose stages have as many steps as fit their share of the time, at least one each.

    A few steps of each stage are run and timed on a copy of the student, which takes additional time.

    Args:
        student: as for `distill`; not changed.
        teacher: as for `distill`.
        tokens: as for `distill`.
        settings: stages; their numbers of steps are ignored.
        seconds: time for all stages.
        shares: share of the time for each stage; they need not sum to 1.
    Raises:
        InputError: the number of shares is not that of the stages, the time is negative, or `distill` raises.
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
            a_step = _time_of(_NUM_TIMED, trial, teacher, tokens, alone)
        stages.append(replace(stage, steps=max(int(seconds * share / a_step), 1)))
    return replace(settings, stages=tuple(stages))


def _time_of(
    steps: int, student: SpikingBrainForCausalLM, teacher: Any, tokens: Tensor, settings: DistillSettings
) -> float:
    """Run this number of steps of the only stage, and return the seconds per step."""
    stages = (replace(settings.stages[0], steps=steps),)
    return distill(student, teacher, tokens, replace(settings, stages=stages)).seconds / steps
