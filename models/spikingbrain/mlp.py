"""The dense feed-forward part; each expert is one too."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from .kernels import kernels_for


class SwiGLU(nn.Module):
    """y = down(silu(gate(x)) * up(x)), without biases.

    Args:
        hidden_size: width of the residual stream.
        intermediate_size: width between the projections.

    Source:
        Shazeer, GLU Variants Improve Transformer, arXiv:2002.05202.
    """

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, x: Float[Tensor, "*tokens hidden"]) -> Float[Tensor, "*tokens hidden"]:
        """Run the feed-forward part on each token independently."""
        x = cast_once(x, self.gate_proj)
        return self.down_proj(silu_product(self.gate_proj(x), self.up_proj(x)))


def silu_product(gate: Float[Tensor, "*tokens width"], up: Float[Tensor, "*tokens width"]) -> Tensor:
    """Return silu(gate) * up."""
    kernels = kernels_for("norm", gate, up)
    return F.silu(gate) * up if kernels is None else kernels.silu_product(gate, up)


def cast_once(x: Tensor, reader: nn.Module) -> Tensor:
    """Return activations in the dtype of autocast, in which several plain layers would each cast them anew.

    Args:
        x: what the layers read.
        reader: one of them.
    """
    if type(reader) is nn.Linear and torch.is_autocast_enabled(x.device.type):
        return x.to(torch.get_autocast_dtype(x.device.type))
    return x
