"""Spike rasters: neurons over time."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..coding import SpikeTrain
from ..errors import InputError
from .style import NEGATIVE, NEUTRAL, POSITIVE, plain, save_figure


def plot_raster(
    train: SpikeTrain,
    path: str | os.PathLike,
    *,
    title: str = "",
    tokens: Sequence[str] | None = None,
    num_neurons: int = 64,
) -> None:
    """Draw the spikes of successive tokens on one time axis.

    Each token takes T timesteps; lines separate the tokens. Spikes of +1 and -1 differ in colour and shape.

    Args:
        train: spikes of shape [T, tokens, neurons].
        path: *.png or *.svg to write.
        title: title of the figure.
        tokens: text of each token, written above its timesteps.
        num_neurons: number of neurons to draw, evenly spread over all of them.
    Raises:
        InputError: the train has another shape, or the numbers of texts and tokens differ.
    """
    if train.spikes.ndim != 3 or 0 in train.spikes.shape:
        raise InputError(f"plot_raster: expected spikes [T, tokens, neurons], got shape {tuple(train.spikes.shape)}.")
    num_timesteps, num_tokens, total = train.spikes.shape
    if tokens is not None and len(tokens) != num_tokens:
        raise InputError(f"plot_raster: expected {num_tokens} token texts, got {len(tokens)}.")
    shown = [i * total // min(num_neurons, total) for i in range(min(num_neurons, total))]
    # Time runs through the timesteps of the first token, then of the second, and so on.
    spikes = train.spikes[:, :, shown].cpu().transpose(0, 1).reshape(num_tokens * num_timesteps, len(shown)).numpy()

    figure = Figure(figsize=(12, 6), layout="constrained")
    axes = figure.subplots()
    handles = []
    # Marks shrink to fit the space: about 760 points for the time axis, 330 for the neurons.
    size = max(1.2, min(7.0, 0.8 * 760 / len(spikes), 0.8 * 330 / len(shown)))
    for value, marker, color in ((1, "s", POSITIVE), (-1, "D", NEGATIVE)):
        time, neuron = (spikes == value).nonzero()
        if value > 0 or len(time):
            label = f"spike {value:+d}  ({len(time):,})".replace("-", "−")
            marks = {"marker": marker, "markersize": size, "linestyle": "", "label": label}
            marks |= {"markeredgecolor": color, "markerfacecolor": color if value > 0 else "white"}
            handles.append(axes.add_line(Line2D(time + 0.5, neuron, **marks)))
    for boundary in range(0, len(spikes) + 1, num_timesteps):
        axes.axvline(boundary, color=NEUTRAL, linewidth=0.7, zorder=0)
    axes.set_xlim(0, len(spikes))
    axes.set_ylim(-1, len(shown))
    step = max(1, len(shown) // 8)
    axes.set_yticks(range(0, len(shown), step), [str(i) for i in shown[::step]])
    spread = "" if len(shown) == total else f" ({len(shown)} of {total:,}, evenly spread)"
    axes.set_ylabel(f"neuron{spread}")
    weights = train.timestep_weight.tolist()
    if len(set(weights)) == 1:
        legend = f"each spike weighs {weights[0]}"
    else:
        legend = f"weighing {', '.join(str(w) for w in weights)}".replace("-", "−")
    axes.set_xlabel(f"timestep ({num_timesteps} per token, {legend})")
    if tokens is not None:
        above = axes.secondary_xaxis("top")
        above.set_xticks([(i + 0.5) * num_timesteps for i in range(num_tokens)], [_visible(t) for t in tokens])
        above.tick_params(length=0, labelrotation=45 if num_tokens > 12 else 0, labelsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(plain(title), x=0.01, ha="left", fontsize=11)
    figure.legend(handles=handles, loc="outside upper right", ncols=2, frameon=False)
    save_figure(figure, Path(path))


def _visible(text: str) -> str:
    """Return a token's text, shortened, with its white space visible."""
    shown = text.replace("\n", "⏎").replace("\t", "→").strip(" ") or "␣"
    return plain(shown if len(shown) <= 14 else shown[:13] + "…")
