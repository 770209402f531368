"""The adaptive-threshold neuron of SpikingBrain: one threshold per token, one rounding per channel."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError
from .base import (
    NEURONS,
    CountBounds,
    KernelRule,
    Neuron,
    checked_activations,
    raise_if_not_finite,
)
from .faults import are_marked
from .spike_count import LARGEST_COUNT, SpikeCount, count_spikes, rounded

# Number of this rule in threshold_numba.py and threshold_triton.py.
RULE = 1
_FLOAT32 = torch.finfo(torch.float32)


@NEURONS.register("adaptive-threshold")
@dataclass(frozen=True)
class AdaptiveThreshold(Neuron[None]):
    """threshold = mean|x| / k over the channels of a token; count = round(x / threshold), half to even.

    The mean is summed in float64 and rounded to float32 (for float64 input it stays float64), so it does not depend on
    the order of addition, and all devices and kernels find the same counts. The threshold carries no gradient;
    `SpikeCount.activation()` passes gradients straight through.

    Attributes:
        k: the mean |x| divided by the threshold, so about the mean |count|; larger means more spikes and less error.
        floor: smallest threshold, in the unit of x; makes an all-zero token silent.
        ceiling: largest threshold, in the unit of x.

    Source:
        SpikingBrain (arXiv:2509.05276), section 3.3.1, eq. 19 to 21.

    >>> AdaptiveThreshold(k=2.0)(torch.tensor([[1.0, -1.0, 4.0, 0.0]])).count.tolist()
    [[1, -1, 5, 0]]
    """

    k: float = 3.0
    floor: float = 1e-5
    ceiling: float = 1e4

    def __post_init__(self) -> None:
        check_numbers(self, "k", "floor", "ceiling")
        cls = type(self).__name__
        if not (math.isfinite(self.k) and self.k > 0):
            raise InputError(f"{cls}.k: expected a finite number > 0, got {self.k}. The report uses 3.")
        check_limits(self)
        _check_float32(self, "k")

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
            ActivationError: x holds NaN or infinity, or a count does not fit 32 bits (possible where the ceiling
                binds or k * N is that large, since otherwise |count| <= k * N + 1/2).
        """
        return count_by_mean(self, x), None

    def kernel_rule(self) -> KernelRule:
        """Return the rule that kernels run; see `Neuron.kernel_rule`."""
        return KernelRule(RULE, (float(self.k), float(self.floor), float(self.ceiling)), (self.floor, self.ceiling))

    def count_bounds(self, num_channels: int) -> CountBounds:
        """Return |count| <= k N + 1/2 and sum |count| <= (k + 1/2) N, which follow from the threshold mean|x| / k."""
        return CountBounds(self.k * num_channels + 1, self.k + 0.5)


def check_limits(neuron: Any) -> None:
    """Raise an InputError unless `floor` and `ceiling` of a neuron can limit thresholds."""
    check_numbers(neuron, "floor", "ceiling")
    if not 0 < neuron.floor <= neuron.ceiling < math.inf:
        raise InputError(
            f"{type(neuron).__name__}: expected 0 < floor <= ceiling < infinity, got floor {neuron.floor} and ceiling "
            f"{neuron.ceiling}. The report uses 1e-5 and 1e4."
        )
    _check_float32(neuron, "floor", "ceiling")


def _check_float32(neuron: Any, *names: str) -> None:
    for name in names:
        value = getattr(neuron, name)
        if not _FLOAT32.tiny <= value <= _FLOAT32.max:
            raise InputError(
                f"{type(neuron).__name__}.{name}: expected a number that float32 holds, {_FLOAT32.tiny:.3g} to "
                f"{_FLOAT32.max:.3g}, got {value:g}."
            )


def check_numbers(neuron: Any, *names: str) -> None:
    """Raise an InputError unless these settings of a neuron are numbers."""
    for name in names:
        value = getattr(neuron, name)
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise InputError(f"{type(neuron).__name__}.{name}: expected a number, got {value!r}.")


def count_by_mean(
    neuron: AdaptiveThreshold, x: Float[Tensor, "*shape"], to_count: Callable[[Tensor], Tensor] = rounded
) -> SpikeCount:
    """Do what `AdaptiveThreshold.step` does, for all neurons with its threshold.

    Args:
        neuron: has k, floor and ceiling.
        x: activations, [*shape, N].
        to_count: turns x / threshold into whole numbers, see `count_spikes`.
    """
    wide = checked_activations(x, type(neuron).__name__)
    total = wide.abs().sum(-1, keepdim=True, dtype=torch.float64)
    # By tensors: on a GPU PyTorch divides by a number through its rounded reciprocal, which is not the same.
    mean = (total / torch.full_like(total, max(x.shape[-1], 1))).to(wide.dtype)
    may_overflow = AdaptiveThreshold.count_bounds(neuron, x.shape[-1]).largest > LARGEST_COUNT
    remedy = "Lower k, raise the ceiling"
    options = {"may_overflow": may_overflow, "remedy": remedy, "to_count": to_count}
    return count_by_statistic(neuron, x, wide, mean, neuron.k, **options)


def count_by_statistic(
    neuron: Any,
    x: Float[Tensor, "*shape"],
    wide: Float[Tensor, "*shape"],
    statistic: Float[Tensor, "*tokens 1"],
    divisor: float,
    *,
    may_overflow: bool,
    remedy: str,
    to_count: Callable[[Tensor], Tensor] = rounded,
) -> SpikeCount:
    """Count by threshold = statistic / divisor, within floor and ceiling, for every neuron that has these two.

    Args:
        neuron: has floor and ceiling.
        x: activations, [*shape, N].
        wide: the same from `checked_activations`.
        statistic: of each token, in the dtype of wide; not finite where an activation is not.
        divisor: what it is divided by.
        may_overflow: whether a count may not fit 32 bits although the ceiling does not bind.
        remedy: what to change about the neuron then, for the message.
        to_count: turns x / threshold into whole numbers, see `count_spikes`.
    """
    threshold = (statistic / torch.full_like(statistic, divisor)).clamp(neuron.floor, neuron.ceiling)
    binds = statistic > divisor * neuron.ceiling
    if are_marked(x):
        threshold = threshold.masked_fill(binds, torch.nan)  # NaN for NaN: whoever reads the outputs sees it
        return count_spikes(wide, threshold, x, may_overflow=False, neuron=neuron, remedy="", to_count=to_count)
    if not bool(torch.isfinite(statistic).all()):
        raise_if_not_finite(x, type(neuron).__name__)
    may_overflow = bool(binds.any()) or may_overflow
    return count_spikes(wide, threshold, x, may_overflow=may_overflow, neuron=neuron, remedy=remedy, to_count=to_count)
