"""Pages: what a command found, as one HTML file that opens anywhere, without a network.

Jinja2 and Altair are imported with the first page.
"""

from .data import read_page
from .page import FORMAT, make_page, write_page
from .terms import attributes_of

__all__ = ["FORMAT", "attributes_of", "make_page", "read_page", "write_page"]
