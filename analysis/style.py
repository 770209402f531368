"""Colours and settings that all plots share; they stay distinguishable for colour-blind readers."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

POSITIVE = "#0072b2"
NEGATIVE = "#d55e00"
NEUTRAL = "#8c8c8c"
SHADE = "#e8eef4"


def plain(text: str) -> str:
    """Return a text so that matplotlib does not read a formula in it."""
    return text.replace("$", r"\$")


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG or SVG, by the ending of the path, without the date that would change every file."""
    metadata = {"Date": None} if path.suffix == ".svg" else None
    figure.savefig(path, dpi=150, metadata=metadata)
