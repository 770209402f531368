"""A model's folder is replaced as a whole: killed at any moment, it is the old model, the new one, or clearly neither.

The new files are written into a folder of their own inside. Then config.json of the old model goes, without which
nothing loads; weights and the rest follow; and config.json of the new one comes last.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...errors import CheckpointError
from ...files import cannot_write, only_writer
from .hub import TOKENIZER_FILES
from .shards import INDEX, is_weight_file

CONFIG = "config.json"
_UNFINISHED = ".saving-"


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Yield an empty folder for the files of a model; they become those of `path` when the block ends without an error.

    Weights of the model that was there are deleted, and the files of its tokenizer if the new one has a tokenizer. All
    other files stay.

    Raises:
        CheckpointError: the folder cannot be written, or another process is writing there.
    """
    with only_writer(path, CheckpointError):
        yield from _replaced(path)


def _replaced(path: Path) -> Iterator[Path]:
    new = path / f"{_UNFINISHED}{os.getpid()}"
    try:
        for left in path.glob(f"{_UNFINISHED}*"):  # by a save that was killed
            shutil.rmtree(left)
        new.mkdir()
        yield new
        _swap(new, path)
    except OSError as error:
        raise cannot_write(Path(error.filename2 or error.filename or path), error, CheckpointError) from error
    finally:
        shutil.rmtree(new, ignore_errors=True)


def interrupted(path: Path) -> str:
    """Return a sentence for an error if a save into this folder did not end, else nothing."""
    unfinished = any(path.glob(f"{_UNFINISHED}*"))
    return " A save into it was interrupted: save the model again." if unfinished else ""


def _swap(new: Path, path: Path) -> None:
    (path / CONFIG).unlink(missing_ok=True)
    has_tokenizer = any((new / name).exists() for name in TOKENIZER_FILES)
    for file in path.iterdir():
        if is_weight_file(file.name) or file.name == INDEX or (has_tokenizer and file.name in TOKENIZER_FILES):
            file.unlink()
    for file in sorted(new.iterdir(), key=lambda file: (file.name == CONFIG, file.name == INDEX)):
        target = path / file.name
        if target.is_dir():
            shutil.rmtree(target)
        os.replace(file, target)
