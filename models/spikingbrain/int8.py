"""Softmax attention in integers: spike counts of queries, INT8 keys and values, one float scale per token and head."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int8
from torch import Tensor

from ...backends.gpu.one_pass import any_failed
from ...neuro import AdaptiveThreshold
from ...neuro.spike_count import straight_through
from .kernels import kernels_for


def quantize_tokens(
    x: Float[Tensor, "*tokens D"],
) -> tuple[Int8[Tensor, "*tokens D"], Float[Tensor, "*tokens 1"]]:
    """Return codes round(x / scale), half to even, and scale = max|x| / 127 over the last axis, clamped to [1e-5, 1e4].

    Args:
        x: keys or values; the last axis holds the channels of one token and head. Scales are float64 if x is float64,
            else float32.

    Source:
        The released W8ASpike code.

    >>> codes, scale = quantize_tokens(torch.tensor([[1.27, -0.634, 0.0]]))
    >>> codes.tolist(), round(scale.item(), 6)
    ([[127, -63, 0]], 0.01)
    """
    kernels = kernels_for("heads", x.detach())
    if kernels is not None:
        return kernels.quantize(x.detach())
    wide = x.detach().to(torch.promote_types(x.dtype, torch.float32))
    largest = wide.abs().amax(-1, keepdim=True)
    # Divided by a tensor: on a GPU, PyTorch would multiply by the rounded reciprocal of a number, which differs.
    scale = (largest / torch.full_like(largest, 127)).clamp(1e-5, 1e4)
    return (wide / scale).round_().clamp_(-128, 127).to(torch.int8), scale


def count_queries(q: Float[Tensor, "*tokens D"], neuron: AdaptiveThreshold) -> tuple[Tensor, Tensor]:
    """Return spike counts, [*tokens, D], int16 from a kernel or int32, and thresholds, float32 or 64 [*tokens, 1].

    Args:
        q: rotated queries; the last axis holds the channels of one token and head.
        neuron: gives each row a threshold.
    """
    kernels = kernels_for("heads", q.detach())
    if kernels is not None and neuron.count_bounds(q.shape[-1]).largest < 2**15:
        count, threshold, failed = kernels.count(q.detach(), neuron.kernel_rule())
        if not any_failed(failed):
            return count, threshold
    spikes = neuron(q)
    return spikes.count, spikes.threshold


def rounded_to_int8(x: Float[Tensor, "*tokens D"]) -> Float[Tensor, "*tokens D"]:
    """Return codes * scale, in the dtype of x; the gradient passes straight through.

    Args:
        x: keys or values, as for `quantize_tokens`.
    """
    codes, scale = quantize_tokens(x)
    value = (codes * scale).to(x.dtype)
    return straight_through(x, value) if torch.is_grad_enabled() and x.requires_grad else value
