"""Weights with groups in the order in which kernels read them: several integers to a word, matrices side by side."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.weak import WeakTensorKeyDictionary

from .job import Matrix, cdiv

# Words of a row that a program of `grouped.py` reads.
TILE_WORDS = 128


class Packed(NamedTuple):
    """Weights of one matrix as the kernels read them; those of a stage lie side by side.

    Attributes:
        rows: int32 words of positive integers of `bits` bits, [inputs, words padded to tiles]. Word i of a tile holds
            its outputs i, i + n, i + 2 n, ..., the lowest bits first; n is the tile's number of words, or 1.
        scale: [groups, outputs padded to tiles], in float16 where that is exact, else float32.
        minimum: the same, or None.
        bits: of an integer.
        lift: what the packed integers are too much.
    """

    rows: Tensor
    scale: Tensor
    minimum: Tensor | None
    bits: int
    lift: int


# By weight: the versions of what it was made of, and the packed weights.
_packed: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def packed_of(matrices: tuple[Matrix, ...], words: int = 0) -> Packed:
    """Return the packed weights of matrices that read the same input, side by side; made again when they change.

    Each matrix on its own reads its part of them.

    Args:
        matrices: they have groups of one size.
        words: of a tile whose words hold neighbouring outputs; 0 for tiles as `grouped.py` reads them.
    """
    known = [_packed.get(matrix.weight) for matrix in matrices]
    states = [(words, _state(matrix)) for matrix in matrices]
    if len(matrices) == 1 and known[0] is not None and known[0][0] == states[0]:
        return known[0][1]
    formats = [format_of(matrix) for matrix in matrices]
    bits = max(bits for bits, _ in formats)
    lift = 128 if bits == 8 else max(lift for _, lift in formats)
    halves = all(_is_half(part) for matrix in matrices for part in (matrix.scale, matrix.minimum))
    dtype = torch.float16 if halves else torch.float32
    parts = [_pack(matrix, bits, lift, dtype, words) for matrix in matrices]
    rows, scale = torch.cat([part[0] for part in parts], 1), torch.cat([part[1] for part in parts], 1)
    minimum = None
    if any(matrix.minimum is not None for matrix in matrices):
        minimum = torch.cat([torch.zeros_like(part[1]) if part[2] is None else part[2] for part in parts], 1)
    whole = Packed(rows, scale, minimum, bits, lift)
    if not (rows.is_cuda and torch.cuda.is_current_stream_capturing()):
        first = 0
        for matrix, state in zip(matrices, states, strict=True):
            size = words or TILE_WORDS
            wide = slice(first, first + cdiv(len(matrix.weight), 32 // bits * size) * size)
            outputs = slice(32 // bits * wide.start, 32 // bits * wide.stop)
            part = Packed(
                rows[:, wide], scale[:, outputs], None if minimum is None else minimum[:, outputs], bits, lift
            )
            _packed[matrix.weight] = state, part
            first = wide.stop
    return whole


def _state(matrix: Matrix) -> list[tuple[int, int | None]]:
    parts = [part for part in (matrix.weight, matrix.scale, matrix.minimum) if part is not None]
    return [(part.data_ptr(), None if part.is_inference() else part._version) for part in parts]


def format_of(matrix: Matrix) -> tuple[int, int]:
    """Return the bits that a matrix's integers need, and what makes them positive."""
    low, high = (int(bound) for bound in matrix.weight.aminmax())
    lift = 8 if low < 0 else 0
    return (4, lift) if low >= -8 and high + lift < 16 else (8, 128)


def _is_half(part: Tensor | None) -> bool:
    """Return whether float16 holds what is in a tensor."""
    return part is None or bool((part.to(torch.float16).to(torch.float32) == part).all())


def _pack(matrix: Matrix, bits: int, lift: int, dtype: torch.dtype, words: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return rows, scale and minimum; see `Packed` and `packed_of`."""
    assert matrix.scale is not None
    fields, (num_out, num_in) = 32 // bits, matrix.weight.shape
    tile = fields * (words or TILE_WORDS)
    spare = cdiv(num_out, tile) * tile - num_out
    apart = 1 if words else TILE_WORDS
    integers = F.pad(matrix.weight.t().to(torch.int32) + lift, (0, spare)).reshape(num_in, -1, fields, apart)
    rows = torch.zeros(num_in, integers.shape[1], apart, dtype=torch.int32, device=integers.device)
    for field in range(fields):
        rows |= integers[:, :, field] << bits * field
    scale, minimum = (
        None if part is None else F.pad(part.to(dtype).t(), (0, spare)) for part in (matrix.scale, matrix.minimum)
    )
    assert scale is not None
    return rows.reshape(num_in, -1), scale, minimum
