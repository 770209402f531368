"""Models on disk: found, read and written."""

from .folders import read_folder, save_folder
from .load import Loaded, load
from .released import from_released, to_released
from .single_file import save

__all__ = ["Loaded", "from_released", "load", "read_folder", "save", "save_folder", "to_released"]
