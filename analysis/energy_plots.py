"""Plots of energy: the waterfall of costs, and where layers break even."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ..energy import BreakEven, WaterfallStep
from .style import NEGATIVE, NEUTRAL, POSITIVE, plain, save_figure


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
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    silent = np.linspace(0, 1, 101)
    colors = (POSITIVE, NEGATIVE, "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
    for point, color in zip(points, colors * len(points), strict=False):
        line = [point.spikes_at(float(z)) for z in silent]
        name = ".".join(part for part in point.layer.split(".") if not part.isdigit() and part != "*")
        name = name.rpartition("layers.")[2]
        axes.plot(100 * silent, line, color=color, linewidth=1.5, label=f"{name}: even")
        axes.axhline(point.even_spikes_without_memory, color=color, linewidth=0.8, linestyle=":")
        axes.plot(100 * point.silent_fraction, point.spikes, "o", color=color, markersize=7)
    highest = max(max(p.spikes_at(1.0), p.spikes, p.even_spikes_without_memory) for p in points)
    axes.set_ylim(0, 1.08 * highest)
    axes.set_xlim(0, 100)
    axes.set_xlabel("channels without a spike, %")
    axes.set_ylabel("spikes per channel")
    axes.set_title(plain(title), loc="left", fontsize=10)
    axes.text(
        0.98,
        0.03,
        "dots: this model; below its line a layer\ncosts less on spikes; dotted: arithmetic alone",
        transform=axes.transAxes,
        ha="right",
        va="bottom",
        fontsize=9,
    )
    axes.legend(fontsize=8, loc="upper left", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    save_figure(figure, Path(path))
