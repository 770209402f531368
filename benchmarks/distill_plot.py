"""The figure of distill_smollm2.py: perplexity over tokens, and the loss of each stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from spikebrain.analysis.style import NEGATIVE, NEUTRAL, POSITIVE, SHADE, plain_log_axis, save_figure

# Number of parts of a stage whose mean losses are drawn over those of the single steps.
_PARTS = 40


def plot_curves(content: dict[str, Any], losses: list[list[float]], teacher: float, path: Path) -> None:
    """Draw what distill_smollm2.py found.

    Args:
        content: content of result.json.
        losses: loss of each step, by stage.
        teacher: perplexity of the teacher on the curve's tokens.
        path: file to write.
    """
    stages, curve = content["stages"], content["curve"]
    figure = Figure(figsize=(3.0 * len(stages), 6.4), layout="constrained")
    parts: Any = figure.subfigures(2, 1, height_ratios=(1.35, 1))
    top, bottom = parts
    axes = top.subplots()
    begin = 0
    for i, stage in enumerate(stages):
        end = begin + stage["tokens"]
        axes.axvspan(begin / 1e6, end / 1e6, color=SHADE if i % 2 == 0 else "white", zorder=0)
        place = ((begin + end) / 2e6, 0.97)
        axes.text(*place, str(i + 1), transform=axes.get_xaxis_transform(), ha="center", va="top", color=NEUTRAL)
        begin = end
    for spiking, color, label in ((False, POSITIVE, "student, float"), (True, NEGATIVE, "student, spikes in the loop")):
        points = [p for p in curve if (p["stage"] is not None and bool(stages[p["stage"]]["spiking"])) == spiking]
        line = {"color": color, "marker": "o", "markersize": 4, "linewidth": 1.6, "label": label}
        axes.plot([p["tokens"] / 1e6 for p in points], [p["perplexity"] for p in points], **line)
    right = begin / 1e6
    for value, text in ((teacher, "teacher"), (1.15 * teacher, "+15 %")):
        axes.axhline(value, color=NEUTRAL, linestyle="--", linewidth=1)
        axes.text(1.005 * right, value, f"{text}\n{value:.1f}", va="center", color=NEUTRAL, fontsize=8)
    plain_log_axis(axes)
    axes.set_xlim(0, right)
    axes.set_xlabel("tokens trained on (millions)")
    axes.set_ylabel("perplexity")
    axes.set_title("Half of the layers linear: perplexity on held-out text while training", loc="left", fontsize=11)
    axes.legend(frameon=False, loc="upper right", bbox_to_anchor=(1, 0.93))
    for axes, stage, found, i in zip(
        bottom.subplots(1, len(stages), squeeze=False)[0], stages, losses, range(len(stages)), strict=True
    ):
        size = max(len(found) // _PARTS, 1)
        means = [sum(found[j : j + size]) / len(found[j : j + size]) for j in range(0, len(found), size)]
        axes.plot(range(1, len(found) + 1), found, color=NEUTRAL, linewidth=0.5, alpha=0.5)
        axes.plot([j * size + (size + 1) / 2 for j in range(len(means))], means, color=POSITIVE, linewidth=1.6)
        axes.set_title(f"{i + 1}. {stage['name']}, {stage['context']} tokens", loc="left", fontsize=9)
        axes.set_xlabel("step")
        axes.set_ylabel("relative squared error" if stage["objective"] == "attention" else "KL to the teacher (nats)")
        plain_log_axis(axes)
    for part in (top, bottom):
        for axes in part.axes:
            axes.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path)
