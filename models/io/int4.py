"""Integers of 4 bits, two to a byte: how files keep them."""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import InputError


def pack(weight: Tensor) -> Tensor:
    """Return integers of 4 bits as bytes, the first of each two in the low half.

    Args:
        weight: int8 [out_features, in_features], all within -8 to 7 or all within 0 to 15.
    Returns:
        uint8 [out_features, ceil(in_features / 2)].

    >>> pack(torch.tensor([[-8, 7, 1]], dtype=torch.int8)).tolist()  # 8 | 7 << 4, 1
    [[120, 1]]
    """
    nibbles = weight.to(torch.uint8) & 15
    padded = torch.nn.functional.pad(nibbles, (0, nibbles.shape[1] % 2))
    return padded[:, ::2] | padded[:, 1::2] << 4


def unpack(packed: Tensor, num_inputs: int, *, signed: bool) -> Tensor:
    """Return what `pack` was given.

    Args:
        packed: uint8 [out_features, ceil(num_inputs / 2)].
        num_inputs: input channels.
        signed: integers are -8 to 7, else 0 to 15.
    Raises:
        InputError: it is something else.
    """
    if packed.dtype != torch.uint8 or packed.ndim != 2 or packed.shape[1] != -(-num_inputs // 2):
        raise InputError(
            f"expected 4-bit integers as uint8 [outputs, {-(-num_inputs // 2)}], got {packed.dtype} of shape "
            f"{tuple(packed.shape)}."
        )
    nibbles = torch.stack([packed & 15, packed >> 4], 2).reshape(len(packed), -1)[:, :num_inputs]
    return ((nibbles ^ 8).to(torch.int8) - 8) if signed else nibbles.to(torch.int8)
