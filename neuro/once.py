"""Make something of a tensor once, for all that ask for it while the tensor lives and is not changed."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

Made = TypeVar("Made")
# Tensors that results are kept for. Two: the experts of a token read it in turn with what they make of it themselves.
_NUM_KEPT = 2


class _Kept(NamedTuple):
    given: weakref.ref[Tensor]
    numbers: Tensor
    key: Hashable
    made: Any


class Once(threading.local):
    """Results for the last tensors of a thread.

    A result is kept no longer than its tensor, which is known by its identity. Its numbers are compared with a copy,
    since not all changes in place are counted by PyTorch (those through NumPy, `.data` or kernels, and in inference
    mode none).
    """

    def __init__(self) -> None:
        self._kept: list[_Kept] = []

    def get(self, given: Tensor, key: Hashable, make: Callable[[], Made]) -> Made:
        """Return what `make` returns, or returned for the same tensor and an equal key.

        Args:
            given: what the result is made of.
            key: all else that it is made of.
            make: must depend on nothing else; its result must not hold the tensor.
        """
        kept = self._kept
        known = next((entry for entry in kept if entry.given() is given), None)
        if known is not None:
            kept[:] = [entry for entry in kept if entry is not known]
            if known.key == key and torch.equal(known.numbers, given):
                kept.append(known)
                return known.made
        made = make()

        def forget(dead: weakref.ref[Tensor]) -> None:
            kept[:] = [entry for entry in kept if entry.given is not dead]

        kept.append(_Kept(weakref.ref(given, forget), given.detach().clone(), key, made))
        del kept[:-_NUM_KEPT]
        return made
