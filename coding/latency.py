"""Latency code: one spike a channel, the earlier the larger the count."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Integer
from torch import Tensor

from ..errors import InputError
from .base import ENCODERS, MAX_RATE_TIMESTEPS, check_num_timesteps, checked_counts
from .lossy import LossyEncoder, units
from .train import SpikeTrain

CURVES = ("linear", "log", "charge")
# Longest train of the logarithmic curve: e^40 still leaves room in 64-bit weights.
_LONGEST_LOG = 40


@ENCODERS.register("latency")
@dataclass(frozen=True)
class Latency(LossyEncoder):
    """A channel fires once, at the timestep nearest to t(n) for its n = |count| / step units; a silent one never.

    * "linear": t(n) = T - 1 - n. Exact for step 1, at a timestep for every count.
    * "log": t(n) = T - 1 - ln(n + 1). Few timesteps, and an error that grows with the count.
    * "charge": t(n) = (T - 1) / ln 2 * ln(n / (n - 1/2)), a leaky neuron that charges up to half a unit: n = 1 fires
      last, large counts share the first timesteps.

    A spike at timestep t weighs step * n(t), rounded, where n(t) is the inverse of t(n).

    Attributes:
        curve: "linear", "log" or "charge".

    Source:
        SpikingJelly, activation_based.encoding.LatencyEncoder(T, "linear" or "log"), with x = n / (T - 1) or x = n /
        (e^(T-1) - 1); snnTorch, spikegen.latency, with linear=True, normalize=True or with threshold = 1 / (2 (T - 1)),
        tau = (T - 1) / ln 2. Theirs fire for x = 0, too, at the last timestep.

    >>> Latency().encode(torch.tensor([2, -1, 0]), num_timesteps=3).spikes.tolist()
    [[1, 0, 0], [0, -1, 0], [0, 0, 0]]
    """

    curve: Literal["linear", "log", "charge"] = "linear"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.curve not in CURVES:
            raise InputError(f"Latency.curve: expected one of {', '.join(CURVES)}; got {self.curve!r}.")

    def encode(self, count: Integer[Tensor, "*shape"], num_timesteps: int) -> SpikeTrain:
        """Unroll counts of at most T - 1 units, with "log" e^(T-1) - 1; see `Encoder.encode`."""
        check_num_timesteps(self, num_timesteps, _LONGEST_LOG if self.curve == "log" else MAX_RATE_TIMESTEPS)
        last = num_timesteps - 1
        largest = self.step * math.floor(math.expm1(last)) if self.curve == "log" else self.step * last
        count = checked_counts(self, count, num_timesteps, -largest, largest)
        n = count.abs().to(torch.float64) / self.step
        if self.curve == "linear":
            time = last - n
        elif self.curve == "log":
            time = last - torch.log1p(n)
        else:
            n = n.clamp_min(1)  # less than half a unit never charges up
            time = last / math.log(2) * -torch.log1p(-0.5 / n)
        time = time.round_().to(torch.int64)
        spikes = torch.zeros((num_timesteps, *count.shape), dtype=torch.int8, device=count.device)
        spikes.scatter_(0, time[None], count.sign().to(torch.int8)[None])
        return SpikeTrain(spikes, self._weights(num_timesteps).to(count.device))

    def timesteps_for(self, max_count: int) -> int:
        """Return the units of max_count + 1; with "log" their logarithm + 1, rounded up."""
        most = units(max_count, self.step)
        if self.curve != "log":
            return most + 1
        last = math.ceil(math.log1p(most))
        return last + (1 if math.floor(math.expm1(last)) >= most else 2)

    def _weights(self, num_timesteps: int) -> Tensor:
        """Return step * n(t), rounded, int64 [T]."""
        last = num_timesteps - 1
        left = torch.arange(last, -1, -1, dtype=torch.float64)  # timesteps after this one
        if self.curve == "linear":
            n = left
        elif self.curve == "log":
            n = torch.expm1(left)
        else:  # t = 0 is for more than fits
            n = 0.5 / -torch.expm1(-math.log(2) * (last - left).clamp_min(1) / max(last, 1))
        return (self.step * n).round().to(torch.int64)
