"""Weights in the order and padding that the kernels for GPUs need."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from ..base import version_of

_ALIGNMENT = 16  # bytes: a row starts at a multiple, for loads of 16 bytes

# Copies of weights in the order and padding that a kernel needs, made where the weights themselves are not in it, and
# made again when the weights change. What PyTorch does not count as a change (writing through .data) is not seen.
_row_copies: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
_column_copies: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def rows_of(weight: Tensor) -> Tensor:
    """Return the weights with those of an input channel side by side: int8, [inputs, outputs padded to 16]."""
    return _aligned(weight.t(), weight, _row_copies)


def columns_of(weight: Tensor) -> Tensor:
    """Return the weights with those of an output side by side: int8, [outputs, inputs padded to 16]."""
    return _aligned(weight, weight, _column_copies)


def _aligned(matrix: Tensor, weight: Tensor, copies: WeakTensorKeyDictionary) -> Tensor:
    if matrix.is_contiguous() and matrix.shape[1] % _ALIGNMENT == 0 and matrix.data_ptr() % _ALIGNMENT == 0:
        return matrix

    def padded(_: Tensor) -> Tensor:
        made = matrix.new_zeros(matrix.shape[0], -(-matrix.shape[1] // _ALIGNMENT) * _ALIGNMENT)
        made[:, : matrix.shape[1]] = matrix
        return made

    return copied(weight, copies, padded)


def copied(weight: Tensor, copies: WeakTensorKeyDictionary, copy: Callable[[Tensor], Tensor]) -> Tensor:
    """Return a copy of weights from those that are kept; it is made where there is none, or an older one."""
    version = version_of(weight)
    found = copies.get(weight)
    if found is None or found[0] != version:
        found = (version, copy(weight))
        # A copy made inside a CUDA graph has its contents only when the graph runs: it belongs to the graph.
        if not (weight.is_cuda and torch.cuda.is_current_stream_capturing()):
            copies[weight] = found
    return found[1]
