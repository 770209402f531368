"""Pages: what a command found, as one HTML file that opens anywhere, without a network.

Jinja2 and Altair are imported with the first page.
"""

from typing import TYPE_CHECKING

from ..lazy import exports
from .data import read_page
from .page import FORMAT, make_page, write_page
from .terms import attributes_of

if TYPE_CHECKING:
    from .raster import SCRIPT, raster_figure, write_raster_page

__all__ = [
    "FORMAT", "SCRIPT", "attributes_of", "make_page", "raster_figure", "read_page", "write_page", "write_raster_page"
]  # fmt: skip

__getattr__, __dir__ = exports(__name__, {"raster": ("SCRIPT", "raster_figure", "write_raster_page")})
