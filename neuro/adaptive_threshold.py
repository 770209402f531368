"""The adaptive-threshold neuron of SpikingBrain: one threshold per token, one rounding per channel."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import ActivationError, InputError
from .base import NEURONS, Neuron, raise_if_not_finite
from .spike_count import SpikeCount

# The largest float32 below 2^31: a ratio up to here becomes an int32 without wrapping.
_INT32_MAX = 2147483520.0
_FLOAT32 = torch.finfo(torch.float32)


@NEURONS.register("adaptive-threshold")
@dataclass(frozen=True)
class AdaptiveThreshold(Neuron[None]):
    """threshold = mean|x| / k over the channels of a token; count = round(x / threshold), half to even.

    The mean is summed in float64 and rounded to float32 (kept for float64 input), whatever the dtype of x: so it does
    not depend on the order of addition, and devices and kernels agree on the counts. The threshold carries no gradient;
    `SpikeCount.activation()` passes gradients straight through.

    Attributes:
        k: thresholds that the mean |x| is worth. It sets the mean |count|; larger means more spikes, less error.
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
        if not (math.isfinite(self.k) and self.k > 0):
            raise InputError(f"AdaptiveThreshold.k: expected a finite number > 0, got {self.k}. The report uses 3.")
        if not 0 < self.floor <= self.ceiling < math.inf:
            raise InputError(
                f"AdaptiveThreshold: expected 0 < floor <= ceiling < infinity, got floor {self.floor} and ceiling "
                f"{self.ceiling}. The report uses 1e-5 and 1e4."
            )
        for name, value in (("k", self.k), ("floor", self.floor), ("ceiling", self.ceiling)):
            if not _FLOAT32.tiny <= value <= _FLOAT32.max:
                raise InputError(
                    f"AdaptiveThreshold.{name}: expected a number that float32 holds, {_FLOAT32.tiny:.3g} to "
                    f"{_FLOAT32.max:.3g}, got {value:g}."
                )

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
        if not x.is_floating_point() or x.ndim == 0:
            raise InputError(
                f"AdaptiveThreshold: expected a floating-point tensor [..., N], got {x.dtype} of shape "
                f"{tuple(x.shape)}. Convert it, or add a channel axis."
            )
        wide = x.detach().to(torch.promote_types(x.dtype, torch.float32))
        total = wide.abs().sum(-1, keepdim=True, dtype=torch.float64)
        # By tensors: on a GPU PyTorch divides by a number through its rounded reciprocal, which is not the same.
        mean = (total / torch.full_like(total, max(x.shape[-1], 1))).to(wide.dtype)
        if not bool(torch.isfinite(mean).all()):
            raise_if_not_finite(x, "AdaptiveThreshold")
        threshold = (mean / torch.full_like(mean, self.k)).clamp(self.floor, self.ceiling)
        ratio = wide / threshold
        # |count| <= k * N + 1/2 unless the ceiling binds.
        may_overflow = self.k * x.shape[-1] + 1 > _INT32_MAX or bool((mean > self.k * self.ceiling).any())
        if may_overflow and float(ratio.abs().max()) > _INT32_MAX:
            raise ActivationError(
                f"AdaptiveThreshold: expected counts that fit 32 bits, got {float(ratio.abs().max()):.3g} spikes for "
                f"|x| up to {float(wide.abs().max()):.3g} with k = {self.k:g} and ceiling {self.ceiling:g}. "
                "Lower k, raise the ceiling or scale the activations."
            )
        source = x if torch.is_grad_enabled() and x.requires_grad else None
        return SpikeCount(ratio.round_().to(torch.int32), threshold, source), None
