"""INT8 codes of the keys and values in a `KvRoom`, which attention on counts reads in the place of their floats."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..spikingbrain.int8 import quantize_tokens


class CodeRoom:
    """Codes and scales for the rows of one memory of keys and values; they follow from the rows, so nobody saves them.

    Args:
        memory: see `KvRoom`.

    Attributes:
        codes: int8, of the memory's shape.
        scales: float32 [layers * 2, 1, key heads, rows].
    """

    def __init__(self, memory: Tensor) -> None:
        self.codes, self.scales = torch.empty(memory.shape, dtype=torch.int8), torch.empty(memory.shape[:-1])
        self._version, self._num_rows = memory._version, 0

    def follow(self, memory: Tensor, length: int) -> None:
        """Have codes of the first `length` rows of the memory, whose next row a compiled decoder fills, and its codes.

        Args:
            memory: the same as before.
            length: rows that are filled.
        """
        if self._version != memory._version:  # also after a write to a cache, whose tensors are its views
            self._version, self._num_rows = memory._version, 0
        if self._num_rows < length:
            rows = slice(self._num_rows, length)
            codes, scales = quantize_tokens(memory[..., rows, :])
            self.codes[..., rows, :], self.scales[..., rows] = codes, scales.squeeze(-1)
        self._num_rows = length + 1

    def addresses(self, part: Tensor, num_layers: int) -> tuple[np.ndarray, np.ndarray]:
        """Return where codes or scales of the keys of each layer lie, and where those of the values."""
        stride = part.stride(0) * part.element_size()
        first = part.data_ptr() + 2 * stride * np.arange(num_layers)
        return first, first + stride
