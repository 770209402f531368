"""The adaptive-threshold neuron with a dead zone: small activations have no spikes, however fine the steps are."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError
from .adaptive_threshold import AdaptiveThreshold, check_numbers, count_by_mean
from .base import NEURONS, CountBounds, KernelRule
from .spike_count import LARGEST_COUNT, SpikeCount, rounded


@NEURONS.register("dead-zone")
@dataclass(frozen=True)
class DeadZoneThreshold(AdaptiveThreshold):
    """count = round(x / threshold), half to even, and 0 where |x| < dead_zone * mean|x|; threshold = mean|x| / k.

    `AdaptiveThreshold` has one number for two things: k is how fine the steps of large activations are, and below half
    a step an activation is silent. Here the two are apart. A silent channel's weights are not read, so a dead zone
    saves bytes, and a fine step keeps the accuracy of what is left (a uniform quantiser with a dead zone).

    In float32, ratio = x / threshold, and a channel is silent where |ratio| < quiet, quiet = float32(k * dead_zone); at
    quiet itself it fires. Where no limit binds, that is |x| < dead_zone * mean|x|. Rounding alone silences |ratio| <=
    1/2, so a dead zone up to 1 / (2 k) changes nothing, and 0 is `AdaptiveThreshold`. It runs in the same kernels.

    Attributes:
        k: the mean |x| divided by the threshold; larger means finer steps.
        floor: smallest threshold, in the unit of x; makes an all-zero token silent.
        ceiling: largest threshold, in the unit of x.
        dead_zone: a channel is silent below it, in units of the token's mean |x|.

    Source:
        Threshold: SpikingBrain (arXiv:2509.05276), section 3.3.1, eq. 19 to 21. Dead zone: G. J. Sullivan, Efficient
        scalar quantization of exponential and Laplacian random variables, IEEE Transactions on Information Theory 42
        (1996).

    >>> import torch
    >>> DeadZoneThreshold(k=2.0, dead_zone=0.8)(torch.tensor([[1.0, -1.0, 4.0, 0.0]])).count.tolist()
    [[0, 0, 5, 0]]
    """

    k: float = 8.0
    dead_zone: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, "dead_zone")
        if not 0 <= self.k * self.dead_zone <= LARGEST_COUNT:
            raise InputError(
                f"{type(self).__name__}.dead_zone: expected a number from 0 to {LARGEST_COUNT / self.k:.3g}, beyond "
                f"which counts do not fit 32 bits, got {self.dead_zone}. 0.2 silences |x| below a fifth of its mean."
            )

    @property
    def quiet(self) -> float:
        """float32(k * dead_zone): below it, |x / threshold| is silent."""
        return float(np.float32(self.k * self.dead_zone))

    def step(self, x: Float[Tensor, "*shape"], state: None = None) -> tuple[SpikeCount, None]:
        """Count the spikes of one activation tensor; see `AdaptiveThreshold.step`."""
        return count_by_mean(self, x, functools.partial(rounded, quiet=self.quiet)), None

    def kernel_rule(self) -> KernelRule:
        """Return the rule that kernels run; see `Neuron.kernel_rule`."""
        return AdaptiveThreshold.kernel_rule(self)._replace(quiet=self.quiet)

    def count_bounds(self, num_channels: int) -> CountBounds:
        """Return the bounds of `AdaptiveThreshold`: a dead zone only takes spikes away."""
        return AdaptiveThreshold.count_bounds(self, num_channels)

    def compares_per_channel(self) -> int:
        """Return 1: with `quiet`."""
        return 1
