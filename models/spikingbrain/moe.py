"""Mixture of experts: every token goes through the shared experts and a few routed ones."""

from __future__ import annotations

import copy
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ...errors import InputError
from ..layers.grouped import Routes, have_hooks, in_order, routes_of, run_grouped, sum_by_token
from ..layers.shared_input import SharedInput
from .config import SpikingBrainConfig
from .mlp import SwiGLU, silu_product


class MixtureOfExperts(nn.Module):
    """y = sum over shared experts E(x) + sum over the chosen experts e of p_e * E_e(x), with p = softmax(router(x)).

    The probabilities p are over all experts and are not renormalised over the chosen ones. With N equal experts and an
    even router, the routed part therefore has weight k / N, as the report's upcycling (eq. 15 to 18) assumes.

    Only experts with at least one routed token run, each once, on its own tokens. Experts that are equal, as after
    conversion, are one module that stands for all of them, routed and shared (`SpikingBrainConfig.equal_experts`).

    Args:
        config: the model's configuration.
    Attributes:
        num_chosen: routed experts of a token, k.
        num_experts: routed experts, N.
        num_shared: experts of every token, S.
        are_equal: whether all experts are the module `experts[0]`.

    Source:
        SpikingBrain (arXiv:2509.05276), section 2; Fedus et al., Switch Transformers, arXiv:2101.03961.
    """

    def __init__(self, config: SpikingBrainConfig) -> None:
        super().__init__()
        width = config.expert_intermediate_size or config.intermediate_size
        self.num_chosen, self.num_experts = config.num_experts_per_token, config.num_experts
        self.num_shared, self.are_equal = config.num_shared, config.equal_experts
        routed, shared = (1, 0) if self.are_equal else (self.num_experts, self.num_shared)
        self.router = nn.Linear(config.hidden_size, config.num_experts, bias=False)
        self.experts = nn.ModuleList(SwiGLU(config.hidden_size, width) for _ in range(routed))
        self.shared = nn.ModuleList(SwiGLU(config.hidden_size, width) for _ in range(shared))

    @property
    def routed_experts(self) -> list[nn.Module]:
        """The N routed experts, in order; if they are equal, the same module N times."""
        return [self.experts[0]] * self.num_experts if self.are_equal else list(self.experts)

    @property
    def shared_experts(self) -> list[nn.Module]:
        """The S shared experts; see `routed_experts`."""
        return [self.experts[0]] * self.num_shared if self.are_equal else list(self.shared)

    def unshare(self) -> None:
        """Give each of equal experts a copy of the weights; `unshare_experts` does so for a whole model."""
        if self.are_equal:
            first = self.experts[0]
            self.experts.extend(copy.deepcopy(first) for _ in range(self.num_experts - 1))
            self.shared.extend(copy.deepcopy(first) for _ in range(self.num_shared))
            self.are_equal = False

    def forward(
        self, x: Float[Tensor, "B L hidden"], valid: Bool[Tensor, "B L"] | None = None
    ) -> tuple[Float[Tensor, "B L hidden"], Float[Tensor, ""]]:
        """Route each token and run the experts.

        Args:
            x: normalised activations.
            valid: False for padding, which is left out of the load; None if there is no padding.
        Returns:
            The result, and the load-balancing loss of this layer (see `load_balancing_loss`).
        Raises:
            InputError: equal experts, which are one set of weights, are to be trained.
        """
        self._check_trainable()
        tokens = x.flatten(0, 1)
        probability = self.router(tokens).float().softmax(-1)  # [tokens, experts]
        weight, chosen = probability.topk(self.num_chosen, -1)  # [tokens, k]
        chosen, weight = in_order(chosen, weight.to(x.dtype))
        if self.are_equal and self.training:  # one run; else each runs for its tokens, as experts that differ do
            y = self.experts[0](tokens) * (self.num_shared + weight.sum(-1, keepdim=True))
        else:
            routes = routes_of(chosen, self.num_experts)
            y = self._together(tokens, weight, routes)
            if y is None:
                y = self._one_by_one(tokens, weight, routes)
        text = slice(None) if valid is None else valid.flatten()
        return y.view_as(x), load_balancing_loss(probability[text], chosen[text])

    def _check_trainable(self) -> None:
        if not (self.are_equal and self.training and torch.is_grad_enabled()):
            return
        if any(parameter.requires_grad for parameter in self.experts.parameters()):
            raise InputError(
                f"MixtureOfExperts: its {self.num_experts + self.num_shared} experts are one set of weights, as after "
                "conversion, and would all learn the same. Call unshare_experts(model) before you make the optimiser, "
                "or let them require no gradients."
            )

    def _together(self, tokens: Tensor, weight: Tensor, routes: Routes) -> Tensor | None:
        """Run all experts at once, where they spike and nobody watches; the result is that of `_one_by_one`."""
        members: list[Any] = [*self.routed_experts, *self.shared_experts]
        if any(type(expert) is not SwiGLU for expert in members) or have_hooks(members):
            return None
        whole = routes.with_all(len(tokens), self.num_shared)
        found = run_grouped([(expert.gate_proj, expert.up_proj) for expert in members], tokens, whole)
        if found is None:
            return None
        down = [(expert.down_proj,) for expert in members]
        found = run_grouped(down, silu_product(*found), whole.one_by_one())
        if found is None:
            return None
        share = weight.flatten()[routes.place]
        share = torch.cat([share, share.new_ones(len(whole.row) - len(share))])
        return sum_by_token(found[0] * share[:, None], whole, len(tokens))

    def _one_by_one(self, tokens: Tensor, weight: Tensor, routes: Routes) -> Tensor:
        """Run each expert that has tokens, and sum the results per token."""
        members: list[Any] = [*self.routed_experts, *self.shared_experts]
        shared = SharedInput(tokens, (expert.gate_proj for expert in members if type(expert) is SwiGLU))
        y = torch.zeros_like(tokens)
        for e, expert in enumerate(self.routed_experts):
            rows, place = routes.row[routes.of(e)], routes.place[routes.of(e)]
            if len(rows):
                y = y.index_add(0, rows, expert(shared.tokens(rows)) * weight.flatten()[place, None])
        for expert in self.shared_experts:
            y = y + expert(shared.tokens())
        return y


def load_balancing_loss(
    probability: Float[Tensor, "tokens experts"], chosen: Int[Tensor, "tokens k"]
) -> Float[Tensor, ""]:
    """Return N * sum over experts of (share of the routes that go to it) * (its mean probability).

    It is 1 if the load is even, N if one expert gets everything, and 0 without tokens. A model returns its mean over
    the layers as `SpikingBrainOutput.aux_loss`, and adds it to its loss times `SpikingBrainConfig.aux_loss_weight`.

    Args:
        probability: router probability of each expert for each token.
        chosen: experts that each token is routed to.

    Source:
        Fedus et al., Switch Transformers, arXiv:2101.03961, eq. 4 to 6.
    """
    num_tokens, num_experts = probability.shape
    is_routed = chosen.flatten()[:, None] == torch.arange(num_experts, device=chosen.device)
    share = is_routed.sum(0) / max(chosen.numel(), 1)  # not by bincount, for which a GPU's host waits
    return num_experts * (share * probability.sum(0) / max(num_tokens, 1)).sum()
