"""Plots of a simulated chip: where energy and time go, and how busy the mesh is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from ..chip.mapping import Tile
from ..simulation.model import ModelOnChip
from ..simulation.times import held_up_by, time_by_kind
from .style import NEGATIVE, NEUTRAL, POSITIVE, plain, save_figure, save_note
from .units import energy_unit

# Stations of the critical path, in the order of the packets.
_STATION_COLORS = {
    "wait": NEUTRAL,
    "encode": NEGATIVE,
    "link": "#56b4e9",
    "wire": "#009e73",
    "accumulate": POSITIVE,
    "send": "#e69f00",
    "reduce": "#cc79a7",
    "collect": "#f0e442",
}


def plot_chip_energy(found: ModelOnChip, path: Path, title: str = "") -> None:
    """Draw the energy of a token by component, largest first.

    Args:
        found: a simulated model.
        path: *.png or *.svg to write.
        title: what was simulated.
    """
    parts = sorted(found.energy_pj.items(), key=lambda part: -part[1])
    total = sum(value for _, value in parts)
    factor, unit = energy_unit(total / found.num_tokens)
    values = [value / factor / found.num_tokens for _, value in parts]
    figure = Figure(figsize=(8, 0.42 * len(parts) + 1.3), layout="constrained")
    axes = figure.subplots()
    axes.barh(range(len(parts)), values, color=POSITIVE, height=0.66)
    for place, value in enumerate(values):
        share = parts[place][1] / total if total else 0.0
        axes.text(value, place, f" {value:.3g} {unit}, {share:.1%}", va="center", fontsize=9)
    axes.set_yticks(range(len(parts)), [name for name, _ in parts])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.3 * values[0] or 1.0)
    axes.set_xlabel(f"{unit} per token (simulated; {total / factor / found.num_tokens:.3g} {unit} in all)")
    axes.set_title(plain(title), loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path)


def plot_mesh(found: ModelOnChip, path: Path, title: str = "") -> None:
    """Draw the mesh three times: how busy its cores are, how full their queues, and how many packets cross its links.

    Args:
        found: a simulated model.
        path: *.png or *.svg to write.
        title: what was simulated.
    """
    mesh = found.chip.mesh
    busy, queued = np.full((2, mesh.rows, mesh.columns), np.nan)
    packets: dict[tuple[Tile, Tile], float] = {}
    for layer in found.layers.values():
        for core, share in zip(layer.placement.cores, layer.busy.tolist(), strict=True):
            _raise_to(busy, core.tile, 100 * share)
        for name, (mean, _) in layer.queues.items():
            _raise_to(queued, layer.tiles[name][0], mean)
        for name, number in layer.links.items():
            ends = layer.tiles[name]
            packets[ends] = packets.get(ends, 0.0) + number / found.num_tokens
    figure = Figure(figsize=(15, 2.4 + 4.4 * mesh.rows / mesh.columns), layout="constrained")
    panels = figure.subplots(1, 3, sharex=True, sharey=True)
    longest = float(np.nan_to_num(queued).max()) or 1.0
    for axes, values, label, most in (
        (panels[0], busy, "% of its layer's time in which a core adds (busiest of a tile)", 100.0),
        (panels[1], queued, "packets waiting on average (fullest queue of a tile)", longest),
    ):
        image = axes.imshow(values, cmap="viridis", norm=Normalize(0, most))
        axes.set_facecolor("#dddddd")
        figure.colorbar(image, ax=axes, label=label, location="bottom", shrink=0.9)
    # The two directions of a link side by side.
    segments = [
        ((x0 + 0.15 * (y1 - y0), y0 + 0.15 * (x0 - x1)), (x1 + 0.15 * (y1 - y0), y1 + 0.15 * (x0 - x1)))
        for (x0, y0), (x1, y1) in packets
    ]
    lines = LineCollection(segments, cmap="viridis", linewidths=50 / max(mesh.columns, mesh.rows))
    lines.set_array(np.array(list(packets.values())))
    lines.set_clim(0, max([*packets.values(), 1.0]))
    panels[2].add_collection(lines)
    panels[2].set_aspect("equal")
    panels[2].set_facecolor("#dddddd")
    if not packets:
        panels[2].set_title("no packet crosses a link: each layer fits one tile", loc="left", fontsize=9)
    figure.colorbar(lines, ax=panels[2], label="packets a token on a link", location="bottom", shrink=0.9)
    for axes in panels:
        for layer in found.layers.values():
            p = layer.placement
            corner = (p.origin[0] - 0.5, p.origin[1] - 0.5)
            axes.add_patch(Rectangle(corner, p.columns, p.rows, fill=False, edgecolor="white", linewidth=0.8))
        axes.set_xlabel("column of tiles")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(integer=True))
    panels[0].set_ylabel("row of tiles")
    panels[1].set_title("white: borders of layers; grey: tiles without a layer", loc="left", fontsize=9)
    panels[0].set_title(plain(title), loc="left", fontsize=10)
    save_figure(figure, path)


def _raise_to(values: np.ndarray, tile: Tile, value: float) -> None:
    """Let the value of a tile be the largest that it was given."""
    x, y = tile
    values[y, x] = value if np.isnan(values[y, x]) else max(values[y, x], value)


def plot_chip_time(found: ModelOnChip, path: Path, title: str = "") -> None:
    """Draw what a token waits for, by kind of layer and between layers, in the order of a block.

    Where critical paths are known, bars of layers are cut into the stations that held the token up.

    Args:
        found: a simulated model.
        path: *.png or *.svg to write.
        title: what was simulated.
    """
    parts = time_by_kind(found)
    if not any(parts.values()):
        save_note("No bars: nothing takes time on this chip, whose description has no times.", path, title)
        return
    held_up = held_up_by(found)
    figure = Figure(figsize=(8, 0.42 * len(parts) + (1.9 if held_up else 1.3)), layout="constrained")
    axes = figure.subplots()
    values = [value / 1e6 for value in parts.values()]
    colors = [NEUTRAL if name in ("transfers", "dense rest") else POSITIVE for name in parts]
    axes.barh(range(len(parts)), values, color=colors, height=0.66)
    left = np.zeros(len(parts))
    for station, color in _STATION_COLORS.items():
        width = np.array([held_up.get(name, {}).get(station, 0.0) / 1e6 for name in parts])
        if width.any():
            axes.barh(range(len(parts)), width, left=left, color=color, height=0.66, label=station)
            left += width
    if held_up:
        figure.legend(
            title="Critical path: what the token waits for",
            loc="outside lower center",
            ncols=len(_STATION_COLORS),
            frameon=False,
            fontsize=9,
            title_fontsize=9,
        )
    total = sum(values)
    for place, value in enumerate(values):
        axes.text(value, place, f" {value:.1f} µs, {value / total if total else 0:.0%}", va="center", fontsize=9)
    axes.set_yticks(range(len(parts)), list(parts))
    axes.invert_yaxis()
    axes.set_xlim(0, 1.25 * max(values) or 1.0)
    axes.set_xlabel(f"µs per token, all stages of that kind together (simulated; {total:.1f} µs in all)")
    axes.set_title(plain(title), loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path)
