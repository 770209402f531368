"""Integers of 4 or 2 bits, several to a byte: how files keep them."""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import InputError


def pack(weight: Tensor, bits: int) -> Tensor:
    """Return integers of less than 8 bits as bytes, the first of each byte in its lowest bits.

    Args:
        weight: int8 [out_features, in_features], all of them signed or all unsigned integers of that width.
        bits: 4 or 2.
    Returns:
        uint8 [out_features, ceil(in_features * bits / 8)].

    >>> pack(torch.tensor([[-8, 7, 1]], dtype=torch.int8), 4).tolist()  # 8 | 7 << 4, 1
    [[120, 1]]
    """
    each = 8 // bits
    parts = torch.nn.functional.pad(weight.to(torch.uint8) & 2**bits - 1, (0, -weight.shape[1] % each))
    packed = parts[:, ::each]
    for place in range(1, each):
        packed = packed | parts[:, place::each] << bits * place
    return packed


def unpack(packed: Tensor, num_inputs: int, bits: int, *, signed: bool) -> Tensor:
    """Return what `pack` was given.

    Args:
        packed: uint8 [out_features, ceil(num_inputs * bits / 8)].
        num_inputs: input channels.
        bits: 4 or 2.
        signed: integers start at -2^(bits - 1), else at 0.
    Raises:
        InputError: it is something else.
    """
    each = 8 // bits
    expected = -(-num_inputs // each)
    if packed.dtype != torch.uint8 or packed.ndim != 2 or packed.shape[1] != expected:
        raise InputError(
            f"expected {bits}-bit integers as uint8 [outputs, {expected}], got {packed.dtype} of shape "
            f"{tuple(packed.shape)}."
        )
    places = [packed >> bits * place & 2**bits - 1 for place in range(each)]
    parts = torch.stack(places, 2).reshape(len(packed), -1)[:, :num_inputs].to(torch.int8)
    half = 2 ** (bits - 1)
    return (parts ^ half) - half if signed else parts
