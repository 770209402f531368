"""Mixture of experts: every token goes through the shared experts and a few routed ones."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from .config import SpikingBrainConfig
from .mlp import SwiGLU


class MixtureOfExperts(nn.Module):
    """y = sum over shared experts E(x) + sum over the chosen experts e of p_e * E_e(x), with p = softmax(router(x)).

    The probabilities p are over all experts and are not renormalised over the chosen ones. With N equal experts and an
    even router, the routed part therefore has weight k / N, as the report's upcycling (eq. 15 to 18) assumes.

    Only experts with at least one routed token run, each once, on its own tokens.

    Args:
        config: the model's configuration.

    Source:
        SpikingBrain (arXiv:2509.05276), section 2; Fedus et al., Switch Transformers, arXiv:2101.03961.
    """

    def __init__(self, config: SpikingBrainConfig) -> None:
        super().__init__()
        width = config.expert_intermediate_size or config.intermediate_size
        self.num_chosen = config.num_experts_per_token
        self.router = nn.Linear(config.hidden_size, config.num_experts, bias=False)
        self.experts = nn.ModuleList(SwiGLU(config.hidden_size, width) for _ in range(config.num_experts))
        self.shared = nn.ModuleList(SwiGLU(config.hidden_size, width) for _ in range(config.num_shared))

    def forward(
        self, x: Float[Tensor, "B L hidden"], valid: Bool[Tensor, "B L"] | None = None
    ) -> tuple[Float[Tensor, "B L hidden"], Float[Tensor, ""]]:
        """Route each token and run the experts.

        Args:
            x: normalised activations.
            valid: False for padding, which is left out of the load; None if there is no padding.
        Returns:
            The result, and the load-balancing loss of this layer (see `load_balancing_loss`).
        """
        tokens = x.flatten(0, 1)
        probability = self.router(tokens).float().softmax(-1)  # [tokens, experts]
        weight, chosen = probability.topk(self.num_chosen, -1)  # [tokens, k]
        y = self._routed(tokens, weight.to(x.dtype), chosen)
        for expert in self.shared:
            y = y + expert(tokens)
        text = slice(None) if valid is None else valid.flatten()
        return y.view_as(x), load_balancing_loss(probability[text], chosen[text])

    def _routed(self, tokens: Tensor, weight: Tensor, chosen: Tensor) -> Tensor:
        """Group the tokens by expert, run each expert that has tokens, and sum the results per token."""
        y = torch.zeros_like(tokens)
        order = chosen.flatten().argsort(stable=True)
        num_tokens = chosen.flatten().bincount(minlength=len(self.experts)).tolist()
        first = 0
        for expert, num in zip(self.experts, num_tokens, strict=True):
            if num:
                assigned = order[first : first + num]
                rows = assigned.div(self.num_chosen, rounding_mode="floor")
                y = y.index_add(0, rows, expert(tokens[rows]) * weight.flatten()[assigned, None])
                first += num
        return y


def load_balancing_loss(
    probability: Float[Tensor, "tokens experts"], chosen: Int[Tensor, "tokens k"]
) -> Float[Tensor, ""]:
    """Return N * sum over experts of (share of the routes that go to it) * (its mean probability).

    It is 1 if the load is even, N if one expert gets everything, and 0 without tokens.

    Args:
        probability: router probability of each expert for each token.
        chosen: experts that each token is routed to.

    Source:
        Fedus et al., Switch Transformers, arXiv:2101.03961, eq. 4 to 6.
    """
    num_tokens, num_experts = probability.shape
    share = chosen.flatten().bincount(minlength=num_experts) / max(chosen.numel(), 1)
    return num_experts * (share * probability.sum(0) / max(num_tokens, 1)).sum()
