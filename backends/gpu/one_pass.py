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

from ..base import version_of


class Pass:
    """The flags of a pass, and what was found of the last input."""

    def __init__(self) -> None:
        self._flags: list[Tensor] = []
        self._ran: set[int] = set()
        self._shared_flags: dict[int, Tensor] = {}
        self._input: weakref.ref[Tensor] | None = None
        self._version: int | None = None
        self._found: dict[Any, Any] = {}

    def add(self, failed: Tensor) -> None:
        """Keep whether a token failed, without waiting for it."""
        self._flags.append(failed.any())

    def before(self, recording: object, failed: Tensor, flags: Tensor) -> None:
        """Prepare for what a recording will write to flags that it shares with others.

        Args:
            recording: which.
            failed: its part of the flags.
            flags: all; they are looked at when the pass ends, and set to 0 if one is not.
        """
        if id(recording) in self._ran:  # the second time would overwrite the first one's flags
            self.add(failed)
        self._ran.add(id(recording))
        self._shared_flags[id(flags)] = flags

    def flag(self) -> Tensor | None:
        """Return whether any token failed, bool [], without waiting for it; None if nothing was counted by kernels."""
        self._input, self._found = None, {}
        flags = [*self._flags, *(shared.any() for shared in self._shared_flags.values())]
        if len(flags) < 2:
            return flags[0] if flags else None
        return torch.stack([flag.to(flags[0].device) for flag in flags]).any()

    def failed(self) -> bool:
        """Return whether any token failed; waits for the GPU."""
        flag = self.flag()
        if flag is None or not bool(flag):
            return False
        for shared in self._shared_flags.values():
            shared.zero_()
        return True

    def keep(self, x: Tensor, key: Any, found: Any) -> None:
        """Keep what was found of an input.

        Args:
            x: activations, the same object that `found_of` gets.
            key: what else it depends on.
            found: such as counts.
        """
        if not self._is_last(x):
            self._input, self._version, self._found = weakref.ref(x), version_of(x), {}
        self._found[key] = found

    def found_of(self, x: Tensor, key: Any) -> Any:
        """Return what was kept of an input, if it is the last of which anything was and has not changed, else None."""
        return self._found.get(key) if self._is_last(x) else None

    def _is_last(self, x: Tensor) -> bool:
        return self._input is not None and self._input() is x and self._version == version_of(x)


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
