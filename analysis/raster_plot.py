"""Spike rasters as pictures: neurons over time, one panel for each layer and code.

Spikes of +1 stand above the line of their neuron and those of -1 below it, so that they can be told apart without
colours. Where a place would be smaller than a pixel or its halves could not be told apart, the panel has two maps
instead, +1 above -1, whose shade is the share of places that fire.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ..coding import Encoder, SpikeTrain
from ..errors import InputError
from ..models import Recording
from .rasters import Panel, Raster, raster, visible
from .style import NEGATIVE, NEUTRAL, POSITIVE, plain, save_figure

# Pixels of a place from which on single spikes are drawn.
_HIGH, _WIDE = 9.0, 1.0
_DPI = 150
# Inches: margins of the figure, spikes per timestep above a panel, rates to its right, potential below it, gaps.
_LEFT, _RIGHT, _TOP, _ABOVE, _RATES, _POTENTIAL, _GAP, _BETWEEN = 0.85, 0.15, 0.75, 0.4, 0.55, 0.8, 0.1, 0.8
_WIDTHS = {1: 9.6, 2: 5.4, 3: 4.2}


def plot_raster(
    source: Raster | Recording | SpikeTrain,
    path: str | os.PathLike,
    *,
    title: str = "",
    tokens: Sequence[str] | None = None,
    num_neurons: int = 64,
    layers: tuple[str, ...] = ("*",),
    encoders: Sequence[Encoder | str | None] | None = None,
    num_timesteps: int | None = None,
) -> None:
    """Draw the spikes of successive tokens on one time axis, with rates and spikes per timestep in the margins.

    Args:
        source: what `raster` returned, or what it takes.
        path: *.png or *.svg to write.
        title: as for `raster`, as all that follow; they count only if `source` is not a raster yet.
        tokens: text of each token.
        num_neurons: neurons of a layer to draw.
        layers: patterns of layers.
        encoders: codes to draw side by side.
        num_timesteps: timesteps of a token to draw.
    Raises:
        InputError: see `raster`; or the path has another suffix.
    """
    path = Path(path)
    if path.suffix not in (".png", ".svg"):
        raise InputError(f"{path}: expected a path that ends in .png or .svg, got {path.suffix or 'no suffix'!r}.")
    if not isinstance(source, Raster):
        options = {"layers": layers, "encoders": encoders, "tokens": tokens, "title": title}
        source = raster(source, num_neurons=num_neurons, num_timesteps=num_timesteps, **options)
    save_figure(draw_raster(source), path)


def draw_raster(drawn: Raster) -> Figure:
    """Return the picture of a raster, which notebooks show."""
    columns = drawn.num_columns
    rows = [drawn.panels[i : i + columns] for i in range(0, len(drawn.panels), columns)]
    width = _WIDTHS.get(columns, 3.6)
    heights = [min(5.0, max(0.5, 0.075 * len(row[0].neurons))) for row in rows]
    potentials = [any(panel.potential for panel in row) for row in rows]
    labels = 0.0 if drawn.tokens is None else 0.55
    whole_width = _LEFT + columns * (width + _RATES + _GAP) + (columns - 1) * _BETWEEN + _RIGHT
    notes = [line for note in drawn.notes for line in textwrap.wrap(note, int(whole_width * 14))]
    below = 0.1 + 0.17 * len(notes)
    row_heights = [
        0.4 + labels + _ABOVE + _GAP + h + p * (_POTENTIAL + _GAP) + 0.65
        for h, p in zip(heights, potentials, strict=True)
    ]
    whole_height = _TOP + sum(row_heights) + below
    figure = Figure(figsize=(whole_width, whole_height))

    def place(x: float, y: float, w: float, h: float, **options) -> Axes:
        """Add axes at inches from the left and from the top."""
        return figure.add_axes(
            (x / whole_width, 1 - (y + h) / whole_height, w / whole_width, h / whole_height), **options
        )

    top, maps = _TOP, []
    for row, height, used in zip(rows, heights, row_heights, strict=True):
        for column, panel in enumerate(row):
            left = _LEFT + column * (width + _RATES + _GAP + _BETWEEN)
            y = top + 0.4 + labels
            above = place(left, y, width, _ABOVE)
            main = place(left, y + _ABOVE + _GAP, width, height)
            rates = place(left + width + _GAP, y + _ABOVE + _GAP, _RATES, height)
            maps.append(_draw_panel(panel, main, width * _DPI, height * _DPI))
            _draw_time_margin(panel, above)
            _draw_rates(panel, rates)
            _label_tokens(drawn, panel, above, width)
            head = " · ".join(part for part in (panel.layer if column == 0 else "", panel.code) if part)
            plus, minus = panel.num_spikes
            numbers = f"{plus:,} of +1" + (f", {minus:,} of −1" if minus else "")
            figure.text(left / whole_width, 1 - (top + 0.12) / whole_height, plain(head), fontsize=9.5, weight="bold")
            figure.text(left / whole_width, 1 - (top + 0.29) / whole_height, f"spikes: {numbers}", fontsize=8)
            lowest = main
            if panel.potential is not None:
                lowest = place(left, y + _ABOVE + 2 * _GAP + height, width, _POTENTIAL)
                _draw_potential(panel, lowest)
                main.tick_params(labelbottom=False)
            lowest.set_xlabel(_time_label(panel), fontsize=8.5)
            for axes in {above, lowest, main}:
                _mark_tokens(drawn, panel, axes)
            if column == 0:
                main.set_ylabel("neuron", fontsize=8.5)
        top += used
    figure.text(0.12 / whole_width, 1 - 0.3 / whole_height, plain(drawn.title), fontsize=11.5)
    _legend(figure, drawn, whole_height, maps)
    for i, note in enumerate(notes):
        figure.text(
            0.12 / whole_width,
            (0.15 + 0.17 * (len(notes) - 1 - i)) / whole_height,
            plain(note),
            fontsize=8,
            color="#444444",
        )
    return figure


def _legend(figure: Figure, drawn: Raster, height: float, maps: Sequence[bool]) -> None:
    """Say what the two signs look like: in panels with spikes, and in those with two maps."""
    plus, minus = [], []
    is_signed = [bool((panel.spikes < 0).any()) for panel in drawn.panels]
    if not all(maps):
        plus.append("above its neuron's line")
        minus.append("below it")
    if any(has_maps and signed for has_maps, signed in zip(maps, is_signed, strict=True)):
        plus.append("the upper map")
        minus.append("the lower map")
    handles = [Patch(facecolor=POSITIVE, label=f"spike +1: {', or '.join(plus)}".removesuffix(": "))]
    if any(is_signed):
        handles.append(Patch(facecolor="white", edgecolor=NEGATIVE, label=f"spike −1: {', or '.join(minus)}"))
    options = {"loc": "upper left", "bbox_to_anchor": (0.0, 1 - 0.36 / height), "ncols": 2, "frameon": False}
    figure.legend(handles=handles, fontsize=8.5, **options)


def _draw_panel(panel: Panel, axes: Axes, width: float, height: float) -> bool:
    """Draw spikes or maps; return whether there are maps."""
    num_neurons, num_tokens, num_timesteps = panel.spikes.shape
    columns = num_tokens * num_timesteps
    spikes = panel.spikes.reshape(num_neurons, columns)
    for first, last in _runs(panel.padded.ravel()):
        axes.axvspan(first, last, facecolor="none", edgecolor="#c4c4c4", hatch="////", linewidth=0, zorder=0)
    axes.set_xlim(0, columns)
    has_maps = height / num_neurons < _HIGH or width / columns < _WIDE
    if not has_maps:
        _draw_spikes(spikes, axes, width / columns)
        axes.set_ylim(-0.5, num_neurons - 0.5)
        ticks = _ticks(num_neurons, min(8, max(1, int(height / 30))))
        axes.set_yticks(ticks, [f"{panel.neurons[i]:,}" for i in ticks])
    else:
        _draw_maps(panel, spikes, axes, width, height)
    axes.tick_params(labelsize=7.5)
    return has_maps


def _draw_spikes(spikes: np.ndarray, axes: Axes, wide: float) -> None:
    """Draw a box for each spike: filled and above the neuron's line for +1, hollow or thin and below it for -1."""
    axes.hlines(range(len(spikes)), 0, spikes.shape[1], color="#dddddd", linewidth=0.4, zorder=1)
    is_roomy = wide >= 5
    margin = 0.1 if wide >= 4 else 0.0
    for sign, color in ((1, POSITIVE), (-1, NEGATIVE)):
        neuron, time = (spikes == sign).nonzero()
        if not len(neuron):
            continue
        low, high = (0.03, 0.42) if sign > 0 else (-0.42, -0.03) if is_roomy else (-0.32, -0.12)
        left, right = time + margin, time + 1 - margin
        bottom, top = neuron + low, neuron + high
        corners = np.stack([left, bottom, right, bottom, right, top, left, top], 1).reshape(-1, 4, 2)
        is_hollow = sign < 0 and is_roomy
        style = {
            "facecolors": "white" if is_hollow else color,
            "edgecolors": color,
            "linewidths": 0.6 if is_hollow else 0,
        }
        axes.add_collection(PolyCollection(list(corners), zorder=2, **style), autolim=False)


def _draw_maps(panel: Panel, spikes: np.ndarray, axes: Axes, width: float, height: float) -> None:
    """Draw shares of places that fire, pixel by pixel: a map for +1, and below it one for -1 if there are any."""
    signs = (1, -1) if (spikes < 0).any() else (1,)
    num_neurons, columns = spikes.shape
    shape = (int(height / len(signs)), int(width))
    shares = [_shares(spikes == sign, shape) for sign in signs]
    darkest = max(*(float(share.max()) for share in shares), 1e-9)
    for i, (sign, share) in enumerate(zip(signs, shares, strict=True)):
        # The first map is the upper one.
        bottom = (len(signs) - 1 - i) * num_neurons
        extent = (0, columns, bottom, bottom + num_neurons)
        colors = LinearSegmentedColormap.from_list("", ["white", POSITIVE if sign > 0 else NEGATIVE])
        shade = np.sqrt(share / darkest)
        image = colors(shade, alpha=(share > 0).astype(float))  # nothing where nothing fires, so that padding shows
        axes.imshow(image, extent=extent, aspect="auto", origin="lower", interpolation="nearest", zorder=1)
        text = f"{'+1' if sign > 0 else '−1'}: darkest where {darkest:.0%} of the places fire"
        axes.text(
            0.006,
            (bottom + num_neurons) / (len(signs) * num_neurons),
            text,
            transform=axes.transAxes,
            va="top",
            fontsize=7,
            bbox={"facecolor": "white", "alpha": 0.85, "linewidth": 0, "pad": 1.2},
            zorder=5,
        )
    axes.axhline(num_neurons, color="black", linewidth=0.8)
    axes.set_ylim(0, len(signs) * num_neurons)
    ticks = _ticks(num_neurons, max(1, int(height / len(signs) / 45)))
    places = [j * num_neurons + t + 0.5 for j in range(len(signs)) for t in ticks]
    axes.set_yticks(places, [f"{panel.neurons[t]:,}" for _ in signs for t in ticks])


def _shares(fired: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return the share of true places in each pixel of a picture of at most that shape."""
    shares = fired
    for axis, size in enumerate(shape):
        length = fired.shape[axis]
        if size < length:
            edges = np.arange(size) * length // size
            sums = np.add.reduceat(shares, edges, axis, dtype=np.float32)
            counts = np.diff(edges, append=length).astype(np.float32)
            shares = sums / (counts[:, None] if axis == 0 else counts)
    return shares.astype(np.float32)


def _draw_time_margin(panel: Panel, axes: Axes) -> None:
    plus, minus = panel.spikes_per_timestep.reshape(2, -1)
    edges = np.arange(len(plus) + 1)
    _fill(axes.fill_between, edges, plus, POSITIVE)
    _fill(axes.fill_between, edges, -minus, NEGATIVE)
    axes.axhline(0, color=NEUTRAL, linewidth=0.5)
    axes.set_xlim(0, len(plus))
    _signed_limits(axes, int(plus.max()), int(minus.max()), vertical=True)
    axes.set_ylabel("spikes", fontsize=7)
    axes.tick_params(labelsize=6.5, labelbottom=False, bottom=False)
    axes.spines[["top", "right", "bottom"]].set_visible(False)


def _draw_rates(panel: Panel, axes: Axes) -> None:
    plus, minus = panel.firing_rate
    has_two_maps = (panel.spikes < 0).any()
    edges = np.arange(len(plus) + 1) - 0.5
    _fill(axes.fill_betweenx, edges, plus, POSITIVE)
    _fill(axes.fill_betweenx, edges, -minus, NEGATIVE)
    axes.axvline(0, color=NEUTRAL, linewidth=0.5)
    axes.set_ylim(-0.5, len(plus) - 0.5)
    _signed_limits(axes, float(plus.max()), float(minus.max()), vertical=False)
    axes.set_xlabel("rate" + (", −1 | +1" if has_two_maps else ""), fontsize=7)
    axes.tick_params(labelsize=6.5, labelleft=False, left=False)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _fill(between: Callable[..., Any], edges: np.ndarray, values: np.ndarray, color: str) -> None:
    """Fill a histogram; `Axes.stairs` would take seconds for thousands of bars."""
    between(edges.repeat(2)[1:-1], values.repeat(2), color=color, linewidth=0)


def _signed_limits(axes: Axes, plus: int | float, minus: int | float, *, vertical: bool) -> None:
    """Set limits and ticks of an axis on which +1 counts upwards or to the right, and -1 the other way."""
    both = max(plus, minus)
    if both == 0:
        both = plus = 1
    room = 1.08 if vertical else 1.15
    limits = (-minus * room if minus else 0, plus * room or 1e-9)
    number = "{:.0f}" if vertical else "{:.2g}"
    ticks = ([-minus] if minus > 0.4 * both else []) + ([plus] if plus > 0.4 * both else [])
    names = [number.format(abs(tick)) for tick in ticks]
    if vertical:
        axes.set_ylim(*limits)
        axes.set_yticks(ticks, names)
    else:
        axes.set_xlim(*limits)
        axes.set_xticks(ticks, names)


def _draw_potential(panel: Panel, axes: Axes) -> None:
    assert panel.potential is not None
    v = panel.potential.v.ravel()
    edges = np.arange(len(v) + 1)
    axes.plot(edges.repeat(2)[1:-1], v.repeat(2), color="black", linewidth=0.7)
    row = int(np.flatnonzero(panel.neurons == panel.potential.neuron)[0])
    spikes = panel.spikes[row].ravel()
    for sign, color, marker in ((1, POSITIVE, "^"), (-1, NEGATIVE, "v")):
        time = (spikes == sign).nonzero()[0]
        face = color if sign > 0 else "white"
        axes.plot(time + 0.5, v[time], marker, color=color, markerfacecolor=face, markersize=3, markeredgewidth=0.6)
    axes.axhline(1, color=NEUTRAL, linewidth=0.6, linestyle="--")
    axes.axhline(0, color=NEUTRAL, linewidth=0.6)
    axes.set_xlim(0, len(v))
    axes.margins(y=0.15)
    axes.set_ylabel(f"potential of {panel.potential.neuron:,}\n/ threshold", fontsize=7)
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)


def _mark_tokens(drawn: Raster, panel: Panel, axes: Axes) -> None:
    """Draw lines between tokens, thicker ones between calls, and number the time axis."""
    num_tokens, num_timesteps = panel.spikes.shape[1:]
    if num_tokens <= 100:
        for token in range(1, num_tokens):
            is_call = drawn.calls[token] != drawn.calls[token - 1]
            axes.axvline(
                token * num_timesteps,
                color="#555555" if is_call else "#cccccc",
                linewidth=1.0 if is_call else 0.5,
                zorder=3,
            )
    if num_tokens == 1:
        ticks = _ticks(num_timesteps, 8)
        axes.set_xticks(ticks, [f"{t:,}" for t in ticks])
        return
    ticks = _ticks(num_tokens, 8)
    axes.set_xticks([t * num_timesteps for t in ticks], [f"{t:,}" for t in ticks])


def _label_tokens(drawn: Raster, panel: Panel, axes: Axes, width: float) -> None:
    if drawn.tokens is None:
        return
    num_tokens, num_timesteps = panel.spikes.shape[1:]
    step = max(1, int(np.ceil(num_tokens * 0.13 / width)))
    places = [(i + 0.5) * num_timesteps for i in range(0, num_tokens, step)]
    names = [plain(visible(drawn.tokens[i])) for i in range(0, num_tokens, step)]
    above = axes.secondary_xaxis("top")
    room = width / len(names)
    is_flat = all(0.075 * len(name) + 0.06 < room for name in names)
    above.set_xticks(
        places, names, rotation=0 if is_flat else 60, ha="center" if is_flat else "left", rotation_mode="anchor"
    )
    above.tick_params(length=0, labelsize=7.5, pad=2)
    above.spines["top"].set_visible(False)


def _time_label(panel: Panel) -> str:
    num_tokens, num_timesteps = panel.spikes.shape[1:]
    weights = panel.weights[np.argmax((~panel.padded).sum(1))].tolist()
    if len(set(weights)) == 1:
        weighing = f"each spike weighs {weights[0]}"
    else:
        shown = [str(w).replace("-", "−") for w in weights]
        weighing = (
            f"weighing {', '.join(shown)}" if len(shown) <= 6 else f"weighing {shown[0]}, {shown[1]}, ..., {shown[-1]}"
        )
    if num_tokens == 1:
        return f"timestep; {weighing}"
    return f"token, {num_timesteps:,} timestep{'s' * (num_timesteps > 1)} each; {weighing}"


def _ticks(num_places: int, most: int) -> list[int]:
    """Return at most about that many round numbers below `num_places`, beginning with 0."""
    for step in (m * 10**e for e in range(9) for m in (1, 2, 5)):
        if num_places / step <= most:
            return list(range(0, num_places, step))
    return [0]


def _runs(marked: np.ndarray) -> list[tuple[int, int]]:
    """Return begin and end of each run of true values."""
    edges = np.flatnonzero(np.diff(marked.astype(np.int8), prepend=0, append=0))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))
