"""What the spiking layers of a whole pass share on a GPU: one check at the end, and the counts of a common input.

Whether a kernel could count a token is a flag on the GPU. A layer that reads its own flag waits once a call, and the
GPU then idles while Python prepares the next one. Inside `one_pass` the flags are kept. The caller reads them once. If
one is set, the caller runs the pass again without this, so that plain steps do the work or say what is wrong.

Layers that get the same tensor one after the other, such as the projections of queries, keys and values, count its
spikes once. So this is only for models whose code is known: it must not write to the inputs of its layers in a way that
PyTorch does not see.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from .weights import version_of


class Pass:
    """The flags of a pass, and the counts of the last input."""

    def __init__(self) -> None:
        self._flags: list[Tensor] = []
        self._input: weakref.ref[Tensor] | None = None
        self._key: Any = None
        self._counts: Any = None

    def add(self, failed: Tensor) -> None:
        """Keep whether a token failed, without waiting for it."""
        self._flags.append(failed.any())

    def flag(self) -> Tensor | None:
        """Return whether any token failed, bool [], without waiting for it; None if nothing was counted by kernels."""
        self._input = self._counts = None
        if not self._flags:
            return None
        return torch.stack([flag.to(self._flags[0].device) for flag in self._flags]).any()

    def failed(self) -> bool:
        """Return whether any token failed; waits for the GPU."""
        flag = self.flag()
        return flag is not None and bool(flag)

    def keep(self, x: Tensor, key: Any, counts: Any) -> None:
        """Keep the counts of an input.

        Args:
            x: activations, the same object that `counts_of` gets.
            key: what else the counts depend on.
            counts: anything.
        """
        self._input, self._key, self._counts = weakref.ref(x), (key, version_of(x)), counts

    def counts_of(self, x: Tensor, key: Any) -> Any:
        """Return the counts that were kept for an input, if it was the last one and has not changed, else None."""
        if self._input is None or self._input() is not x or self._key != (key, version_of(x)):
            return None
        return self._counts


_PASS: ContextVar[Pass | None] = ContextVar("pass", default=None)


@contextmanager
def one_pass() -> Iterator[Pass]:
    """Let the layers that run inside a `with` block share a pass; the caller has to ask `Pass.failed`."""
    token = _PASS.set(made := Pass())
    try:
        yield made
    finally:
        _PASS.reset(token)


def current_pass() -> Pass | None:
    """Return the pass that layers run in, or None."""
    return _PASS.get()


def any_failed(failed: Tensor) -> bool:
    """Return whether a token failed; False where a pass checks it later, or while a CUDA graph is captured.

    Args:
        failed: integers, not 0 where a token failed.
    """
    shared = _PASS.get()
    if shared is not None:
        shared.add(failed)
        return False
    if failed.is_cuda and torch.cuda.is_current_stream_capturing():
        return False
    return bool(failed.any())
