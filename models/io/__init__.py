"""Find, read and write models on disk."""

from .folder_config import SpikebrainConfig, SpikebrainForCausalLM
from .folders import read_folder
from .load import Loaded, load
from .preview import Preview, preview
from .released import from_released, to_released
from .save import save, save_pretrained

__all__ = [
    "Loaded",
    "Preview",
    "SpikebrainConfig",
    "SpikebrainForCausalLM",
    "from_released",
    "load",
    "preview",
    "read_folder",
    "save",
    "save_pretrained",
    "to_released",
]
