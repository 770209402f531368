"""Signed-digit code: the non-adjacent form, which has the fewest spikes that powers of two allow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Integer
from torch import Tensor

from .base import ENCODERS, MAX_BIT_PLANES, Encoder, bit_planes, check_num_timesteps, checked_counts, powers_of_two
from .train import SpikeTrain
from .unrolling import Unrolling


@ENCODERS.register("signed-digit")
@dataclass(frozen=True)
class SignedDigit(Encoder):
    """Digits -1, 0 and 1 of weight 2^(T-1-t), no two neighbours both nonzero: 7 = 8 - 1.

    With h = c >> 1 and s = c + h, the digits +1 stand where s has a one and h has none, the digits -1 where h has a
    one and s has none (the digits of 3c/2 minus those of c/2). A count has popcount(c xor 3c) spikes.

    Source:
        Reitwiesner, Binary arithmetic, Advances in Computers 1 (1960); Prodinger, On binary representations of
        integers with digits -1, 0, 1, Integers 0 (2000), A8.

    >>> SignedDigit().encode(torch.tensor([7, -3, 0]), num_timesteps=4).spikes.tolist()
    [[1, 0, 0], [0, -1, 0], [0, 0, 0], [-1, 1, 0]]
    """

    lossless: ClassVar[bool] = True

    def encode(self, count: Integer[Tensor, "*shape"], num_timesteps: int) -> SpikeTrain:
        """Unroll counts with |count| <= floor(2^(num_timesteps + 1) / 3); see `Encoder.encode`."""
        code = self.unrolling(num_timesteps)
        count = checked_counts(self, count, num_timesteps, code.low, code.high)
        magnitude = count.abs()
        half = magnitude >> 1
        total = magnitude + half
        spikes = bit_planes(total & ~half, num_timesteps) - bit_planes(half & ~total, num_timesteps)
        return SpikeTrain(spikes.mul_(count.sign().to(torch.int8)), code.timestep_weight.to(count.device))

    def unrolling(self, num_timesteps: int) -> Unrolling:
        """Return the code as kernels run it; see `Encoder.unrolling`."""
        check_num_timesteps(self, num_timesteps, MAX_BIT_PLANES - 1)
        high = 2 ** (num_timesteps + 1) // 3
        return Unrolling(powers_of_two(num_timesteps), -high, high, rate=False, sign_planes=num_timesteps)

    def timesteps_for(self, max_count: int) -> int:
        """Return ceil(log2(max_count + 1)) + 1: one more than the bitwise code."""
        return max_count.bit_length() + 1
