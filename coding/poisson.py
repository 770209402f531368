"""Poisson rate code: every timestep fires at random, with the count as the mean."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Integer
from torch import Tensor

from ..errors import InputError
from .base import ENCODERS, MAX_RATE_TIMESTEPS, check_num_timesteps, checked_counts
from .lossy import LossyEncoder, units
from .noise import uniforms
from .train import SpikeTrain


@ENCODERS.register("poisson")
@dataclass(frozen=True)
class Poisson(LossyEncoder):
    """Each timestep fires sign(count) with the probability |count| / (step * T), and a spike counts for `step`.

    The mean of the train's value is the count, its variance step * |count| * (1 - |count| / (step * T)). The numbers
    come from the seed and the token's counts (`noise`), so that equal tokens have equal trains. The probability depends
    on T, hence on the largest count of the call.

    Attributes:
        seed: of the random numbers.

    Source:
        snnTorch, spikegen.rate; SpikingJelly, activation_based.encoding.PoissonEncoder: the same with x = |count| /
        (step * T), but that the latter may fire at x = 0 with a probability of 2^-24.

    >>> Poisson().encode(torch.tensor([2, -2, 0]), num_timesteps=2).spikes.tolist()  # a probability of 1
    [[1, -1, 0], [1, -1, 0]]
    """

    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if type(self.seed) is not int or not 0 <= self.seed < 2**63:
            raise InputError(f"Poisson.seed: expected an integer in [0, 2^63), got {self.seed!r}.")

    def encode(self, count: Integer[Tensor, "*shape"], num_timesteps: int) -> SpikeTrain:
        """Unroll counts with |count| <= step * num_timesteps; see `Encoder.encode`."""
        check_num_timesteps(self, num_timesteps, MAX_RATE_TIMESTEPS)
        largest = self.step * num_timesteps
        count = checked_counts(self, count, num_timesteps, -largest, largest)
        probability = count.abs().to(torch.float64) / largest
        spikes = torch.empty((num_timesteps, *count.shape), dtype=torch.int8, device=count.device)
        for t, number in enumerate(uniforms(count, num_timesteps, self.seed)):
            spikes[t] = number < probability
        weight = torch.full((num_timesteps,), self.step, dtype=torch.int64, device=count.device)
        return SpikeTrain(spikes.mul_(count.sign().to(torch.int8)), weight)

    def timesteps_for(self, max_count: int) -> int:
        """Return max_count / step, rounded up, at least 1."""
        return max(1, units(max_count, self.step))
