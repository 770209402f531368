"""What the user waited: the time since this program began, imports included."""

from __future__ import annotations

import time

_BEGAN = time.perf_counter()  # this module is the first that the command line imports


def took() -> str:
    """Return the sentence that says it."""
    return f"Took {time.perf_counter() - _BEGAN:.1f} s."
