"""Plain INT8: a token's largest magnitude becomes a count of 127, whatever the others are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from ..errors import InputError
from .adaptive_threshold import check_limits, count_by_statistic
from .base import NEURONS, CountBounds, KernelRule, Neuron, checked_activations
from .spike_count import SpikeCount

# Number of this rule in threshold_numba.py and threshold_triton.py.
RULE = 2


@NEURONS.register("largest-magnitude")
@dataclass(frozen=True)
class LargestMagnitude(Neuron[None]):
    """threshold = max|x| / levels over the channels of a token; count = round(x / threshold), half to even.

    With 127 levels the counts are the token's INT8 codes, as activations are usually quantised. In the code
    `BidirectionalBitwise` they take a sign and 7 bit planes, the trains of SpikingBrain 2.0: every token has a count of
    127, so each train has 7 timesteps. `AdaptiveThreshold` sets the step by the mean instead, so that an outlier costs
    itself more spikes, and not the other channels their precision.

    The maximum depends on no order of addition, so all devices and kernels find the same counts.

    Attributes:
        levels: count of a token's largest magnitude.
        floor: smallest threshold, in the unit of x; makes an all-zero token silent.
        ceiling: largest threshold, in the unit of x.

    Source:
        SpikingBrain 2.0 (arXiv:2604.22575): INT8 activations, a sign and 7 bit planes. The clamp is that of
        SpikingBrain's neuron.

    >>> import torch
    >>> LargestMagnitude()(torch.tensor([[1.0, -0.5, 0.003, 0.0]])).count.tolist()
    [[127, -64, 0, 0]]
    """

    most_levels: ClassVar[int] = 2**20

    levels: int = 127
    floor: float = 1e-5
    ceiling: float = 1e4

    def __post_init__(self) -> None:
        if type(self.levels) is not int or not 1 <= self.levels <= self.most_levels:
            raise InputError(
                f"LargestMagnitude.levels: expected an integer from 1 to {self.most_levels}, got {self.levels!r}. INT8 "
                "has 127."
            )
        check_limits(self)

    def initial_state(self, x: Tensor) -> None:
        """Return None: nothing is carried from step to step."""

    def step(self, x: Float[Tensor, "*shape"], state: None = None) -> tuple[SpikeCount, None]:
        """Count the spikes of one activation tensor.

        Args:
            x: activations, [*shape, N] with N channels a token; N = 0 and empty shapes are allowed.
            state: None.
        Returns:
            Counts int32 [*shape, N] with threshold float32 [*shape, 1].
        Raises:
            InputError: x is no floating-point tensor with a channel axis.
            ActivationError: x holds NaN or infinity, or a count does not fit 32 bits, where the ceiling binds.
        """
        wide = checked_activations(x, "LargestMagnitude")
        largest = wide.abs().amax(-1, keepdim=True) if x.shape[-1] else wide.new_zeros(*x.shape[:-1], 1)
        remedy = "Raise the ceiling"
        return count_by_statistic(self, x, wide, largest, float(self.levels), may_overflow=False, remedy=remedy), None

    def kernel_rule(self) -> KernelRule:
        """Return the rule that kernels run; see `Neuron.kernel_rule`."""
        numbers = (float(self.levels), float(self.floor), float(self.ceiling))
        return KernelRule(RULE, numbers, (self.floor, self.ceiling))

    def count_bounds(self, num_channels: int) -> CountBounds:
        """Return |count| <= levels, with room for the division's rounding, in one channel and in the mean."""
        return CountBounds(self.levels + 1.0, float(self.levels))
