"""Fused experts of transformers, whose weights are one tensor a projection, as experts of ordinary linear layers."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ...errors import InputError
from .graphs import experts_in_graph
from .grouped import Routes, have_hooks, in_order, routes_of, run_grouped, sum_by_token
from .shared_input import SharedInput
from .transforms import is_compiling, records_operators

# Names of the first projection of a fused expert: gate and up in one, or up alone.
_FIRST = ("gate_up_proj", "up_proj")
_DOWN = "down_proj"
# Largest difference of a result from the original's, over the original's largest magnitude.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
_HALF_TOLERANCE = 5e-2


class Gate(nn.Module):
    """What an expert does between and after its products, as the original class does it.

    Args:
        fused: the original experts; their weights are not kept.
        first: name of their first projection.
        num_channels: inputs of their second projection.
    """

    def __init__(self, fused: nn.Module, first: str, num_channels: int) -> None:
        super().__init__()
        self.num_channels = num_channels
        self.original = _without_parameters(fused)
        self.original._modules = copy.deepcopy(self.original._modules)
        self.first = first

    @property
    def is_plain(self) -> bool:
        """Whether it is act(g) * u for gate g and up u, and nothing else."""
        apply = getattr(type(self.original), "_apply_gate", None)
        is_default = apply is None or apply.__module__ == "transformers.integrations.moe"
        return self.first == _FIRST[0] and is_default and self._norm is None

    @property
    def _norm(self) -> Any:
        return getattr(self.original, "post_expert_norm", None)

    def forward(self, h: Tensor) -> Tensor:
        """Return the input of the second projection."""
        original: Any = self.original
        if self.first != _FIRST[0]:
            return original.act_fn(h)
        if hasattr(original, "_apply_gate"):
            return original._apply_gate(h)
        gate, up = h.chunk(2, -1)
        return original.act_fn(gate) * up

    def after(self, y: Tensor) -> Tensor:
        """Return the result of an expert, given that of its second projection."""
        return y if self._norm is None else self._norm(y)


class Experts(nn.Module):
    """The experts of one layer, which take the place of fused ones: only those with routed tokens run.

    y = sum over the chosen experts e of weight_e * E_e(x). An index outside the experts means none, as in transformers.
    Expert 3 is called "3", and its projections as the fused ones: "3.gate_up_proj" and "3.down_proj".

    Args:
        experts: both projections of each expert, in order, by name.
        gate: what is between and after the projections.
        by_blocks: the tokens come sorted, a block of equal size for each expert, with zeros where one is not routed to
            it (Llama 4); the weights are applied elsewhere.
    """

    def __init__(self, experts: Iterable[nn.ModuleDict], gate: Gate, *, by_blocks: bool = False) -> None:
        super().__init__()
        for e, expert in enumerate(experts):
            self.add_module(str(e), expert)
        self.num_experts = len(self._modules)
        self.hidden_size = next(iter(self._modules.values()))[_DOWN].out_features  # pyright: ignore
        self.gate, self.by_blocks = gate, by_blocks

    def forward(
        self,
        hidden_states: Float[Tensor, "tokens hidden"],
        top_k_index: Int[Tensor, "tokens k"] | None = None,
        top_k_weights: Float[Tensor, "tokens k"] | None = None,
    ) -> Float[Tensor, "tokens hidden"]:
        """Run each expert once, on its own tokens, and sum the results per token.

        Args:
            hidden_states: activations.
            top_k_index: experts of each token; None with `by_blocks`.
            top_k_weights: weight of each of them; None with `by_blocks`.
        """
        index, weights = top_k_index, top_k_weights
        if self.by_blocks:
            index, weights = self.routes(hidden_states), hidden_states.new_ones(len(hidden_states), 1)
        assert index is not None
        assert weights is not None
        if is_compiling() or records_operators(hidden_states):
            return experts_in_graph(self, hidden_states, index, weights)
        return self.run(hidden_states, index, weights)

    def run(
        self,
        hidden_states: Float[Tensor, "tokens hidden"],
        index: Int[Tensor, "tokens k"],
        weights: Float[Tensor, "tokens k"],
    ) -> Float[Tensor, "tokens hidden"]:
        """Run the experts outside of graphs; see `forward`."""
        index, weights = in_order(index, weights)
        routes = routes_of(index, self.num_experts)
        y = torch.zeros_like(hidden_states, dtype=torch.promote_types(hidden_states.dtype, weights.dtype))
        found = self._together(hidden_states, routes)
        if found is not None:
            found = (found * weights.flatten()[routes.place, None]).to(y.dtype)
            return sum_by_token(found, routes, len(y)).to(hidden_states.dtype)
        shared = SharedInput(hidden_states, (expert[self.gate.first] for expert in self._in_order()))
        for e, expert in enumerate(self._in_order()):  # as the original sums them
            rows, share = routes.row[routes.of(e)], weights.flatten()[routes.place[routes.of(e)], None]
            if len(rows):
                h = self.gate(expert[self.gate.first](shared.tokens(rows)))
                y = y.index_add(0, rows, (self.gate.after(expert[_DOWN](h)) * share).to(y.dtype))
        return y.to(hidden_states.dtype)

    def routes(
        self, hidden_states: Float[Tensor, "tokens hidden"], top_k_index: Int[Tensor, "tokens k"] | None = None
    ) -> Int[Tensor, "tokens k"]:
        """Return the expert of each route; what is none of 0 to num_experts - 1 means that there is no route."""
        if top_k_index is not None:
            return top_k_index
        block = torch.arange(len(hidden_states), device=hidden_states.device)
        block = block.div(max(len(hidden_states) // self.num_experts, 1), rounding_mode="floor")
        return block.where(hidden_states.any(-1), self.num_experts)[:, None]

    def _together(self, x: Tensor, routes: Routes) -> Tensor | None:
        """Run all experts at once, where they spike and nobody watches; see `run_grouped`."""
        experts = self._in_order()
        if not experts or len(routes.row) == 0 or have_hooks([*experts, self.gate]):
            return None
        found = run_grouped([(expert[self.gate.first],) for expert in experts], x, routes)
        if found is not None:
            found = run_grouped([(expert[_DOWN],) for expert in experts], self.gate(found[0]), routes.one_by_one())
        return None if found is None else self.gate.after(found[0])

    def _in_order(self) -> list[Any]:
        return [self._modules[str(e)] for e in range(self.num_experts)]


def is_fused(module: nn.Module) -> bool:
    """Return whether a module holds the weights of several experts in one tensor a projection."""
    shapes = [p.ndim for p in module._parameters.values() if p is not None]
    return _DOWN in module._parameters and 3 in shapes


def unfuse(module: nn.Module, *, verify: bool = True) -> Experts | str:
    """Return fused experts as `Experts`, whose linear layers are views of their weights, or why that cannot be.

    Args:
        module: as `is_fused` says.
        verify: compare the results of some experts with the original's; without, only names and shapes are looked at.
    """
    kind = type(module).__name__
    if "forward" in vars(module) or any(value for key, value in vars(module).items() if key.endswith("_hooks")):
        return f"{kind}: has hooks or a forward of its own, which a swap would lose"
    first = next((name for name in _FIRST if module._parameters.get(name) is not None), None)
    up, down = module._parameters.get(first or ""), module._parameters.get(_DOWN)
    known = {first, _DOWN, f"{first}_bias", f"{_DOWN}_bias"}
    others = [name for name, p in module._parameters.items() if p is not None and name not in known]
    if first is None or up is None or down is None or up.ndim != 3 or down.ndim != 3 or others:
        return f"{kind}: fused experts of a kind that is not known"
    if not up.is_floating_point() or not down.is_floating_point():
        return f"{kind}: its weights are {up.dtype}"
    columns = _matrices(up, down, num_parts=2 if first == _FIRST[0] else 1)
    if columns is None:
        return f"{kind}: fused experts whose shapes {tuple(up.shape)} and {tuple(down.shape)} are not known"
    gate = Gate(module, first, columns[1].shape[2])
    biases = [module._parameters.get(f"{name}_bias") for name in (first, _DOWN)]
    experts = []
    for e in range(len(up)):
        linears = [
            _view(weight[e], None if bias is None else bias[e], module.training)
            for weight, bias in zip(columns, biases, strict=True)
        ]
        experts.append(nn.ModuleDict(dict(zip((first, _DOWN), linears, strict=True))))
    by_blocks = len(inspect.signature(type(module).forward).parameters) == len(("self", "hidden_states"))
    unfused = Experts(experts, gate, by_blocks=by_blocks).train(module.training)
    # Weights that are not in memory are told where layers are chosen.
    if verify and not up.is_meta and (reason := _differs(module, unfused, hidden=columns[0].shape[2])):
        return f"{kind}: fused experts of a kind that is not known ({reason})"
    return unfused


class FusedExperts:
    """All fused experts of a model, and what takes their place.

    Args:
        model: any model.

    Attributes:
        experts: `Experts` by the id of the module that they replace.
        unknown: why others cannot be replaced, by name.
    """

    def __init__(self, model: nn.Module) -> None:
        self.experts: dict[int, Experts] = {}
        self.unknown: dict[str, str] = {}
        for name, module in model.named_modules():
            if is_fused(module):
                found = unfuse(module)
                if isinstance(found, Experts):
                    self.experts[id(module)] = found
                else:
                    self.unknown[name] = found
        self._inside = {id(part) for experts in self.experts.values() for part in experts.modules()}

    def __contains__(self, module: nn.Module) -> bool:
        """Return whether a module is one of those that take the place of fused experts."""
        return id(module) in self._inside

    def named_modules(self, model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        """Yield what `model.named_modules` does, with experts in the place of fused ones."""
        for name, module in model.named_modules():
            unfused = self.experts.get(id(module))
            yield from [(name, module)] if unfused is None else unfused.named_modules(prefix=name)


def unfuse_for(model: nn.Module, names: Iterable[str]) -> None:
    """Unfuse, in place, those experts of a model to which layers of these names belong; weights may be on "meta".

    Raises:
        InputError: they cannot be unfused.
    """
    wanted = {name.rpartition(".")[0].rpartition(".")[0] for name in names}  # of "experts.3.down_proj": "experts"
    for name, module in list(model.named_modules()):
        if name in wanted and is_fused(module):
            found = unfuse(module, verify=False)
            if not isinstance(found, Experts):
                raise InputError(f"{name}: {found}.")
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, found)


def own_weights(experts: Experts) -> None:
    """Give the layers that still are views of the fused weights weights of their own."""
    for module in experts.modules():
        if isinstance(module, nn.Linear):
            for name, p in list(module._parameters.items()):
                if p is not None:
                    module.register_parameter(name, nn.Parameter(p.detach().clone(), requires_grad=p.requires_grad))


def _matrices(up: Tensor, down: Tensor, num_parts: int) -> tuple[Tensor, Tensor] | None:
    """Return both weights as [experts, outputs, inputs], from either order of the axes; None if they do not fit."""
    if len(up) != len(down):
        return None
    if up.shape[2] == down.shape[1] and up.shape[1] == num_parts * down.shape[2]:
        return up, down
    if up.shape[1] == down.shape[2] and up.shape[2] == num_parts * down.shape[1]:
        return up.transpose(1, 2), down.transpose(1, 2)
    return None


def _view(weight: Tensor, bias: Tensor | None, training: bool) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    linear.weight = nn.Parameter(weight.detach(), requires_grad=weight.requires_grad)
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach(), requires_grad=bias.requires_grad)
    return linear.train(training)


def _without_parameters(module: nn.Module, **parameters: Tensor) -> Any:
    """Return a copy of a module that shares all but its own parameters."""
    shell = copy.copy(module)
    shell._parameters, shell._modules = dict(parameters), dict(module._modules)  # pyright: ignore[reportAttributeAccessIssue]
    return shell


@torch.no_grad()
def _differs(module: nn.Module, unfused: Experts, hidden: int) -> str:
    """Return how the results of the first experts differ from what the original's own code computes, or ""."""
    weights: Mapping[str, Any] = module._parameters
    num = 1 if unfused.by_blocks else min(3, unfused.num_experts)
    few: Any = _without_parameters(module, **{name: p[:num] for name, p in weights.items() if p is not None})
    sample = weights[_DOWN]
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(4, hidden, generator=draw).to(sample)
    index = torch.arange(8, device=x.device).view(4, 2) % num
    given = (x, index, torch.rand(4, 2, generator=draw).to(sample))
    if unfused.by_blocks:
        x[1] = 0
        given = (x,)
    ours = Experts([unfused.get_submodule(str(e)) for e in range(num)], unfused.gate, by_blocks=unfused.by_blocks)  # pyright: ignore
    forward = type(module).forward
    try:  # past transformers' choice among kernels, which all compute this
        expected = getattr(forward, "__wrapped__", forward)(few, *given)
        found = ours(*given)
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError, KeyError) as error:
        return f"its forward does not take tokens, experts and weights: {type(error).__name__}"
    if not isinstance(expected, Tensor) or expected.shape != found.shape:
        return "its result has another shape"
    # A weight that is not finite is told by name when it is quantised.
    largest = float(expected.abs().nan_to_num(posinf=0).max())
    worst = float((found - expected).abs().nan_to_num(posinf=0).max())
    return "its results are others" if worst > _TOLERANCE.get(x.dtype, _HALF_TOLERANCE) * largest else ""
