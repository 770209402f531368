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
    marks: list[int | Tensor]


def _marks(made: Any) -> list[int | Tensor]:
    """Return how often each tensor of a result was changed, or a copy where PyTorch does not count that."""
    tensors = [value for value in vars(made).values() if isinstance(value, Tensor)]
    return [tensor.clone() if tensor.is_inference() else tensor._version for tensor in tensors]


def _are_equal(marks: list[int | Tensor], others: list[int | Tensor]) -> bool:
    """Return whether nothing has changed between two calls of `_marks`; new tensors may have come."""
    return all(
        torch.equal(mark, other) if isinstance(mark, Tensor) and isinstance(other, Tensor) else mark == other
        for mark, other in zip(marks, others, strict=False)
    )


class Once(threading.local):
    """Results for the last tensors of a thread.

    A result is kept no longer than its tensor, which is known by its identity, and only while nobody writes into it.
    The tensor's numbers are compared with a copy, since not all changes in place are counted by PyTorch (those through
    NumPy, `.data` or kernels, and in inference mode none).
    """

    def __init__(self) -> None:
        self._kept: list[_Kept] = []
        self._promised: tuple[weakref.ref[Tensor], Hashable, Callable[[], Any]] | None = None

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
            same = known.key == key and _are_equal(known.marks, _marks(known.made))
            if same and torch.equal(known.numbers, given):
                kept.append(known)
                return known.made
        promised, made = self._promised, None
        if promised is not None and promised[0]() is given and promised[1] == key:
            made = promised[2]()
        made = make() if made is None else made

        def forget(dead: weakref.ref[Tensor]) -> None:
            kept[:] = [entry for entry in kept if entry.given is not dead]

        kept.append(_Kept(weakref.ref(given, forget), given.detach().clone(), key, made, _marks(made)))
        del kept[:-_NUM_KEPT]
        return made

    def promise(self, given: Tensor, key: Hashable, make: Callable[[], Any]) -> None:
        """Let `get` make its result so, if it is asked for this tensor and an equal key; the last promise counts.

        Args:
            given: a tensor that nobody changes, such as some rows of another whose result is known.
            key: as of `get`.
            make: gives what the one of `get` would give, in less time; or None if it cannot any more. It is kept until
                the next promise, so it should hold no large tensors.
        """
        self._promised = (weakref.ref(given), key, make)
