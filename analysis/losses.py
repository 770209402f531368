"""Loss curves of a training run."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from ..errors import InputError
from ..models.training.settings import DistillResult, Stage
from .style import POSITIVE, plain_log_axis, save_figure


def plot_losses(result: DistillResult, stages: tuple[Stage, ...], path: Path) -> None:
    """Draw the loss of every step, with one panel per stage, since objectives have different units.

    Args:
        result: result of `distill`.
        stages: stages in its settings.
        path: file to write, .png or .svg.
    Raises:
        InputError: there are no steps to draw.
    """
    shown = [i for i in range(len(stages)) if any(point.stage == i for point in result.losses)]
    if not shown:
        raise InputError("plot_losses: expected at least one step, got none.")
    figure = Figure(figsize=(4.2 * len(shown), 3.4), layout="constrained")
    for axes, i in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        points = [point for point in result.losses if point.stage == i]
        marker = "o" if len(points) < 30 else None  # a single step makes no line
        values = ([p.step + 1 for p in points], [p.loss for p in points])
        axes.plot(*values, color=POSITIVE, linewidth=1.2, marker=marker, markersize=3)
        axes.set_title(f"{i + 1}. {stages[i].objective}, {stages[i].context} tokens", loc="left", fontsize=10)
        axes.set_xlabel("step")
        unit = "relative squared error" if stages[i].objective == "attention" else "KL to the teacher (nats)"
        axes.set_ylabel(unit if not stages[i].ce_weight else "KL + weighted cross-entropy (nats)")
        plain_log_axis(axes)
        axes.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path)
