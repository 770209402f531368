"""Small counts that read only the upper bits of their rows, in kernels for GPUs.

A row without its lowest d bits stands for the middle of all rows with the same upper bits (`models/layers/coarse.py`).
So sums are kept in halves: twice what was read, and 2^d - 1 times the count of each channel that dropped d bits.
"""

# pyright: reportArgumentType=false, reportIndexIssue=false

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from .job import Reads
from .weights import copied

# Bits of a plane of `planes_of`.
PLANE_BITS = 4


class UpperBits(NamedTuple):
    """What kernels are told of the counts that read upper bits.

    Attributes:
        edge0: counts of magnitudes up to it read the fewest bits.
        edge1: counts of magnitudes up to it, and beyond the first, read the second fewest; 0 if all those read all.
        keep0: which bits of a word the first ones read.
        keep1: the same of the second ones.
        middle0: 2^d - 1, where the first ones drop d bits.
        middle1: the same of the second ones.
    """

    edge0: int = 0
    edge1: int = 0
    keep0: int = -1
    keep1: int = -1
    middle0: int = 0
    middle1: int = 0

    @property
    def is_plane(self) -> bool:
        """Whether all that read upper bits read exactly the upper plane of `planes_of`."""
        return {self.middle0, self.middle1} <= {0, 2**PLANE_BITS - 1}


@functools.lru_cache(maxsize=1024)  # each launch asks
def upper_bits(upper: Reads, bits: int) -> UpperBits:
    """Return what kernels are told.

    Args:
        upper: pairs (up_to, dropped), two at most; see `Backend.knows_upper_bits`.
        bits: of an integer in a word.
    """
    pairs = [*upper, (0, 0), (0, 0)][:2]
    edges, dropped = zip(*pairs, strict=True)
    return UpperBits(*edges, *(_without(d, bits) for d in dropped), *(2**d - 1 for d in dropped))


def _without(dropped: int, bits: int) -> int:
    """Return the bits of a word of integers without the lowest ones of each, as a signed number."""
    word = sum(((1 << bits) - (1 << dropped)) << place for place in range(0, 32, bits))
    return word - (1 << 32) if word >> 31 else word


def have_planes(upper: Reads) -> bool:
    """Return whether small counts need nothing of the lower plane of `planes_of`."""
    return bool(upper) and all(dropped >= PLANE_BITS for _, dropped in upper)


_plane_copies: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def planes_of(weight: Tensor) -> Tensor:
    """Return the weights with the upper 4 bits of all outputs of an input channel before the lower 4: int8.

    Of [inputs, outputs padded to 32]. Byte i of a group of 4 bytes holds the bits of output i of 8 in its lower half
    and those of output i + 4 in its upper half. It is one more byte per weight.
    """
    return copied(weight, _plane_copies, _planes)


def _planes(weight: Tensor) -> Tensor:
    num_outputs, num_inputs = weight.shape
    padded = weight.new_zeros(num_inputs, -(-num_outputs // 32) * 32)
    padded[:, :num_outputs] = weight.t()
    low, high = padded.view(torch.uint8).reshape(num_inputs, -1, 2, 4).unbind(2)
    upper, lower = low >> 4 | high & 0xF0, low & 0x0F | high << 4
    return torch.cat([upper.flatten(1), lower.flatten(1)], 1).view(torch.int8)


@triton.jit
def level_of(count, edge0, edge1):
    """Return 1 for counts that read the fewest bits, 2 for those that read the second fewest, 0 for all others."""
    return tl.where(tl.abs(count) <= edge0, 1, tl.where(tl.abs(count) <= edge1, 2, 0))


@triton.jit
def middles_of(count, edge0, edge1, middle0, middle1):
    """Return what counts add to sums in halves beside twice what they read."""
    return count * at_level(level_of(count, edge0, edge1), middle0, middle1, 0)


@triton.jit
def bits_of(count, edge0, edge1, keep0, keep1):
    """Return which bits of a word counts read."""
    return at_level(level_of(count, edge0, edge1), keep0, keep1, -1)


@triton.jit
def at_level(level, first, second, other):
    """Return what belongs to a level."""
    return tl.where(level == 1, first, tl.where(level == 2, second, other))
