"""A raster for a browser: a figure that `raster.js` fills, as a part of a page or as a page of its own.

A page that has other parts, too, shows the figure, has the data somewhere as JSON, holds `SCRIPT` once, and calls
`spikebrainRaster(figure, data)`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ..files import write_whole

_TEMPLATES = Path(__file__).with_name("templates")
SCRIPT = "".join((_TEMPLATES / name).read_text(encoding="utf-8") for name in ("raster_draw.js", "raster.js"))
_ENVIRONMENT = Environment(
    loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True
)


class HasData(Protocol):
    """A raster: `spikebrain.analysis.Raster`."""

    def to_data(self) -> dict[str, Any]:
        """Return it as JSON values."""
        ...


def raster_figure(raster: HasData, name: str = "raster") -> tuple[str, dict[str, Any]]:
    """Return a raster as a part of a page: HTML, and the data that `spikebrainRaster` draws into it.

    The HTML also says what was left out, and has a table of the raster's figures, for readers without JavaScript.

    Args:
        raster: what `analysis.raster` returned.
        name: id of the figure, unique on its page.
    """
    data = raster.to_data()
    return _ENVIRONMENT.get_template("raster_figure.html.j2").render(raster=data, name=name), data


def write_raster_page(raster: HasData, path: Path) -> None:
    """Write a raster as one HTML file that needs nothing else.

    Args:
        raster: what `analysis.raster` returned.
        path: *.html to write.
    Raises:
        InputError: it cannot be written.
    """
    fragment, data = raster_figure(raster)
    # As JSON inside of a script: "<" could end it.
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    page = _ENVIRONMENT.get_template("raster.html.j2").render(
        title=data["title"] or "Spike raster", fragment=Markup(fragment), json=Markup(text), script=Markup(SCRIPT)
    )
    write_whole(path, page + "\n")
