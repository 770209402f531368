"""The experts of a layer in one grouped call: which tokens each gets, and how all of them run at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ...backends.base import ExpertWeights
from ...neuro.checks import checks_all, needs_check
from .spike_linear import SpikeLinear
from .transforms import is_compiling, records_operators

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class Routes(NamedTuple):
    """The routes of some tokens to experts, those of an expert after one another, its tokens in order.

    Attributes:
        row: token of each route, int64 [routes].
        starts: first route of each expert, and after them the number of routes.
        place: place of each route among [tokens, k], counted through, int64 [routes].
    """

    row: Tensor
    starts: tuple[int, ...]
    place: Tensor

    def of(self, e: int) -> slice:
        """Return the routes of an expert."""
        return slice(self.starts[e], self.starts[e + 1])

    def with_all(self, num_tokens: int, num_more: int) -> Routes:
        """Return these routes, and after them those of so many more experts that get all tokens."""
        every = torch.arange(num_tokens, device=self.row.device)
        starts = (*self.starts, *(self.starts[-1] + num_tokens * (i + 1) for i in range(num_more)))
        return Routes(torch.cat([self.row, *[every] * num_more]), starts, self.place)

    def one_by_one(self) -> Routes:
        """Return the routes of what the experts made of their tokens: each has an input of its own."""
        return self._replace(row=torch.arange(len(self.row), device=self.row.device))


def routes_of(index: Int[Tensor, "tokens k"], num_experts: int) -> Routes:
    """Return the routes to experts; an index outside 0 to num_experts - 1 is no route."""
    flat = index.flatten()
    flat = flat.where((flat >= 0) & (flat < num_experts), num_experts)
    starts = (0, *accumulate(flat.bincount(minlength=num_experts)[:num_experts].tolist()))
    place = flat.argsort(stable=True)[: starts[-1]]
    return Routes(place.div(index.shape[1], rounding_mode="floor"), starts, place)


def run_grouped(
    layers: Sequence[Sequence[nn.Module]], x: Float[Tensor, "tokens channels"], routes: Routes
) -> list[Tensor] | None:
    """Run projections of all experts in one kernel, each on its own tokens, of which every one is counted once.

    Args:
        layers: projections of each expert that read x.
        x: activations.
        routes: which expert reads which of them.
    Returns:
        For each projection of an expert the outputs of all routes, [routes, outputs], equal to those of the layers one
        by one; None where they must run so: they do not all spike alike, are observed, have hooks or pass gradients, a
        graph is made, or there is no such kernel.
    """
    first: Any = layers[0][0]
    if not _are_alike(layers, first) or is_compiling() or records_operators(x) or checks_all():
        return None
    if x.ndim != 2 or x.shape[1] != first.in_features:
        return None
    if torch.is_grad_enabled() and (x.requires_grad or any(one._trains_bias for one in _every(layers))):
        return None
    num_used = sum(a < b for a, b in zip(routes.starts, routes.starts[1:], strict=False))
    backend = first._backend_for(x, -(-len(routes.row) // max(num_used, 1)))
    if needs_check(backend) or needs_check(first.neuron) or needs_check(first.encoder):
        return None
    weights = [[_weights_of(one) for one in expert] for expert in layers]
    found = backend.experts(x, routes.row, routes.starts, weights, first.neuron, first.encoder)
    assert found is None or all(len(y) == len(routes.row) for y in found)
    return found


def have_hooks(modules: Iterable[nn.Module]) -> bool:
    """Return whether modules have hooks or a forward of their own, which a grouped call would pass by."""
    return any("forward" in vars(one) or any(getattr(one, name) for name in _HOOKS) for one in modules)


def _every(layers: Sequence[Sequence[Any]]) -> list[Any]:
    return [one for expert in layers for one in expert]


def _are_alike(layers: Sequence[Sequence[Any]], first: Any) -> bool:
    """Return whether all are spiking layers with the plug-ins of the first, and the shapes of the first expert's."""
    for expert in layers:
        for one, like in zip(expert, layers[0], strict=True):
            if type(one) is not SpikeLinear or one.observers or have_hooks([one]):
                return False
            same = one.neuron == first.neuron and one.encoder == first.encoder and one.backend == first.backend
            sizes = (one.weight.shape, one.group_size, one.minimum is None, one.bias is None)
            if not same or sizes != (like.weight.shape, like.group_size, like.minimum is None, like.bias is None):
                return False
            if not _is_whole(one):
                return False
    return True


def _is_whole(layer: SpikeLinear) -> bool:
    """Return whether a layer's tensors are as it was made with; the separate steps check those that were replaced."""
    shape = (layer.out_features, len(layer.groups))
    scales = [layer.scale] if layer.minimum is None else [layer.scale, layer.minimum]
    fits = layer.weight.shape == (layer.out_features, layer.in_features) and layer.weight.dtype == torch.int8
    fits = fits and all(one.shape == shape and one.dtype == torch.float32 for one in scales)
    return fits and (layer.bias is None or layer.bias.shape == (layer.out_features,))


def _weights_of(layer: SpikeLinear) -> ExpertWeights:
    return ExpertWeights(layer.weight, layer.scale, layer.bias, layer.minimum, layer.group_size)
