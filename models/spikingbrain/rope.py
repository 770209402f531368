"""Rotary position embedding over all channels of a head, in the rotate-half layout of NeoX and Qwen2."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .kernels import kernels_for


def rotary_angles(
    positions: Int[Tensor, "B L"], dim: int, theta: float, dtype: torch.dtype
) -> tuple[Float[Tensor, "B L 1 dim"], Float[Tensor, "B L 1 dim"]]:
    """Return cosine and sine of angle_j = position * theta^(-2j / dim), for the channel pairs (j, j + dim / 2).

    Args:
        positions: position of each token; may be negative.
        dim: channels per head, even.
        theta: base.
        dtype: dtype of the result; angles are computed in at least float32.

    Source:
        Su et al., RoFormer, arXiv:2104.09864, section 3.2; the halves as in GPT-NeoX.
    """
    wide = torch.promote_types(dtype, torch.float32)
    frequency = theta ** (-torch.arange(0, dim, 2, device=positions.device, dtype=wide) / dim)
    angle = positions[:, :, None, None].to(wide) * frequency
    angle = torch.cat([angle, angle], -1)
    return angle.cos().to(dtype), angle.sin().to(dtype)


def rotate(
    x: Float[Tensor, "B L heads dim"], cos: Float[Tensor, "B L 1 dim"], sin: Float[Tensor, "B L 1 dim"]
) -> Float[Tensor, "B L heads dim"]:
    """Rotate each channel pair (j, j + dim / 2) of x by its angle.

    Args:
        x: queries or keys.
        cos: cosines from `rotary_angles`.
        sin: sines from `rotary_angles`.

    >>> quarter = torch.tensor([[[[0.0, 0.0]]]]), torch.tensor([[[[1.0, 1.0]]]])
    >>> rotate(torch.tensor([[[[1.0, 0.0]]]]), *quarter).tolist()
    [[[[0.0, 1.0]]]]
    """
    kernels = kernels_for("heads", x.detach(), cos, sin)
    if kernels is not None:
        return _Rotation.apply(x, cos, sin, kernels)
    first, second = x.chunk(2, -1)
    return x * cos.to(x.dtype) + torch.cat([-second, first], -1) * sin.to(x.dtype)


class _Rotation(torch.autograd.Function):
    """The rotation by a kernel; its gradient is rotated back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, kernels: Any) -> Tensor:  # pyright: ignore
        ctx.save_for_backward(cos, sin)
        ctx.kernels = kernels
        return kernels.rotate(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:  # pyright: ignore
        cos, sin = ctx.saved_tensors
        return ctx.kernels.rotate(gradient, cos, -sin), None, None, None
