"""The one container for all codes: spikes in {-1, 0, 1}, and one integer weight per timestep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, Int8
from torch import Tensor

from ..errors import EncodingError


@dataclass(frozen=True)
class SpikeTrain:
    """Spikes of N neurons over T timesteps; value = sum over t of timestep_weight[t] * spikes[t] - zero_point.

    Attributes:
        spikes: -1, 0 or 1, int8, time axis first: [T, *shape] with T >= 1.
        timestep_weight: what a spike at timestep t counts for, int64, [T].
        zero_point: subtracted from every value; lets unsigned spikes carry signed counts.
    Raises:
        EncodingError: the spikes are of another dtype or hold another value, or the weights do not match them.

    Source:
        SpikingBrain (arXiv:2509.05276), section 3.3.2, eq. 22.
    """

    spikes: Int8[Tensor, "timesteps *shape"]
    timestep_weight: Int[Tensor, " timesteps"]
    zero_point: int = 0

    def __post_init__(self) -> None:
        spikes, weight = self.spikes, self.timestep_weight
        if spikes.dtype != torch.int8 or spikes.ndim == 0 or spikes.shape[0] == 0:
            raise EncodingError(
                f"SpikeTrain.spikes: expected int8 of shape [T, ...] with T >= 1, got {spikes.dtype} of shape "
                f"{tuple(spikes.shape)}. Put the time axis first and convert with .to(torch.int8)."
            )
        check_weights("SpikeTrain", spikes.shape[0], weight, self.zero_point)
        if spikes.numel():
            low, high = (int(v) for v in spikes.aminmax())
            if low < -1 or high > 1:
                raise EncodingError(
                    f"SpikeTrain.spikes: expected -1, 0 or 1, got values in [{low}, {high}]. "
                    "Spread larger values over timesteps, or give the timestep a weight."
                )

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Return the spikes, for `np.asarray(train)`."""
        found = self.spikes.cpu().numpy()
        found = found if dtype is None else found.astype(dtype, copy=False)
        return found.copy() if copy else found

    @property
    def num_timesteps(self) -> int:
        """T, the length of the train."""
        return self.spikes.shape[0]

    @property
    def num_spikes(self) -> int:
        """Spikes of either sign in the whole train."""
        return int(self.spikes.count_nonzero())

    @property
    def firing_rate(self) -> float:
        """Spikes of either sign / (neurons x timesteps), 0 to 1; 0 for a train without neurons."""
        return self.num_spikes / max(self.spikes.numel(), 1)


def check_weights(where: str, num_timesteps: int, weight: Tensor, zero_point: int) -> None:
    """Raise an EncodingError unless there is one small enough integer per timestep and the zero point has 32 bits."""
    if weight.dtype != torch.int64 or weight.shape != (num_timesteps,):
        raise EncodingError(
            f"{where}.timestep_weight: expected int64 of shape ({num_timesteps},), got {weight.dtype} of "
            f"shape {tuple(weight.shape)}. Give one integer per timestep."
        )
    if sum(abs(w) for w in weight.tolist()) >= 2**62:
        raise EncodingError(
            f"{where}.timestep_weight: expected magnitudes that add up to less than 2^62, so that values fit 64 "
            f"bits; got up to {max(weight.tolist(), key=abs)}. Use smaller weights."
        )
    if type(zero_point) is not int or not 0 <= zero_point < 2**32:
        raise EncodingError(
            f"{where}.zero_point: expected an integer in [0, 2^32), since counts have 32 bits; got {zero_point!r}."
        )
