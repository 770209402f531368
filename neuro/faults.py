"""Whether bad numbers raise an error at once or become NaN, which whoever reads the result sees."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class _Faults(threading.local):
    are_marked = False


_faults = _Faults()


@contextmanager
def marked_faults() -> Iterator[None]:
    """Let thresholds be NaN, instead of raising an error, inside a `with` block, in this thread.

    These are the thresholds of tokens that are not finite, and of those whose counts might not fit as the ceiling
    binds. So nothing waits for a GPU.
    """
    before, _faults.are_marked = _faults.are_marked, True
    try:
        yield
    finally:
        _faults.are_marked = before


def are_marked(x: Tensor) -> bool:
    """Return whether faults in x are marked: inside `marked_faults`, and while a CUDA graph is captured."""
    return _faults.are_marked or (x.is_cuda and torch.cuda.is_current_stream_capturing())
