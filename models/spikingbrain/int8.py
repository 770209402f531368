"""Softmax attention in integers: spike counts of queries, INT8 keys and values, one float scale per token and head."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int8
from torch import Tensor, nn

from ...backends.gpu.one_pass import any_failed
from ...neuro import AdaptiveThreshold
from ...neuro.spike_count import straight_through
from ..layers.observing import query_observers
from . import swa
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


def counted_inputs(
    q: Float[Tensor, "B H L D"], k: Float[Tensor, "B Hk N D"], v: Float[Tensor, "B Hk N Dv"], neuron: AdaptiveThreshold
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], swa.Core]:
    """Return what `swa.attend` takes: query tensors and column tensors on counts and codes, and the core for them.

    While gradients are recorded these are the same values as floats, whose gradients pass straight through.

    Args:
        q: rotated queries.
        k: keys of the columns.
        v: values of the columns.
        neuron: gives each query and head a threshold.
    """
    if torch.is_grad_enabled() and q.requires_grad:
        query = (neuron(q).activation().to(q.dtype),)
        return query, (rounded_to_int8(k), rounded_to_int8(v)), swa.float_attention
    return count_queries(q, neuron), (*quantize_tokens(k), *quantize_tokens(v)), swa.integer_attention


def tell_queries(module: nn.Module, q: Tensor, neuron: AdaptiveThreshold, num_columns: int, **visible: Any) -> None:
    """Tell those who watch a module of attention what its queries count, and how many columns each sees.

    Args:
        module: of attention.
        q: as for `counted_inputs`.
        neuron: as for `counted_inputs`.
        num_columns: N.
        visible: arguments of `swa.attend` that say which columns a query sees.
    """
    observers = query_observers(module)
    if observers:
        count, seen = neuron(q).count, swa.columns_seen(q.shape[2], num_columns, device=q.device, **visible)
        for observer in observers:
            observer(count, seen)
