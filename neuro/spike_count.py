"""What a neuron hands on: how many spikes, and what one spike is worth."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor


class _StraightThrough(torch.autograd.Function):
    """Forward: the rounded value. Backward: the gradient of the identity (report 3.3.1)."""

    @staticmethod
    def forward(ctx, source: Tensor, value: Tensor) -> Tensor:
        ctx.dtype = source.dtype
        return value.clone()

    @staticmethod
    def backward(ctx, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        return grad_outputs[0].to(ctx.dtype), None


@dataclass(frozen=True)
class SpikeCount:
    """Signed spike counts and the activation that one spike stands for.

    Attributes:
        count: signed spikes per neuron, int32, [*shape, N].
        threshold: activation worth of one spike, in the unit of the activation; broadcasts against count
            (one value per token: [*shape, 1]).
        source: the activation that was counted; kept only while gradients are recorded.
    """

    count: Int[Tensor, "*shape"]
    threshold: Float[Tensor, "..."]
    source: Float[Tensor, "*shape"] | None = field(default=None, repr=False)

    def activation(self) -> Float[Tensor, "*shape"]:
        """Return count * threshold, the activation as the spikes carry it, in the dtype of the threshold.

        Where gradients are recorded, the gradient passes to the counted activation unchanged (straight-through).
        """
        value = self.count * self.threshold
        return value if self.source is None else straight_through(self.source, value)


def straight_through(source: Tensor, value: Tensor) -> Tensor:
    """Return value, with the gradient of the identity to source, which it is a rounded form of."""
    return _StraightThrough.apply(source, value)  # pyright: ignore[reportReturnType]
