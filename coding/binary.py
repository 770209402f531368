"""Binary rate code: a count of c is c spikes of value 1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Integer
from torch import Tensor

from .base import ENCODERS, MAX_RATE_TIMESTEPS, check_num_timesteps, checked_counts, rate_planes
from .train import SpikeTrain
from .unrolling import Unrolling
from .unsigned import UnsignedEncoder


@ENCODERS.register("binary")
@dataclass(frozen=True)
class Binary(UnsignedEncoder):
    """Counts >= -zero_point; the neuron fires in each of its first count + zero_point timesteps, each of weight 1.

    Source:
        SpikingBrain (arXiv:2509.05276), section 3.3.2.

    >>> Binary().encode(torch.tensor([2, 1, 0]), num_timesteps=2).spikes.tolist()
    [[1, 1, 0], [1, 0, 0]]
    """

    lossless: ClassVar[bool] = True

    def encode(self, count: Integer[Tensor, "*shape"], num_timesteps: int) -> SpikeTrain:
        """Unroll counts in [-zero_point, num_timesteps - zero_point]; see `Encoder.encode`."""
        code = self.unrolling(num_timesteps)
        lifted = checked_counts(self, count, num_timesteps, code.low, code.high) + self.zero_point
        return SpikeTrain(rate_planes(lifted, num_timesteps), code.timestep_weight.to(count.device), self.zero_point)

    def unrolling(self, num_timesteps: int) -> Unrolling:
        """Return the code as kernels run it; see `Encoder.unrolling`."""
        check_num_timesteps(self, num_timesteps, MAX_RATE_TIMESTEPS)
        low, high = -self.zero_point, num_timesteps - self.zero_point
        weight = torch.ones(num_timesteps, dtype=torch.int64)
        return Unrolling(weight, low, high, rate=True, sign_planes=0, zero_point=self.zero_point)

    def timesteps_for(self, max_count: int) -> int:
        """Return max_count + zero_point, at least 1."""
        return max(1, max_count + self.zero_point)
