"""What a norm computes, found by trying: classes differ in names, weights and offsets, not in what they do."""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

# Largest difference from a formula, over the largest value; the formulas differ by far more, even in bfloat16.
_TOLERANCE = 0.03
_WIDTH = 8  # of the trial for a norm without weights, which has no width


def norm_sizes(module: nn.Module) -> tuple[str, dict[str, int]] | None:
    """Return the kind of a norm, "rms-norm" or "layer-norm", and its sizes; None if it computes something else.

    The norm is run on a few vectors. Sizes are the width ("dim"; missing without weights, as any width will do), and
    where they differ from the usual: "weight": 0 without weights, "offset": 1 if 1 + weight is the factor, "bias": 1
    for an RMS norm with a bias and 0 for a layer norm without.

    Args:
        module: any module whose class is called a norm.
    """
    own = {name: p for name, p in module._parameters.items() if p is not None}
    sizes = {p.numel() for p in own.values()}
    # A trial must leave no trace in running means, and what children do is counted where they are.
    if len(own) > 2 or len(sizes) > 1 or [*module.buffers(), *module.children()]:
        return None
    bias = next((p for name, p in own.items() if name.endswith(("bias", "beta"))), None)
    weight = next((p for p in own.values() if p is not bias), None)
    width = next(iter(sizes), 0)
    x, y = _trial(module, weight if weight is not None else bias)
    if y is None:
        return None
    for kind, factor in product(("rms-norm", "layer-norm"), _factors(weight)):
        centred = x - x.mean(-1, keepdim=True) if kind == "layer-norm" else x
        normed = centred * centred.square().mean(-1, keepdim=True).rsqrt()
        expected = normed * _flat(factor) + (0.0 if bias is None else _flat(bias))
        if float((y - expected).abs().max()) <= _TOLERANCE * max(float(expected.abs().max()), 1e-3):
            return kind, _sizes(kind, width, weight is not None, factor is not weight, bias is not None)
    return None


def _sizes(kind: str, width: int, has_weight: bool, is_offset: bool, has_bias: bool) -> dict[str, int]:
    sizes = {"dim": width} if width else {}
    if not has_weight:
        sizes["weight"] = 0
    elif is_offset:
        sizes["offset"] = 1
    if has_bias != (kind == "layer-norm"):
        sizes["bias"] = int(has_bias)
    return sizes


def _factors(weight: Tensor | None) -> list[Any]:
    return [1.0] if weight is None else [weight, weight + 1]


def _flat(value: Any) -> Any:
    return value.detach().float().flatten() if isinstance(value, Tensor) else value


@torch.no_grad()
def _trial(module: nn.Module, like: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return vectors far larger than any eps, with a mean, and what the norm makes of them; None if it takes none."""
    width = _WIDTH if like is None else like.numel()
    shape = (3, *(getattr(module, "normalized_shape", None) or (width,)))
    x = 100 * (torch.randn(shape, generator=torch.Generator().manual_seed(0)) + 1)
    x = x if like is None else x.to(like)
    try:
        y = type(module).forward(module, x)  # not the hooks of a call
        usable = isinstance(y, Tensor) and y.shape == x.shape and not y.is_meta
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError, AssertionError):
        usable = False
    return x.float().flatten(1), y.float().flatten(1) if usable else None  # pyright: ignore[reportPossiblyUnboundVariable]
