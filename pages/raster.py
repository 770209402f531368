"""Rasters: a section that pages share, and the page of `spikebrain raster`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from .figures import Figures
from .page import FORMAT, write_page
from .parts import Column, Page, Section, Table, Text, View

_HOW_TO = (
    "A filled box above the line of its neuron is a spike of +1, a hollow or thin one below it a spike of −1. Where "
    "boxes would be too small there is a map: its shade is the share of places that fire, and its colour how many of "
    "them fire +1 or −1. Drag a box to zoom in, "
    "scroll to move, double-click to see all. Keys: arrows move the place that is read out, + and − zoom, 0 shows all."
)


class HasData(Protocol):
    """A raster: `spikebrain.analysis.Raster`."""

    def to_data(self) -> dict[str, Any]:
        """Return it as JSON values."""
        ...


def write_raster_page(raster: HasData, path: Path) -> None:
    """Write a raster as one HTML file that needs nothing else.

    Args:
        raster: what `analysis.raster` returned.
        path: *.html to write.
    Raises:
        InputError: it cannot be written.
    """
    write_page({"kind": "raster", "format": FORMAT, "rasters": [raster.to_data()]}, path)


def build(figures: Figures, _meanings: Mapping[str, str]) -> Page:
    """Return the page of a raster."""
    (raster,) = figures["rasters"]
    title = raster["title"] or "Spike raster"
    num_tokens = len(raster["calls"])
    subject = f"Spikes at {num_tokens:,} token{'s' * (num_tokens != 1)}"
    section = raster_section([raster], [""], "", is_open=True)
    return Page(title=title, subject=subject, answer=title, cards=[], sections=[section], terms={}, is_wide=True)


def raster_section(rasters: Sequence[Figures], names: Sequence[str], intro: str, *, is_open: bool = False) -> Section:
    """Return rasters, of which one is shown at a time, what was left out of them, and their figures as a table.

    Args:
        rasters: what `Raster.to_data` returned.
        names: of each raster, "" for the only one.
        intro: of the section.
        is_open: False to fold the table.
    """
    columns = [Column("layer"), Column("code"), Column("neurons shown", ","), Column("of", ",")]
    columns += [Column(name, ",") for name in ("tokens", "timesteps each", "spikes +1", "spikes −1")]
    rows = [
        (
            panel["layer"] or name,
            panel["code"],
            len(panel["neurons"]),
            panel["num_neurons"],
            panel["num_tokens"],
            panel["num_timesteps"],
            *panel["num_spikes"],
        )
        for name, raster in zip(names, rasters, strict=True)
        for panel in raster["panels"]
    ]
    notes = [
        f"{name}: {note}" if name else note
        for name, raster in zip(names, rasters, strict=True)
        for note in raster["notes"]
    ]
    return Section(
        "raster",
        "Raster",
        intro,
        [
            # The script takes the rasters from the page's figures, so that they are there once.
            View("raster", "raster", "", {"names": list(names)}, _HOW_TO),
            Text(notes),
            Table("Figures of the raster", columns, rows, is_open=is_open),
        ],
    )
