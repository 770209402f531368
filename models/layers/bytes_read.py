"""The bytes of weights that spikes read, with a gradient: what a penalty on reading pulls at in training."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .coarse import Coarse

# Width of the slope that stands for a step, as a share of the ratio at which it is: channels near an edge are moved.
_WIDTH = 0.25


def bits_read(
    x: Float[Tensor, "*tokens in_features"],
    ratio: Float[Tensor, "*tokens in_features"],
    edges: list[Tensor],
    increments: list[float],
) -> Float[Tensor, ""]:
    """Return how many bits of a weight a channel reads: the mean over channels and tokens.

    A channel with |x| / threshold at an edge or above reads that edge's increment more. Forward that is exact but for
    ties. Backward each step is a sigmoid's slope of a quarter of its edge's width, and the threshold, mean|x| / k,
    moves with x: a channel near an edge is pulled below it, and all others are pushed up a little, so that to make all
    of x smaller, which changes no count, has no gradient.

    Args:
        x: activations.
        ratio: |x| / threshold, without gradient.
        edges: rising, above 0; each a tensor of one number.
        increments: in bits; may be below 0.

    Source:
        Sigmoids in the place of steps, for thresholds that are learned under a penalty: Azarian et al., Learned
        Threshold Pruning, arXiv:2003.00075. Here the step itself runs forward (straight-through, Bengio et al.,
        arXiv:1308.3432), and activations learn in the place of thresholds.
    """
    return _BitsRead.apply(x, ratio, increments, *edges)  # pyright: ignore[reportReturnType]


class _BitsRead(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ratio: Tensor, increments: list[float], *edges: Tensor) -> Tensor:
        ctx.save_for_backward(x, ratio, *edges)
        ctx.increments = increments
        bits = torch.zeros((), device=x.device)
        for more, edge in zip(increments, edges, strict=True):
            bits += more * (ratio >= edge).mean(dtype=torch.float32)
        return bits

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, ratio, *edges = ctx.saved_tensors
        slope = torch.zeros_like(ratio)
        for more, edge in zip(ctx.increments, edges, strict=True):
            width = _WIDTH * edge
            risen = torch.sigmoid((ratio - edge) / width)
            slope += more * risen * (1 - risen) / width
        # d ratio_i / d |x_j| = ([i = j] - ratio_i / sum of ratios) / threshold; and threshold = |x| / ratio.
        through_mean = (slope * ratio).sum(-1, keepdim=True) / ratio.sum(-1, keepdim=True).clamp(min=1e-30)
        inverse = torch.where(x == 0, 0.0, ratio / x)  # with the sign of x
        scale = grad_outputs[0] / ratio.numel()
        return (scale * inverse * (slope - through_mean)).to(x.dtype), None, None, *(None for _ in edges)


def steps_of(quiet: float, weight_bits: int, coarse: Coarse, growth: Tensor) -> tuple[list[Tensor], list[float]]:
    """Return the ratios at which a channel reads more bits of its row, and how many more.

    Args:
        quiet: ratio below which a channel is silent, whatever it would round to.
        weight_bits: of the layer's own rows.
        coarse: of its coarse rows.
        growth: of silence, see `SpikeAwareLinear`.

    >>> steps_of(1.6, 4, ((2, 4),), torch.ones(()))
    ([tensor(1.6000), tensor(4.5000)], [2.0, 2.0])
    >>> steps_of(6.0, 4, ((2, 4),), torch.ones(()))  # no channel is left for coarse rows
    ([tensor(6.)], [4.0])
    """
    steps, bits = [(quiet * growth).clamp(min=0.5)], [0.0]
    for level_bits, up_to in coarse:
        if up_to + 0.5 > quiet:
            steps.append(up_to * growth + 0.5)
            bits.append(float(level_bits))
    bits.append(float(weight_bits))
    return steps, [more - less for less, more in pairwise(bits)]


def scale_bytes_when_read(
    num_in: int, num_out: int, weight_bits: int, group_size: int | None, coarse: Coarse, *, compact: bool
) -> int:
    """Return the bytes of scales and minima that a token reads of a layer that trains, as `scale_bytes_of` has them."""
    has_minimum = weight_bits == 4
    num_groups = max(-(-num_in // (group_size or max(num_in, 1))), 1)
    per_output = 4 * num_groups * (1 + has_minimum)
    if compact:
        per_output = -(-num_groups * (15 if has_minimum else 7) // 8) + 4 * (1 + has_minimum)
    return num_out * per_output
