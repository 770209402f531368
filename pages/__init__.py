"""Pages: what a command found, as one HTML file that opens anywhere, without a network.

Jinja2 and Altair are imported with the first page.
"""

from typing import TYPE_CHECKING

from ..lazy import exports
from .data import read_page
from .page import FORMAT, check_kind, make_page, write_page
from .terms import attributes_of

if TYPE_CHECKING:
    from .raster import write_raster_page

__all__ = [
    "FORMAT", "attributes_of", "check_kind", "make_page", "read_page", "write_page", "write_raster_page"
]  # fmt: skip

__getattr__, __dir__ = exports(__name__, {"raster": ("write_raster_page",)})
