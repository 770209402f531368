"""Ternary rate code: a count of c is |c| spikes of its sign."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Integer
from torch import Tensor

from .base import ENCODERS, MAX_RATE_TIMESTEPS, Encoder, check_num_timesteps, checked_counts, rate_planes
from .train import SpikeTrain
from .unrolling import Unrolling


@ENCODERS.register("ternary")
@dataclass(frozen=True)
class Ternary(Encoder):
    """A neuron emits sign(count) in each of its first |count| timesteps, each of weight 1.

    It is the train of a soft-reset integrate-and-fire neuron (see neuro/integrate_and_fire.py).

    Source:
        SpikingBrain (arXiv:2509.05276), section 3.3.2.

    >>> Ternary().encode(torch.tensor([2, -1, 0]), num_timesteps=2).spikes.tolist()
    [[1, -1, 0], [1, 0, 0]]
    """

    lossless: ClassVar[bool] = True

    def encode(self, count: Integer[Tensor, "*shape"], num_timesteps: int) -> SpikeTrain:
        """Unroll counts with |count| <= num_timesteps; see `Encoder.encode`."""
        code = self.unrolling(num_timesteps)
        count = checked_counts(self, count, num_timesteps, code.low, code.high)
        spikes = rate_planes(count.abs(), num_timesteps).mul_(count.sign().to(torch.int8))
        return SpikeTrain(spikes, code.timestep_weight.to(count.device))

    def unrolling(self, num_timesteps: int) -> Unrolling:
        """Return the code as kernels run it; see `Encoder.unrolling`."""
        check_num_timesteps(self, num_timesteps, MAX_RATE_TIMESTEPS)
        weight = torch.ones(num_timesteps, dtype=torch.int64)
        return Unrolling(weight, -num_timesteps, num_timesteps, rate=True, sign_planes=1)

    def timesteps_for(self, max_count: int) -> int:
        """Return max_count, at least 1."""
        return max(1, max_count)
