"""One layer: norm, mixer, residual, norm, feed-forward part, residual."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from .attention import Attention, Context
from .cache import LayerState
from .config import LayerPlan, SpikingBrainConfig
from .mlp import SwiGLU
from .moe import MixtureOfExperts
from .norm import RMSNorm


class Block(nn.Module):
    """a = attn(attn_norm(x)); s = x + a; y = s + mlp(mlp_norm(s)).

    Args:
        config: the model's configuration.
        plan: the layer's plan.
    """

    def __init__(self, config: SpikingBrainConfig, plan: LayerPlan) -> None:
        super().__init__()
        self.attn_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.attn = Attention(config, plan)
        self.mlp_norm = RMSNorm(config.hidden_size, config.norm_eps)
        is_moe = plan.ffn == "moe"
        self.mlp = MixtureOfExperts(config) if is_moe else SwiGLU(config.hidden_size, config.intermediate_size)

    def forward(
        self, x: Float[Tensor, "B L hidden"], context: Context, state: LayerState | None = None
    ) -> tuple[Float[Tensor, "B L hidden"], Float[Tensor, ""] | None]:
        """Run the layer.

        Args:
            x: residual stream.
            context: values that all layers share in this call.
            state: the layer's state, updated in place.
        Returns:
            The residual stream, and the load-balancing loss of a mixture of experts, else None.
        """
        a = self.attn(self.attn_norm(x), context, state)
        normed, x = self.mlp_norm.after_residual(a, x)
        if isinstance(self.mlp, MixtureOfExperts):
            y, loss = self.mlp(normed, context.valid)
            return x + y, loss
        return x + self.mlp(normed), None
