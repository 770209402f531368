"""Pages: what a command found, as one HTML file that opens anywhere, without a network.

Jinja2 is imported with the first page.
"""

from typing import TYPE_CHECKING

from ..lazy import exports

if TYPE_CHECKING:
    from .raster import SCRIPT, raster_figure, write_raster_page

__all__ = ["SCRIPT", "raster_figure", "write_raster_page"]

__getattr__, __dir__ = exports(__name__, {"raster": ("SCRIPT", "raster_figure", "write_raster_page")})
