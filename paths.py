"""Where fetched models and measured launch settings are kept."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """Return the folder: $SPIKEBRAIN_CACHE, else spikebrain in the user's cache folder."""
    chosen = os.environ.get("SPIKEBRAIN_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "spikebrain"
