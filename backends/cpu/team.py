"""Threads for compiled code: the team that PyTorch's own operators run on."""

from __future__ import annotations

import ctypes
import functools
import os
from concurrent.futures import ThreadPoolExecutor
from ctypes import c_uint, c_void_p

import torch


@functools.cache
def _openmp():
    """Return GNU OpenMP's function that runs a function on several threads, or None if PyTorch has none.

    Its threads still spin when the next layer comes, so that waking them takes a microsecond or two, and no second set
    of threads fights PyTorch's for the cores. PyTorch enters it from several threads at once, and so may we.
    """
    try:
        # A library is looked up among those that PyTorch's own is linked to.
        parallel = ctypes.CDLL(torch._C.__file__).GOMP_parallel
    except (AttributeError, OSError):
        return None
    parallel.argtypes, parallel.restype = (c_void_p, c_void_p, c_uint, c_uint), None
    return parallel


@functools.lru_cache(maxsize=1)
def pool(num_threads: int, process: int) -> ThreadPoolExecutor:
    """Return Python threads that help the calling one; new ones in a forked process, which has none of its parent's."""
    return ThreadPoolExecutor(num_threads)


@functools.cache
def _callable(function: int):
    return ctypes.CFUNCTYPE(None, c_void_p)(function)


def run(function: int, argument: int, num_threads: int) -> None:
    """Call a compiled function with one argument on up to that many threads at a time, without the GIL.

    Args:
        function: address of a `void function(void *argument)` that shares out its work by itself, since it may be
            called by fewer threads than asked for.
        argument: address that all of them get.
        num_threads: most threads, the calling one among them.
    """
    if num_threads == 1:
        _callable(function)(argument)
        return
    parallel = _openmp()
    if parallel is not None:
        parallel(function, argument, num_threads, 0)
        return
    call = _callable(function)
    others = [pool(num_threads, os.getpid()).submit(call, argument) for _ in range(num_threads - 1)]
    call(argument)
    for other in others:
        other.result()
