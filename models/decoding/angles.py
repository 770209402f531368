"""Cosines and sines of the rotary embedding, at addresses that the compiled decoders read."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# Positions whose angles are kept ready.
_AHEAD = 256


class Angles:
    """The angles of one position after the other, made for many positions at a time.

    Args:
        make: returns cosines and sines of positions [1, n], each float32 [1, n, ...].
        steady: whether those of a position do not depend on the others; else they are made one by one.
    """

    def __init__(self, make: Callable[[Tensor], tuple[Tensor, Tensor]], *, steady: bool = True) -> None:
        self._make, self._num_ahead = make, _AHEAD if steady else 1
        self._made: list[Tensor] = []
        self._positions = range(0)

    def at(self, position: int) -> tuple[int, int]:
        """Return the addresses of the cosines and sines of a position; they hold until the next call."""
        if position not in self._positions or self._num_ahead == 1:
            self._positions = range(position, position + self._num_ahead)
            self._made = [part.contiguous() for part in self._make(torch.tensor([self._positions]))]
        row = position - self._positions.start
        cos, sin = (part[0, row].data_ptr() for part in self._made)
        return cos, sin
