"""The experts of a layer in one grouped call: which tokens each gets, and how all of them run at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ... import backends
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
        place: place of each route among [tokens, k], counted through, int64 [routes]; those of `with_all` have none.
        chosen: k.
    """

    row: Tensor
    starts: tuple[int, ...]
    place: Tensor
    chosen: int

    def of(self, e: int) -> slice:
        """Return the routes of an expert."""
        return slice(self.starts[e], self.starts[e + 1])

    def with_all(self, num_tokens: int, num_more: int) -> Routes:
        """Return these routes, and after them those of so many more experts that get all tokens."""
        every = torch.arange(num_tokens, device=self.row.device)
        starts = (*self.starts, *(self.starts[-1] + num_tokens * (i + 1) for i in range(num_more)))
        return self._replace(row=torch.cat([self.row, *[every] * num_more]), starts=starts)

    def one_by_one(self) -> Routes:
        """Return the routes of what the experts made of their tokens: each has an input of its own."""
        return self._replace(row=torch.arange(len(self.row), device=self.row.device))


def routes_of(index: Int[Tensor, "tokens k"], num_experts: int) -> Routes:
    """Return the routes to experts; an index outside 0 to num_experts - 1 is no route."""
    flat = index.flatten()
    flat = flat.where((flat >= 0) & (flat < num_experts), num_experts)
    starts = (0, *accumulate(flat.bincount(minlength=num_experts)[:num_experts].tolist()))
    place = flat.argsort(stable=True)[: starts[-1]]
    return Routes(place.div(index.shape[1], rounding_mode="floor"), starts, place, index.shape[1])


def in_order(index: Int[Tensor, "tokens k"], weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the experts of each token in rising order, in which a loop over them adds, and their weights."""
    index, order = index.sort(dim=1, stable=True)
    return index, weight.gather(1, order)


def sum_by_token(y: Float[Tensor, "routes hidden"], routes: Routes, num_tokens: int) -> Float[Tensor, "tokens hidden"]:
    """Return the sum over the routes of each token, added in the order of its experts, on a GPU as well."""
    k = routes.chosen
    parts = y.new_zeros(num_tokens * k, y.shape[1]).index_copy(0, routes.place, y[: len(routes.place)])
    total, *others = parts.view(num_tokens, k, y.shape[1]).unbind(1)
    of_all = [y[first : first + num_tokens] for first in range(len(routes.place), len(y), max(num_tokens, 1))]
    for part in (*others, *of_all):
        total = total + part
    return total


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
    used = [e for e in range(len(layers)) if routes.starts[e] < routes.starts[e + 1]]
    if not used or is_compiling() or records_operators(x) or checks_all():
        return None
    experts: list[Sequence[Any]] = [layers[e] for e in used]
    first = experts[0][0]
    if not _are_alike(experts, first) or x.ndim != 2 or x.shape[1] != first.in_features:
        return None
    every = [one for expert in experts for one in expert]
    if torch.is_grad_enabled() and (x.requires_grad or any(one._trains_bias for one in every)):
        return None
    backend = first.backend
    if backend == "auto":  # together, weights of experts soon exceed a cache
        num_weights = sum(one.in_features * one.out_features for one in every)
        backend = backends.auto(x.device, -(-len(routes.row) // len(used)), num_weights, in_groups=first.in_groups)
    if needs_check(backend) or needs_check(first.neuron) or needs_check(first.encoder):
        return None
    weights = [[_weights_of(one) for one in expert] for expert in experts]
    starts = [*(routes.starts[e] for e in used), routes.starts[-1]]
    return backend.experts(x, routes.row, starts, weights, first.neuron, first.encoder)


def have_hooks(modules: Iterable[nn.Module]) -> bool:
    """Return whether modules have hooks or a forward of their own, which a grouped call would pass by."""
    return any("forward" in vars(one) or any(getattr(one, name) for name in _HOOKS) for one in modules)


def _are_alike(experts: Sequence[Sequence[Any]], first: Any) -> bool:
    """Return whether all are spiking layers with the plug-ins of the first, and the shapes of the first expert's."""
    plug_ins, shapes = (
        _plug_ins_of(first),
        [None if type(one) is not SpikeLinear else _shape(one) for one in experts[0]],
    )
    for expert in experts:
        for one, shape in zip(expert, shapes, strict=True):
            if type(one) is not SpikeLinear or one.observers or have_hooks([one]) or _plug_ins_of(one) != plug_ins:
                return False
            if shape is None or _shape(one) != shape:
                return False
    return True


def _plug_ins_of(layer: Any) -> tuple[Any, ...]:
    return tuple(vars(layer).get(name) for name in ("neuron", "encoder", "backend"))


def _shape(layer: SpikeLinear) -> tuple[Any, ...] | None:
    """Return sizes of a layer; None if its tensors are not as it was made with, which the separate steps check."""
    tensors = layer._buffers
    weight, scale, minimum, bias = tensors["weight"], tensors["scale"], tensors["minimum"], layer.bias
    assert weight is not None
    assert scale is not None
    sizes = (layer.out_features, layer.in_features)
    shape = (sizes[0], 1 if layer.group_size is None else len(layer.groups))
    whole = weight.shape == sizes and weight.dtype == torch.int8
    whole = whole and all(one is None or (one.shape, one.dtype) == (shape, torch.float32) for one in (scale, minimum))
    if not whole or (bias is not None and bias.shape != sizes[:1]):
        return None
    return (*sizes, layer.group_size, minimum is None, bias is None)


def _weights_of(layer: Any) -> ExpertWeights:
    tensors = layer._buffers
    sizes = (layer.group_size, layer.units)
    return ExpertWeights(tensors["weight"], tensors["scale"], layer.bias, tensors["minimum"], *sizes)
