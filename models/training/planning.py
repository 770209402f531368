"""How many steps fit a given time. A learning rate that falls to 0 must know the number of steps from the start."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from ...errors import InputError
from .distill import distill
from .sampling import WrittenText
from .settings import DistillSettings, Stage

# On a GPU, the steps that are timed come after this many, in which a graph is captured.
_BEFORE, _NUM_TIMED_ON_GPU = 6, 12
# A step that takes longer than _LONG_S seconds is timed once; a shorter one _NUM_TIMED times.
_LONG_S, _NUM_TIMED = 1.0, 4
# Share of the time for timing whole steps on a CPU; if they would take longer, a single text is timed instead.
_TIMING_SHARE = 0.1


def fit_steps(
    student: PreTrainedModel,
    teacher: Any,
    tokens: Tensor | WrittenText,
    settings: DistillSettings,
    seconds: float,
    shares: tuple[float, ...],
    progress: Callable[[str, int], Callable[[int], None]] | None = None,
) -> DistillSettings:
    """Return settings whose stages have as many steps as fit their share of the time, at least one each.

    A few steps of each stage are run and timed on a copy of the student. That is part of the time: about a tenth of it
    on a CPU, but at least two steps of a single text.

    Args:
        student: as for `distill`; not changed.
        teacher: as for `distill`.
        tokens: as for `distill`.
        settings: stages; their numbers of steps are ignored.
        seconds: time for the timing and all stages.
        shares: share of the time for each stage; they need not sum to 1.
        progress: called with a title and the number of stages; returns a function that is told of each that is timed.
    Raises:
        InputError: the number of shares is not that of the stages, the time is negative, or `distill` raises.
    """
    if len(shares) != len(settings.stages) or seconds < 0:
        raise InputError(
            f"fit_steps: expected seconds >= 0 and {len(settings.stages)} shares, one per stage, got {seconds:g} "
            f"and {shares}."
        )
    start, times = time.perf_counter(), list[float]()
    done = progress("timing", len(settings.stages)) if progress else lambda stages: None
    for stage in settings.stages:
        alone = replace(settings, stages=(stage,), budget_s=None)
        at_most_s = _TIMING_SHARE * seconds / len(shares)
        a_step = _step_s(copy.deepcopy(student), teacher, tokens, alone, at_most_s)
        if isinstance(tokens, WrittenText):
            a_step += stage.batch_size * stage.accumulation * tokens.seconds_per_text[stage.context]
        times.append(a_step)
        done(1)
    left = seconds - (time.perf_counter() - start)
    steps = [max(int(left * share / a_step), 1) for share, a_step in zip(shares, times, strict=True)]
    stages = tuple(replace(stage, steps=number) for stage, number in zip(settings.stages, steps, strict=True))
    return replace(settings, stages=stages)


def _step_s(
    trial: PreTrainedModel,
    teacher: Any,
    tokens: Tensor | WrittenText,
    settings: DistillSettings,
    at_most_s: float,
) -> float:
    """Return the seconds that a step of the only stage takes, or an upper bound if timing it would take too long."""

    def timed(stage: Stage, steps: int = 1) -> float:
        alone = replace(settings, stages=(replace(stage, steps=steps),))
        return distill(trial, teacher, tokens, alone).seconds / steps

    stage = settings.stages[0]
    if trial.device.type == "cuda":
        timed(stage, _BEFORE)  # compiles
        all_s = (_BEFORE + _NUM_TIMED_ON_GPU) * timed(stage, _BEFORE + _NUM_TIMED_ON_GPU)
        return (all_s - _BEFORE * timed(stage, _BEFORE)) / _NUM_TIMED_ON_GPU
    num_texts = stage.batch_size * stage.accumulation
    if trial.device.type == "cpu" and num_texts > 1:
        a_text = replace(stage, batch_size=1, accumulation=1)
        timed(a_text)  # compiles
        bound = num_texts * timed(a_text)  # texts that run together take no longer than one after the other
        if 2 * bound > at_most_s:
            return bound
    timed(stage)  # compiles and allocates
    a_step = timed(stage)
    return a_step if a_step >= _LONG_S or _NUM_TIMED * a_step > at_most_s else timed(stage, _NUM_TIMED)
