"""Threads for compiled code: the team that PyTorch's own operators run on."""

from __future__ import annotations

import ctypes
import functools
from ctypes import c_uint, c_void_p

import torch

from ...coding.kernels.threads import pool


@functools.cache
def _openmp():
    """Return GNU OpenMP's function that runs a function on several threads, or None if PyTorch has none.

    Its threads are still spinning when the next layer starts, so waking them takes only a microsecond or two, and no
    second set of threads competes with PyTorch's for the cores. Several threads may call it at once, as PyTorch does.
    """
    try:
        # The name is looked up in the libraries that PyTorch itself is linked to.
        parallel = ctypes.CDLL(torch._C.__file__).GOMP_parallel
    except (AttributeError, OSError):
        return None
    parallel.argtypes, parallel.restype = (c_void_p, c_void_p, c_uint, c_uint), None
    return parallel


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
    others = [pool().submit(call, argument) for _ in range(num_threads - 1)]
    call(argument)
    for other in others:
        other.result()
