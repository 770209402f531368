"""Figures of an evaluation: means, standard errors, paired differences, and what the SpikingBrain report has."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..analysis.paired import Estimate, estimate_difference, estimate_mean, estimate_perplexity, estimate_ratio
from .eval_tasks import TASKS

# As printed there. The report has no LAMBADA, and does not say how many examples a prompt has.
PUBLISHED: dict[str, Any] = {
    "source": "SpikingBrain (arXiv:2509.05276), table 3: before and after spike coding with INT8 weights, k = 3",
    "metrics": {"winogrande": "acc", "arc_easy": "acc", "piqa": "acc", "hellaswag": "acc_norm"},
    "models": {
        "SpikingBrain-7B": {"winogrande": 0.6992, "arc_easy": 0.8047, "piqa": 0.7949, "hellaswag": 0.6777},
        "SpikingBrain-7B-W8ASpike": {"winogrande": 0.6895, "arc_easy": 0.7861, "piqa": 0.7979, "hellaswag": 0.6758},
        "SpikingBrain-76B": {"winogrande": 0.7275, "arc_easy": 0.8125, "piqa": 0.8125, "hellaswag": 0.7000},
        "SpikingBrain-76B-W8ASpike": {"winogrande": 0.7148, "arc_easy": 0.7949, "piqa": 0.8004, "hellaswag": 0.6863},
    },
}


def text_figures(nlls: Mapping[str, Sequence[float]], num_tokens: Sequence[int]) -> dict[str, dict[str, Any]]:
    """Return the perplexity of each stage on one text.

    Args:
        nlls: summed negative log-likelihood of each window, in nats, by stage; the first stage is the one that others
            are compared with.
        num_tokens: predicted tokens of each window.
    Returns:
        By stage "value", "stderr", and for others than the first "difference", relative to the first, and
        "difference_stderr".
    """
    base = next(iter(nlls.values()))
    return {
        stage: {
            **_described(estimate_perplexity(found, num_tokens)),
            **({} if found is base else _relative(found, base, num_tokens)),
        }
        for stage, found in nlls.items()
    }


def task_figures(task: str, samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Return each metric of a task, for each stage, as `text_figures` does; differences of others are in points.

    Args:
        task: name in `TASKS`.
        samples: what `Scorer.score` gave for each document, by stage; the first stage is the one that others are
            compared with.
    """
    figures = {}
    for metric, _ in TASKS[task].scoring["metrics"]:
        values = {stage: [row[metric] for row in rows] for stage, rows in samples.items()}
        if metric == "perplexity":
            sizes = [1] * len(next(iter(values.values())))
            figures[metric] = text_figures({s: [-value for value in found] for s, found in values.items()}, sizes)
            continue
        base = next(iter(values.values()))
        figures[metric] = {
            stage: {
                **_described(estimate_mean(found)),
                **({} if found is base else _described(estimate_difference(found, base), "difference")),
            }
            for stage, found in values.items()
        }
    return figures


def average_figures(tasks: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return the mean over tasks of each one's metric, as `task_figures` does; None for less than two tasks.

    Args:
        tasks: what `task_figures` gave, by task; all with the same stages.
    """
    if len(tasks) < 2:
        return None
    rows = [metrics[TASKS[task].metric] for task, metrics in tasks.items()]
    found: dict[str, Any] = {}
    for stage in rows[0]:
        found[stage] = {}
        for value, stderr in (("value", "stderr"), ("difference", "difference_stderr")):
            if value in rows[0][stage]:
                errors = [row[stage][stderr] for row in rows]
                found[stage][value] = math.fsum(row[stage][value] for row in rows) / len(rows)
                found[stage][stderr] = None if None in errors else math.hypot(*errors) / len(rows)
    return found


def _described(estimate: Estimate, name: str = "value") -> dict[str, float | None]:
    return {name: estimate.value, "stderr" if name == "value" else f"{name}_stderr": estimate.stderr}


def _relative(nlls: Sequence[float], base: Sequence[float], num_tokens: Sequence[int]) -> dict[str, float | None]:
    log_ratio = estimate_ratio([a - b for a, b in zip(nlls, base, strict=True)], num_tokens)
    ratio = math.exp(log_ratio.value)
    return _described(Estimate(ratio - 1, None if log_ratio.stderr is None else ratio * log_ratio.stderr), "difference")
