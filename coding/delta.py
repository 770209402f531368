"""Delta code: a spike where the signal changes by a threshold or more."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Integer
from torch import Tensor

from ..errors import InputError
from .base import ENCODERS, MAX_RATE_TIMESTEPS, check_num_timesteps, checked_counts
from .lossy import LossyEncoder
from .train import SpikeTrain


@ENCODERS.register("delta")
@dataclass(frozen=True)
class Delta(LossyEncoder):
    """The signal of a channel rises from 0 to its count at the first timestep and stays: one spike where it changes.

    So a count of at least `threshold` in magnitude fires its sign once, worth `step`, and any other none. Every count
    fits, and most are far from what their spike carries: for counts of a token that differ little.

    Attributes:
        threshold: the smallest change that fires, in spikes.

    Source:
        snnTorch, spikegen.delta(data, threshold, off_spike=True), of the count held for T timesteps.

    >>> Delta(threshold=2).encode(torch.tensor([5, -2, 1]), num_timesteps=1).spikes.tolist()
    [[1, -1, 0]]
    """

    threshold: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if type(self.threshold) is not int or self.threshold < 1:
            raise InputError(f"Delta.threshold: expected an integer >= 1, got {self.threshold!r}.")

    def encode(self, count: Integer[Tensor, "*shape"], num_timesteps: int) -> SpikeTrain:
        """Unroll any counts; see `Encoder.encode`."""
        check_num_timesteps(self, num_timesteps, MAX_RATE_TIMESTEPS)
        limits = torch.iinfo(torch.int64)
        count = checked_counts(self, count, num_timesteps, limits.min + 1, limits.max)
        spikes = torch.zeros((num_timesteps, *count.shape), dtype=torch.int8, device=count.device)
        spikes[0] = count.sign() * (count.abs() >= self.threshold)
        return SpikeTrain(spikes, torch.full((num_timesteps,), self.step, dtype=torch.int64, device=count.device))

    def timesteps_for(self, max_count: int) -> int:
        """Return 1."""
        return 1
