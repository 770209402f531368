"""Plots of energy: the waterfall of costs, and where layers break even."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ..energy import BreakEven, WaterfallStep
from .style import NEGATIVE, NEUTRAL, POSITIVE, SHADE, plain, save_figure, save_note


def plot_waterfall(steps: Sequence[WaterfallStep], path: str | os.PathLike, title: str = "") -> None:
    """Draw how many times less energy spikes take than dense INT8, as one cost after the other is counted.

    Args:
        steps: from `waterfall`.
        path: *.png or *.svg to write.
        title: what was recorded.
    """
    figure = Figure(figsize=(9.5, 0.52 * len(steps) + 1.5), layout="constrained")
    axes = figure.subplots()
    ratios = [step.ratio_vs_int8 or 0.0 for step in steps]
    places = range(len(steps))
    colors = [POSITIVE if r >= 1 else NEGATIVE for r in ratios]
    axes.barh(places, ratios, color=colors, height=0.66)
    for place, r, step in zip(places, ratios, steps, strict=True):
        text = f"{r:.2f}×" if step.ratio_vs_int8 else "no spikes"
        axes.text(r, place, f" {text}", va="center", fontsize=9)
    axes.axvline(1, color=NEUTRAL, linewidth=1)
    labels = [step.name if i == 0 else f"+ {step.name}" for i, step in enumerate(steps)]
    axes.set_yticks(list(places), labels)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.12 * max([1.0, *ratios]))
    axes.set_xlabel("energy of dense INT8 / energy on spikes (1: no difference; modelled)")
    axes.set_title(plain(title), loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    save_figure(figure, Path(path))


def plot_break_even(points: Sequence[BreakEven], path: str | os.PathLike, title: str = "") -> None:
    """Draw where layers stand, and the lines on which they would cost as much as dense INT8.

    Args:
        points: from `break_even`, a few layers of one model.
        path: *.png or *.svg to write.
        title: model, table and options.
    """
    if not points:
        save_note("Nothing fired, so no layer breaks even.", Path(path), title)
        return
    figure = Figure(figsize=(8, 5.4), layout="constrained")
    axes = figure.subplots()
    right = min(1.0, 1.6 * max([0.3, *(p.silent_fraction for p in points)]))
    silent = np.linspace(0, right, 51)
    lines = [[p.spikes_at(float(z)) for z in silent] for p in points]
    highest = max(max(line[-1], p.spikes, p.even_spikes_without_memory) for p, line in zip(points, lines, strict=True))
    cheaper = axes.fill_between(100 * silent, 0, np.clip(np.min(lines, 0), 0, None), color=SHADE, zorder=0)
    even = [axes.plot(100 * silent, line, color=NEUTRAL, linewidth=1.2)[0] for line in lines]
    alone = {"color": NEUTRAL, "linewidth": 0.8, "linestyle": ":"}
    without = [axes.axhline(point.even_spikes_without_memory, **alone) for point in points]
    places = [100 * p.silent_fraction for p in points], [p.spikes for p in points]
    (ran,) = axes.plot(*places, "o", color=POSITIVE, markersize=6)
    axes.set_ylim(0, 1.15 * highest)
    never = ": below 0, so at no number of spikes" if max(map(max, lines)) <= 0 else ""
    labels = [
        "layers, as they ran",
        f"break-even, with memory{never}",
        "break-even, without memory",
        "cheaper on spikes, with memory",
    ]
    handles = [ran, even[0], without[0], cheaper]
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    for i, (silent_fraction, spikes, names) in enumerate(_near(points)):
        # Names stand above their dots at three heights, the leftmost highest, so that neighbours do not overlap.
        axes.annotate(
            names,
            (100 * silent_fraction, spikes),
            xytext=(2, 4 + 10 * (2 - i % 3)),
            textcoords="offset points",
            fontsize=8,
            color=POSITIVE,
            arrowprops={"arrowstyle": "-", "color": POSITIVE, "linewidth": 0.6, "relpos": (0, 0)},
        )
    axes.set_xlim(0, 100 * right)
    axes.set_xlabel("channels without a spike, %")
    axes.set_ylabel("spikes per channel")
    axes.set_title(plain(title), loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    save_figure(figure, Path(path))


def _near(points: Sequence[BreakEven]) -> list[tuple[float, float, str]]:
    """Return silent share, spikes and names of layers, those together that would lie on each other."""
    groups: list[tuple[float, float, str]] = []
    for point in sorted(points, key=lambda p: p.silent_fraction):
        name = point.layer.rpartition(".")[2] or "layer"
        if groups and point.silent_fraction - groups[-1][0] < 0.01 and abs(point.spikes - groups[-1][1]) < 0.1:
            silent_fraction, spikes, names = groups[-1]
            groups[-1] = (silent_fraction, spikes, f"{names}, {name}")
        else:
            groups.append((point.silent_fraction, point.spikes, name))
    return groups
