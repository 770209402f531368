"""What a neuron returns: how many spikes, and the threshold that each of them stands for."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import ActivationError

# The largest float32 below 2^31: a ratio up to here becomes an int32 without wrapping.
LARGEST_COUNT = 2147483520.0


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
    """Signed spike counts, and the threshold: the activation that one spike stands for.

    Attributes:
        count: signed spikes per neuron, int32, [*shape, N].
        threshold: activation that one spike stands for, in the unit of the activation; broadcasts against count
            (one value per token: [*shape, 1]).
        source: the activation that was counted; kept only while gradients are recorded.
        extent: the least and the largest count of all tokens that these are some of, by which a train's length is
            chosen; None if these are all.
    """

    count: Int[Tensor, "*shape"]
    threshold: Float[Tensor, "..."]
    source: Float[Tensor, "*shape"] | None = field(default=None, repr=False)
    extent: tuple[int, int] | None = field(default=None, repr=False)

    @functools.cached_property
    def by_token(self) -> Int[Tensor, "tokens channels"]:
        """The counts with all tokens in one axis, always the same tensor."""
        return self.count.reshape(self.count.shape[:-1].numel(), self.count.shape[-1])

    def activation(self) -> Float[Tensor, "*shape"]:
        """Return count * threshold, the activation as the spikes carry it, in the dtype of the threshold.

        Where gradients are recorded, the gradient passes to the counted activation unchanged (straight-through).
        """
        value = self.count * self.threshold
        return value if self.source is None else straight_through(self.source, value)


def straight_through(source: Tensor, value: Tensor) -> Tensor:
    """Return value, with the gradient of the identity to source, which it is a rounded form of."""
    return _StraightThrough.apply(source, value)  # pyright: ignore[reportReturnType]


def rounded(ratio: Tensor, quiet: float = 0.0) -> Tensor:
    """Round x / threshold in place, half to even, and return it; where |x / threshold| < quiet, it becomes 0.

    This is the rounding that kernels have copies of.
    """
    if quiet > 0:
        ratio.masked_fill_(ratio.abs() < quiet, 0)
    return ratio.round_()


def count_spikes(
    x: Float[Tensor, "*shape"],
    threshold: Float[Tensor, "*tokens 1"],
    source: Float[Tensor, "*shape"],
    *,
    may_overflow: bool,
    neuron: object,
    remedy: str,
    to_count: Callable[[Tensor], Tensor] = rounded,
) -> SpikeCount:
    """Return the counts of x / threshold, for every neuron with one threshold per token.

    Args:
        x: activations, finite, [*tokens, N], of the dtype of the threshold, without gradient.
        threshold: [*tokens, 1], > 0.
        source: the activations before they were converted to this dtype.
        may_overflow: whether a count may not fit 32 bits; the counts are checked only then.
        neuron: for the message.
        remedy: what to change about it, for the message.
        to_count: turns x / threshold, which it may change, into whole numbers, of any dtype.
    Raises:
        ActivationError: a count does not fit 32 bits.
    """
    ratio = x / threshold
    if may_overflow and ratio.numel() and float(ratio.abs().max()) > LARGEST_COUNT:
        raise ActivationError(
            f"{neuron}: expected counts that fit 32 bits, got {float(ratio.abs().max()):.3g} spikes for |x| up to "
            f"{float(x.abs().max()):.3g}. {remedy} or scale the activations."
        )
    keep = torch.is_grad_enabled() and source.requires_grad
    return SpikeCount(to_count(ratio).to(torch.int32), threshold, source if keep else None)
