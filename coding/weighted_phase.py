"""Weighted phase code: the leading bits of a count, one a timestep."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Integer
from torch import Tensor

from .base import ENCODERS, MAX_BIT_PLANES, bit_planes, check_num_timesteps, checked_counts, powers_of_two
from .lossy import LossyEncoder
from .train import SpikeTrain


@ENCODERS.register("weighted-phase")
@dataclass(frozen=True)
class WeightedPhase(LossyEncoder):
    """The binary digits of floor(|count| / step), most significant first; what is below a step is cut off.

    With step 1 it is the bidirectional bitwise code; each doubling of the step drops the last phase.

    Source:
        SpikingJelly, activation_based.encoding.WeightedPhaseEncoder(K = T), with x = |count| / (step * 2^T); after Kim
        et al., Deep neural networks with weighted spikes, Neurocomputing 311 (2018).

    >>> WeightedPhase(step=2).encode(torch.tensor([7, -2, 1]), num_timesteps=2).spikes.tolist()  # 6, -2 and 0
    [[1, 0, 0], [1, -1, 0]]
    """

    def encode(self, count: Integer[Tensor, "*shape"], num_timesteps: int) -> SpikeTrain:
        """Unroll counts with |count| < step * 2^num_timesteps; see `Encoder.encode`."""
        check_num_timesteps(self, num_timesteps, MAX_BIT_PLANES)
        largest = min(self.step * 2**num_timesteps - 1, torch.iinfo(torch.int64).max)
        count = checked_counts(self, count, num_timesteps, -largest, largest)
        spikes = bit_planes(count.abs() // self.step, num_timesteps).mul_(count.sign().to(torch.int8))
        return SpikeTrain(spikes, powers_of_two(num_timesteps).to(count.device) * self.step)

    def timesteps_for(self, max_count: int) -> int:
        """Return the binary digits of max_count / step, at least 1."""
        return max(1, (max_count // self.step).bit_length())
