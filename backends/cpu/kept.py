"""Rows of weights that a layer keeps from call to call, in the order and the width that the kernel reads fastest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from ..base import Memo, ScaleUnits, version_of
from .tiles import Rows

# The widest integers that are packed into half a byte, and the bits of them that counts may drop: a packed integer is
# lifted by 8, which has zeros in their places.
_MOST_DROPPED = 3


class _Kept(NamedTuple):
    key: tuple[Any, ...]
    parts: tuple[Any, ...]  # what the key names, held so that nothing else gets its address
    rows: Rows


def rows_for(
    memo: Memo | None,
    weight: Tensor,
    scale: Tensor,
    minimum: Tensor | None,
    group_size: int | None,
    units: ScaleUnits | None,
    upper: Sequence[tuple[int, int]],
) -> Rows:
    """Return a layer's rows: those that its memo keeps, or new ones if a tensor of it was written to or replaced.

    Writes through `.data` are not seen, since PyTorch does not count them. Nothing is kept of tensors made in inference
    mode, whose changes it does not count either.

    Args:
        memo: the layer's, or None.
        weight: see `Backend.fused`, as for the others.
        scale: see there.
        minimum: see there.
        group_size: see there.
        units: see there.
        upper: see there.
    """
    tensors = weight, scale, minimum
    if memo is None or any(tensor is not None and tensor.is_inference() for tensor in tensors):
        # To pack them would take longer than one call.
        return Rows(weight, scale, minimum, group_size, weight_bits=8, units=units)
    state = ((id(tensor), tensor.data_ptr(), version_of(tensor)) for tensor in tensors if tensor is not None)
    key = (*state, group_size, id(units), tuple(upper))
    kept = memo.kept
    if not isinstance(kept, _Kept) or kept.key != key:
        bits = _bits_of(weight, minimum, upper)
        parts = (*tensors, units)
        kept = memo.kept = _Kept(key, parts, Rows(weight, scale, minimum, group_size, weight_bits=bits, units=units))
    return kept.rows


def _bits_of(weight: Tensor, minimum: Tensor | None, upper: Sequence[tuple[int, int]]) -> int:
    """Return 4 if half a byte has room for all weights, else 8."""
    low, high = (int(bound) for bound in weight.aminmax())
    fit = 0 <= low <= high < 16 if minimum is not None else -8 <= low <= high < 8
    return 4 if fit and all(dropped <= _MOST_DROPPED for _, dropped in upper) else 8
