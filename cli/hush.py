"""Other people's notes and bars, kept off the screen while a command runs; our own warnings become remarks."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_OURS = Path(__file__).resolve().parents[1]


def _is_ours(path: Path) -> bool:
    """Return whether a file is of this package, and not of an environment that lies in its folder."""
    return path.is_relative_to(_OURS) and "site-packages" not in path.relative_to(_OURS).parts


@contextmanager
def others_silent(say: Callable[[str], None]) -> Iterator[None]:
    """Keep warnings, notes and progress bars of other packages off the screen inside a `with` block.

    Warnings are shown as always where Python was told what to do with them (-W, PYTHONWARNINGS).

    Args:
        say: told the warnings of this package.
    """
    from transformers.utils import logging  # a command has imported it by now

    def show(message: Warning | str, category: type[Warning], filename: str, *_: Any) -> None:
        if _is_ours(Path(filename).resolve()):
            say(str(message))

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            if not sys.warnoptions:
                warnings.showwarning = show
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
