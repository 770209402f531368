"""Products with weights that no formula of ours counts: how many multiply-accumulates they are, at most."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn


def has_products(module: nn.Module) -> bool:
    """Return whether a module has weights of its own of two or more axes."""
    return any(p is not None and p.ndim >= 2 for p in module._parameters.values())


def count_macs(module: nn.Module, arguments: tuple, keywords: dict) -> tuple[int, int]:
    """Return the vectors of a call, and the multiply-accumulates of its module's own weights.

    A convolution is counted exactly. A matrix takes part if one of its axes is as wide as the vectors; then every
    vector is multiplied with all of it. Of experts in one tensor, [experts, ...], each vector goes through as many as
    an argument of integers, [vectors, k], names, or through one.

    Args:
        module: the module.
        arguments: of the call, by position.
        keywords: of the call, by name.
    """
    given = [value for value in (*arguments, *keywords.values()) if isinstance(value, Tensor)]
    x = next((value for value in given if value.is_floating_point()), None)
    if x is None or x.ndim == 0:
        return 0, 0
    weights = [p for p in module._parameters.values() if p is not None and p.ndim >= 2]
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        positions = _positions(module, x)
        return positions, positions * module.weight.numel()
    width, vectors = x.shape[-1], x.shape[:-1].numel()
    index = next((v for v in given if v.ndim == 2 and v.dtype in (torch.int32, torch.int64)), None)
    macs = sum(vectors * weight.numel() for weight in weights if weight.ndim == 2 and width in weight.shape)
    experts = [weight for weight in weights if weight.ndim == 3 and len(weight) > 1]
    if any(width in weight.shape[1:] for weight in experts):
        routes = vectors * (1 if index is None else index.shape[-1])
        macs += sum(routes * weight[0].numel() for weight in experts)
    return vectors, macs


def _positions(conv: Any, x: Tensor) -> int:
    """Return the outputs of a convolution per output channel, over the batch."""
    num_axes = len(conv.kernel_size)
    batch = x.shape[: -1 - num_axes].numel()
    outputs = []
    for axis in range(num_axes):
        size, kernel = x.shape[axis - num_axes], conv.dilation[axis] * (conv.kernel_size[axis] - 1) + 1
        padded = size + kernel - 1 if conv.padding == "same" else size
        if not isinstance(conv.padding, str):
            padded = size + 2 * conv.padding[axis]
        outputs.append(max((padded - kernel) // conv.stride[axis] + 1, 0))
    return batch * math.prod(outputs)
