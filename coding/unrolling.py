"""A code as kernels run it: which bits of a count make up its train."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ..neuro import LARGEST_COUNT


@dataclass(frozen=True, eq=False)
class Unrolling:
    """How a train of a given length follows from a count: what `Encoder.encode` does, in a form that kernels share.

    A count has a pattern, an integer, and timestep t fires where (pattern & mask[t]) > above[t]: a digit of the pattern
    (mask 2^(T-1-t), above 0), or, in a rate code, the pattern itself beyond t (mask -1, above t). Patterns by
    `sign_planes`:

    * 0: count + zero_point; nothing is negative.
    * 1: |count|; the neuron is negative where count < 0.
    * T > 1: the places of the digits 1 and -1 in the non-adjacent form of |count| (see `SignedDigit`). With
      half = |count| >> 1 and total = |count| + half they are total ^ half, of which those of half are -1; for a
      negative count, those of total are.

    With half = 0 the third is the second, so kernels compute all of them in the same way.

    Attributes:
        timestep_weight: of the train, int64, [T], in main memory.
        low: smallest count that fits.
        high: largest count that fits.
        rate: whether this is a rate code; digits otherwise.
        sign_planes: planes of signs in the packed train: 0, 1 or T. They depend on the code alone, never on the counts.
        zero_point: of the train.
    """

    timestep_weight: Tensor
    low: int
    high: int
    rate: bool
    sign_planes: int
    zero_point: int = 0

    @property
    def num_timesteps(self) -> int:
        """T, the length of the train."""
        return len(self.timestep_weight)

    @property
    def dtype(self) -> torch.dtype:
        """The narrowest of int32 and int64 that leaves room for patterns: to add -low, or half of the count."""
        return torch.int32 if max(-self.low, self.high) < 2**30 else torch.int64

    def fits(self, low: float, high: float) -> bool:
        """Return whether all numbers in [low, high] round to counts that fit this code and 32 bits; False for NaN."""
        in_range = -LARGEST_COUNT <= low <= high <= LARGEST_COUNT
        return in_range and self.low <= round(low) and round(high) <= self.high

    @cached_property
    def mask(self) -> Tensor:
        """Return mask[t], of `dtype`, [T]."""
        return torch.full_like(self.timestep_weight, -1, dtype=self.dtype) if self.rate else self._digits()

    @cached_property
    def above(self) -> Tensor:
        """Return above[t], of `dtype`, [T]."""
        t = torch.arange(self.num_timesteps, dtype=self.dtype)
        return t if self.rate else torch.zeros_like(t)

    def _digits(self) -> Tensor:
        return self.timestep_weight.abs().to(self.dtype)
