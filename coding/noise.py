"""Random numbers of stochastic codes: functions of seed and token, the same on every device and in every call."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

# Constants of splitmix64, as signed 64-bit integers; products wrap around.
_GOLDEN = -7046029254386353131
_FIRST = -4658895280553007687
_SECOND = -7723592293110705685
_BITS = 24


def uniforms(count: Tensor, num_timesteps: int, seed: int) -> Iterator[Tensor]:
    """Yield a number in [0, 1) for each place of each timestep, float32 of the shape of `count`.

    They depend on the seed, the counts of the token, the channel and the timestep alone. So a token has the same spikes
    in every batch, and layers that are given the same counts, such as q, k and v, see the same train.

    Args:
        count: spike counts, [*tokens, channels].
        num_timesteps: of the train.
        seed: of the code.

    Source:
        Steele, Lea, Flood, Fast splittable pseudorandom number generators, OOPSLA 2014 (splitmix64).
    """
    rows = (count if count.ndim else count[None]).to(torch.int64)
    rows = rows.reshape(rows.shape[:-1].numel(), rows.shape[-1])
    channel = _mixed((torch.arange(rows.shape[1], device=count.device) + 1) * _GOLDEN)
    token = _mixed((rows * channel).sum(1, keepdim=True) + seed)
    place = _mixed(token + channel)
    for _ in range(num_timesteps):
        place = place + _GOLDEN
        bits = _mixed(place) & (2**_BITS - 1)
        yield (bits.to(torch.float32) / 2.0**_BITS).reshape(count.shape)


def _mixed(value: Tensor) -> Tensor:
    """Return splitmix64 of integers: every bit of the result depends on every bit of the value."""
    value = (value ^ _shifted(value, 30)) * _FIRST
    value = (value ^ _shifted(value, 27)) * _SECOND
    return value ^ _shifted(value, 31)


def _shifted(value: Tensor, bits: int) -> Tensor:
    """Return a shift to the right that moves zeros in, as of unsigned integers."""
    return (value >> bits) & (2 ** (64 - bits) - 1)
