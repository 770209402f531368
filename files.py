"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Write a UTF-8 file in one step: whoever reads it, or goes on after a crash, finds the old text or the new one.

    Args:
        path: of the file; its folder must be there.
        text: all of it.
    Raises:
        OSError: it cannot be written; what was there is left.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
