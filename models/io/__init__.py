"""Find, read and write models on disk."""

from .folders import read_folder
from .load import Loaded, load
from .preview import Preview, preview
from .released import from_released, to_released
from .save import save

__all__ = ["Loaded", "Preview", "from_released", "load", "preview", "read_folder", "save", "to_released"]
