"""Plot of a sweep: the first objective over each of the others, with the runs that none beats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .pareto import pareto_front
from .style import NEUTRAL, POSITIVE, plain, save_figure

# More names than this would cover each other.
_MOST_LABELS = 14


def plot_pareto(
    figures: Mapping[str, Sequence[float]],
    meanings: Mapping[str, tuple[str, str]],
    labels: Sequence[str],
    title: str,
    path: Path,
) -> None:
    """Draw a panel for each objective but the first, which is the vertical axis of all.

    Args:
        figures: value of each run by objective, two or more.
        meanings: meaning of each objective, and whether "lower" or "higher" is better.
        labels: of the runs.
        title: of the figure.
        path: file to write, .png or .svg.
    """
    first, *others = figures
    columns = min(len(others), 2)
    lines = -(-len(others) // columns)
    figure = Figure(figsize=(1.2 + 5.8 * columns, 0.6 + 4.4 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes, other in zip(panels, others, strict=False):
        _draw(axes, figures[other], figures[first], (meanings[other][1], meanings[first][1]), labels)
        axes.set_xlabel(plain(f"{other} ({meanings[other][1]} is better)\n{meanings[other][0]}"))
        axes.set_ylabel(plain(f"{first} ({meanings[first][1]} is better)\n{meanings[first][0]}"))
    for axes in panels[len(others) :]:
        axes.set_visible(False)
    figure.suptitle(plain(title), x=0.01, ha="left", fontsize=10)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower left", ncols=2, frameon=False, fontsize=9)
    save_figure(figure, path)


def _draw(axes: Axes, x: Sequence[float], y: Sequence[float], better: tuple[str, str], labels: Sequence[str]) -> None:
    signs = [1.0 if word == "lower" else -1.0 for word in better]
    on_front = pareto_front([(signs[0] * a, signs[1] * b) for a, b in zip(x, y, strict=True)])
    front = sorted((i for i, is_on in enumerate(on_front) if is_on), key=lambda i: x[i])
    others = [i for i, is_on in enumerate(on_front) if not is_on]
    axes.scatter([x[i] for i in others], [y[i] for i in others], s=18, color=NEUTRAL, label="other runs")
    style = {"color": POSITIVE, "marker": "o", "markersize": 5, "linewidth": 1}
    axes.plot([x[i] for i in front], [y[i] for i in front], label="front: no run beats it in these two", **style)
    for i in range(len(x)) if len(x) <= _MOST_LABELS else front if len(front) <= _MOST_LABELS else ():
        axes.annotate(plain(labels[i]), (x[i], y[i]), xytext=(5, 4), textcoords="offset points", fontsize=8)
    axes.margins(x=0.18, y=0.12)
    axes.spines[["top", "right"]].set_visible(False)
