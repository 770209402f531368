"""The gradient of a spiking layer: that of its dense product."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class DenseGradient(torch.autograd.Function):
    """Forward: the exact spiking result. Backward: the gradient of x W^T, straight through the counts."""

    @staticmethod
    def forward(ctx, x: Tensor, y: Tensor, layer: Any) -> Tensor:
        """Return y for activations x of a `SpikeLinear`."""
        ctx.layer = layer  # not its float weights: they stay INT8 until backward needs them
        ctx.dtype = x.dtype
        return y.clone()

    @staticmethod
    def backward(ctx, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        """Return the gradient of x."""
        weight = ctx.layer.dequantized_weight()
        return (grad_outputs[0].to(weight.dtype) @ weight).to(ctx.dtype), None, None
