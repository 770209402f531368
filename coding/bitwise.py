"""Bitwise codes: a timestep is a binary digit, the most significant first, and weighs 2^(T-1-t)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Integer
from torch import Tensor

from .base import ENCODERS, MAX_BIT_PLANES, Encoder, bit_planes, check_num_timesteps, checked_counts, powers_of_two
from .train import SpikeTrain
from .unrolling import Unrolling
from .unsigned import UnsignedEncoder


@ENCODERS.register("bitwise")
@dataclass(frozen=True)
class Bitwise(UnsignedEncoder):
    """Binary digits of count + zero_point, as spikes 0 and 1.

    Source:
        SpikingBrain (arXiv:2509.05276), section 3.3.2.

    >>> Bitwise().encode(torch.tensor([5, 2, 0]), num_timesteps=3).spikes.tolist()
    [[1, 0, 0], [0, 1, 0], [1, 0, 0]]
    """

    lossless: ClassVar[bool] = True

    def encode(self, count: Integer[Tensor, "*shape"], num_timesteps: int) -> SpikeTrain:
        """Unroll counts in [-zero_point, 2^num_timesteps - 1 - zero_point]; see `Encoder.encode`."""
        code = self.unrolling(num_timesteps)
        lifted = checked_counts(self, count, num_timesteps, code.low, code.high) + self.zero_point
        return SpikeTrain(bit_planes(lifted, num_timesteps), code.timestep_weight.to(count.device), self.zero_point)

    def unrolling(self, num_timesteps: int) -> Unrolling:
        """Return the code as kernels run it; see `Encoder.unrolling`."""
        check_num_timesteps(self, num_timesteps, MAX_BIT_PLANES)
        low, high = -self.zero_point, 2**num_timesteps - 1 - self.zero_point
        weight = powers_of_two(num_timesteps)
        return Unrolling(weight, low, high, rate=False, sign_planes=0, zero_point=self.zero_point)

    def timesteps_for(self, max_count: int) -> int:
        """Return ceil(log2(max_count + zero_point + 1)), at least 1."""
        return max(1, (max_count + self.zero_point).bit_length())


@ENCODERS.register("bitwise-bidirectional")
@dataclass(frozen=True)
class BidirectionalBitwise(Encoder):
    """Binary digits of |count|, each spike with the sign of the count: the code behind the report's figures.

    Source:
        SpikingBrain (arXiv:2509.05276), section 3.3.2.

    >>> BidirectionalBitwise().encode(torch.tensor([5, -2, 0]), num_timesteps=3).spikes.tolist()
    [[1, 0, 0], [0, -1, 0], [1, 0, 0]]
    """

    lossless: ClassVar[bool] = True

    def encode(self, count: Integer[Tensor, "*shape"], num_timesteps: int) -> SpikeTrain:
        """Unroll counts with |count| < 2^num_timesteps; see `Encoder.encode`."""
        code = self.unrolling(num_timesteps)
        count = checked_counts(self, count, num_timesteps, code.low, code.high)
        spikes = bit_planes(count.abs(), num_timesteps).mul_(count.sign().to(torch.int8))
        return SpikeTrain(spikes, code.timestep_weight.to(count.device))

    def unrolling(self, num_timesteps: int) -> Unrolling:
        """Return the code as kernels run it; see `Encoder.unrolling`."""
        check_num_timesteps(self, num_timesteps, MAX_BIT_PLANES)
        high = 2**num_timesteps - 1
        return Unrolling(powers_of_two(num_timesteps), -high, high, rate=False, sign_planes=1)

    def timesteps_for(self, max_count: int) -> int:
        """Return ceil(log2(max_count + 1)), at least 1."""
        return max(1, max_count.bit_length())


@ENCODERS.register("twos-complement")
@dataclass(frozen=True)
class TwosComplement(Encoder):
    """Two's complement digits: spikes 0 and 1, and the first timestep weighs -2^(T-1).

    A small negative count fires almost everywhere: -1 is all ones.

    Source:
        SpikingBrain (arXiv:2509.05276), section 3.3.2.

    >>> TwosComplement().encode(torch.tensor([3, -1, 0]), num_timesteps=3).spikes.tolist()
    [[0, 1, 0], [1, 1, 0], [1, 1, 0]]
    """

    lossless: ClassVar[bool] = True

    def encode(self, count: Integer[Tensor, "*shape"], num_timesteps: int) -> SpikeTrain:
        """Unroll counts in [-2^(num_timesteps - 1), 2^(num_timesteps - 1) - 1]; see `Encoder.encode`."""
        code = self.unrolling(num_timesteps)
        count = checked_counts(self, count, num_timesteps, code.low, code.high)
        digits = count & (2**num_timesteps - 1)
        return SpikeTrain(bit_planes(digits, num_timesteps), code.timestep_weight.to(count.device))

    def unrolling(self, num_timesteps: int) -> Unrolling:
        """Return the code as kernels run it; see `Encoder.unrolling`."""
        check_num_timesteps(self, num_timesteps, MAX_BIT_PLANES)
        weight = powers_of_two(num_timesteps)
        weight[0] = -weight[0]
        half = 2 ** (num_timesteps - 1)
        return Unrolling(weight, -half, half - 1, rate=False, sign_planes=0)

    def timesteps_for(self, max_count: int) -> int:
        """Return ceil(log2(max_count + 1)) + 1: digits and a sign."""
        return max_count.bit_length() + 1
