"""One reading of a GGUF file for all who ask.

transformers opens the file for the configuration, for the weights and for the tokenizer, and asks for the table of
tensor names once for each module. With a vocabulary of 50,000 tokens that takes most of the time of a load.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import gguf
import numpy as np

_LOCK = threading.RLock()


class Reader(gguf.GGUFReader):
    """A reader that reads nothing beyond the end of the file.

    Its own class takes what is missing there for empty, so that an array that claims 10^18 numbers fills the memory.
    Slices are plain arrays: it makes 10^5, and those of a memory map cost several times as much.
    """

    @property
    def data(self) -> np.ndarray:  # pyright: ignore[reportIncompatibleVariableOverride] - an attribute there
        """The bytes of the file."""
        return self._bytes

    @data.setter
    def data(self, mapped: np.ndarray) -> None:
        self._bytes = np.asarray(mapped)

    def _get(self, offset: Any, dtype: Any, count: Any = 1, *order: Any, **options: Any) -> Any:
        end = int(offset) + np.dtype(dtype).itemsize * int(count)
        if end > len(self._bytes):
            raise ValueError(f"something in its header ends at byte {end:,}, the file at byte {len(self._bytes):,}")
        return super()._get(offset, dtype, count, *order, **options)


@contextmanager
def shared_with_transformers(reader: Reader, path: Path) -> Iterator[None]:
    """Let whoever opens this path with the gguf package get this reader, and each table of names be made once.

    Other paths, and other uses in other threads, are as always. One model after the other is read so.
    """
    usual = gguf.GGUFReader

    def open_reader(asked: str | os.PathLike, *args: Any, **kwargs: Any) -> gguf.GGUFReader:
        only_path = not args and not kwargs
        return reader if only_path and os.fspath(asked) == os.fspath(path) else usual(asked, *args, **kwargs)

    table = functools.cache(gguf.get_tensor_name_map)
    with _LOCK, mock.patch.multiple(gguf, GGUFReader=open_reader, get_tensor_name_map=table):
        yield
