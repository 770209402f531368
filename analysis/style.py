"""Colours and settings of all plots; colour-blind readers can tell the colours apart."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from ..files import whole_file

POSITIVE = "#0072b2"
NEGATIVE = "#d55e00"
NEUTRAL = "#8c8c8c"
SHADE = "#e8eef4"


def plain(text: str) -> str:
    """Return a text escaped so that matplotlib does not take it for a formula."""
    return text.replace("$", r"\$")


class _LogOrEven(LogLocator):
    """Ticks of a logarithmic axis, or evenly spaced ones if fewer than three of those are in view."""

    def tick_values(self, vmin: float, vmax: float) -> list[float]:
        ticks = list(super().tick_values(vmin, vmax))
        in_view = sum(vmin <= tick <= vmax for tick in ticks)
        return ticks if in_view >= 3 else list(MaxNLocator(4).tick_values(vmin, vmax))


def plain_log_axis(axes: Axes) -> None:
    """Make the vertical axis logarithmic, with numbers such as 0.5 instead of powers."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(_LogOrEven(subs=(1, 1.5, 2, 3, 5, 7)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG or SVG, by the path's suffix, without a date, which would make every file different."""
    metadata = {"Date": None} if path.suffix == ".svg" else None
    with whole_file(path) as partial:
        figure.savefig(partial, format=path.suffix.removeprefix(".") or "png", dpi=150, metadata=metadata)


def save_note(text: str, path: Path, title: str = "") -> None:
    """Write a figure with a sentence in the place of a plot that would be empty."""
    figure = Figure(figsize=(8, 1.6), layout="constrained")
    figure.suptitle(plain(title), x=0.01, ha="left", fontsize=10)
    figure.text(0.01, 0.35, text, fontsize=10)
    save_figure(figure, path)
