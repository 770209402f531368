"""Write files completely or not at all."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Write a UTF-8 file in one step: a reader finds either the old text or the new one, even after a crash.

    Args:
        path: path of the file; its folder must exist.
        text: content of the file.
    Raises:
        OSError: the file cannot be written; an existing file stays unchanged.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
