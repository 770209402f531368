"""Root-mean-square normalisation, on its own and together with the residual addition before it."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from .kernels import kernels_for


class RMSNorm(nn.Module):
    """y = x / sqrt(mean(x^2) + eps) * weight over the last axis, in at least float32, then cast once to x's dtype.

    Args:
        dim: number of channels.
        eps: added to the mean square.

    >>> RMSNorm(2, eps=0.0)(torch.tensor([[3.0, -3.0]])).tolist()
    [[1.0, -1.0]]
    """

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Float[Tensor, "*tokens dim"]) -> Float[Tensor, "*tokens dim"]:
        """Normalise activations.

        Args:
            x: activations of any floating-point dtype.
        """
        kernels = kernels_for("norm", x, self.weight)
        if kernels is not None:
            return kernels.rms_norm(x, self.weight, self.eps)[0]
        return self._normalised(_wide(x)).to(x.dtype)

    def after_residual(
        self, x: Float[Tensor, "*tokens dim"], residual: Float[Tensor, "*tokens dim"]
    ) -> tuple[Float[Tensor, "*tokens dim"], Float[Tensor, "*tokens dim"]]:
        """Return norm(x + residual) and x + residual, both in the dtype of the residual.

        The sum is computed in float32 and normalised before it is rounded. In bfloat16, the first result is therefore
        not the norm of the second. The fused kernel of flash-linear-attention, which the released model uses, does the
        same.

        Args:
            x: output of a layer.
            residual: the stream it is added to.
        """
        kernels = kernels_for("norm", x, self.weight, residual)
        if kernels is not None:
            return kernels.rms_norm(x, self.weight, self.eps, residual)
        total = _wide(x) + _wide(residual)
        return self._normalised(total).to(residual.dtype), total.to(residual.dtype)

    def _normalised(self, x: Tensor) -> Tensor:
        if x.is_cuda:  # one kernel, and few for the gradients
            return F.rms_norm(x, x.shape[-1:], self.weight.to(x.dtype), self.eps)
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight.to(x.dtype)

    def extra_repr(self) -> str:
        """Show the settings when the module is printed."""
        return f"{self.weight.numel()}, eps={self.eps}"


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
