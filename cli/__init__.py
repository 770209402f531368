"""The command line."""

from . import clock as clock  # first, since what the user waits begins there
from .app import app, main

__all__ = ["app", "main"]
