"""Where fetched models, measured launch settings and compiled kernels are kept, and what a model is called."""

from __future__ import annotations

import os
from pathlib import Path

from .errors import InputError


def cache_dir() -> Path:
    """Return the folder: $SPIKEBRAIN_CACHE, else spikebrain in the user's cache folder.

    Raises:
        InputError: there is no variable, and the user has no home folder.
    """
    chosen = os.environ.get("SPIKEBRAIN_CACHE")
    if chosen:
        return Path(chosen)
    users = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(users) if users else Path.home() / ".cache") / "spikebrain"
    except RuntimeError as error:
        raise InputError(
            "cache folder: expected a home folder, found none. Set SPIKEBRAIN_CACHE to a folder that can be written."
        ) from error


def model_name(source: str | Path) -> str:
    """Return what titles call a model: the name of its file, folder or hub id, without the ending of a file.

    >>> model_name("models/SmolLM2.Q4_1.gguf"), model_name("Qwen/Qwen2.5-7B")
    ('SmolLM2.Q4_1', 'Qwen2.5-7B')
    """
    path = Path(source)
    return path.stem if path.suffix.lower() in (".gguf", ".safetensors") else path.name
