"""Python threads around compiled code, which runs without the GIL."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")
# Channels of all tokens from which a second thread saves more than waking it costs.
_WORTH_THREADS = 2**18


def pool() -> ThreadPoolExecutor:
    """Return the threads that help the calling one: one for each of PyTorch's."""
    return _pool(torch.get_num_threads(), os.getpid())


@functools.lru_cache(maxsize=1)
def _pool(num_threads: int, process: int) -> ThreadPoolExecutor:
    """Return threads for a process: a forked one has none of its parent's."""
    return ThreadPoolExecutor(num_threads)


def on_threads(work: Callable[[int, int], T], num_tokens: int, num_channels: int) -> list[T]:
    """Divide tokens over threads, and return what work(first token, last token) returns for each part."""
    num_threads = min(torch.get_num_threads(), num_tokens) if num_tokens * num_channels >= _WORTH_THREADS else 1
    bounds = [num_tokens * part // num_threads for part in range(num_threads + 1)]
    parts = list(itertools.pairwise(bounds))
    others = [pool().submit(work, *part) for part in parts[1:]]
    return [work(*parts[0]), *(other.result() for other in others)]
