"""What stands in a graph of torch.compile, torch.export or another tracer for a spiking layer: operators of `ops`."""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...errors import InputError
from ...registry import to_dict
from .transforms import records_operators

# Tensors of a layer that its operator takes, besides the bias.
_TENSORS = ("weight", "scale")


class GraphSettings(NamedTuple):
    """A layer's plug-ins for graphs.

    Attributes:
        text: all of them, as JSON; "" if a graph cannot hold one of them.
        obstacle: why not, or "".
        differentiable: whether gradients pass the neuron.
    """

    text: str
    obstacle: str
    differentiable: bool


def graph_settings(cls: type[nn.Module], neuron: Any, encoder: Any, backend: Any) -> GraphSettings:
    """Return the plug-ins of a layer for graphs: objects that cannot change, of classes that are registered.

    Args:
        cls: class of the layer.
        neuron: its neuron.
        encoder: its encoder.
        backend: its backend.
    """
    if cls.__bases__ != (nn.Module,):
        return GraphSettings("", f"the operator would not run what the subclass {cls.__name__} adds", False)
    try:
        text = json.dumps([p if p is None or isinstance(p, str) else _as_plain(p) for p in (neuron, encoder, backend)])
    except InputError as error:
        return GraphSettings("", str(error).removeprefix("save: "), False)
    return GraphSettings(text, "", neuron is not None and neuron.kernel_rule() is not None)


def _as_plain(plugin: Any) -> dict[str, Any]:
    try:
        return _cached(plugin)
    except TypeError:  # no hash
        return _plain(plugin)


def _plain(plugin: Any) -> dict[str, Any]:
    content = to_dict(plugin)
    parameters = getattr(type(plugin), "__dataclass_params__", None)
    if vars(plugin) and not (parameters and parameters.frozen):
        raise InputError(f"{type(plugin).__name__} is no frozen dataclass, so it may change after compilation")
    return content


_cached = functools.lru_cache(maxsize=256)(_plain)


# The open blocks of `uncompiled`; the first holds what all of them end with.
_blocks: list[Any] = []
_lock = threading.Lock()


@contextmanager
def uncompiled() -> Iterator[None]:
    """Let what torch.compile has compiled run as plain Python inside a `with` block, for all threads.

    Else hooks that were added to a compiled model would be ignored: PyTorch does not look for new ones.
    """
    with _lock:  # blocks of several threads may overlap
        _blocks.append(None if _blocks else torch.compiler.set_stance("force_eager"))
    try:
        yield
    finally:
        with _lock:
            first = _blocks.pop()  # not None for the last block that ends
            if first is not None:
                first.__exit__(None, None, None)


def in_graph(layer: Any, x: Tensor) -> Tensor:
    """Return the result of a `SpikeLinear` by the operator that a graph holds.

    Where there is none, torch.compile breaks the graph (with fullgraph=True it raises), and others raise.
    """
    obstacle = _obstacle_of_call(layer, x)
    if obstacle:
        return outside_graph(layer, obstacle, x)
    if layer.training and torch.is_grad_enabled() and (x.requires_grad or layer._trains_bias):
        layer._warn_of_training()
    return torch.ops.spikebrain.spike_linear(
        x, layer.weight, layer.scale, layer.bias, layer.graph_settings.text, layer.group_size, _name(layer)
    )


def outside_graph(layer: Any, obstacle: str, x: Tensor) -> Tensor:
    """Return the result of a layer that no graph can hold; see `in_graph`.

    Args:
        layer: with the methods `where` and `run`.
        obstacle: why not.
        x: its input.
    """
    _leave_graph(layer.where(), obstacle, x)
    return _outside(layer.run, x)


def experts_in_graph(experts: Any, hidden_states: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """Return the result of `Experts`; see `in_graph`. Shapes in the graph do not depend on who is routed where."""
    first, down = (
        [experts._modules[str(e)][name] for e in range(experts.num_experts)]
        for name in (experts.gate.first, "down_proj")
    )
    obstacle = _obstacle_of_experts(first, hidden_states) or _obstacle_of_experts(down, hidden_states)
    if obstacle:
        if torch.compiler.is_dynamo_compiling():  # other tracers may be able to record dense ones; the others raise
            _leave_graph("Experts", obstacle, hidden_states)
        return _outside(experts.run, hidden_states, index, weights)
    index, order = index.sort(dim=1, stable=True)  # in order, as the loop over the experts sums them
    chosen = index.flatten()
    x = hidden_states[:, None].expand(-1, index.shape[1], -1).reshape(len(chosen), hidden_states.shape[1])
    y = experts.gate.after(_routed(down, experts.gate(_routed(first, x, chosen)), chosen))
    y = y.view(*index.shape, y.shape[1]) * weights.gather(1, order)[..., None]
    y = torch.where(((index >= 0) & (index < experts.num_experts))[..., None], y, torch.zeros_like(y))
    dtype = torch.promote_types(hidden_states.dtype, weights.dtype)
    total = torch.zeros_like(hidden_states, dtype=dtype)
    for place in range(index.shape[1]):
        total = total + y[:, place].to(dtype)
    return total.to(hidden_states.dtype)


def _routed(layers: list[Any], x: Tensor, expert: Tensor) -> Tensor:
    """Return the result of each row by the layer of its expert."""
    weights, scales = [layer.weight for layer in layers], [layer.scale for layer in layers]
    biases = [] if layers[0].bias is None else [layer.bias for layer in layers]
    settings, name = (layers[0].graph_settings.text, layers[0].group_size), _name(layers[0])
    parts = name.split(".")
    name = ".".join([*parts[:-2], "*", *parts[-1:]])  # of the first expert: "experts.0.down_proj"
    return torch.ops.spikebrain.spike_experts(x, expert, weights, scales, biases, *settings, name if parts[-1] else "")


def _obstacle_of_call(layer: Any, x: Tensor) -> str:
    """Return why a layer cannot be part of a graph for this input, or an empty text."""
    if x.ndim == 0 or x.shape[-1] != layer.in_features:
        return f"expected activations [..., {layer.in_features}], got shape {tuple(x.shape)}"
    obstacle = _obstacle(layer)
    if not obstacle and torch.is_grad_enabled() and x.requires_grad and not layer.graph_settings.differentiable:
        return "no gradient passes its neuron. Run under torch.no_grad()"
    return obstacle


def _obstacle(layer: Any) -> str:
    if layer.observers:
        return "it is observed, by `record` or the like"
    if any(name not in _TENSORS and tensor is not None for name, tensor in layer._buffers.items()):
        return "it has tensors that the operator does not take"
    return layer.graph_settings.obstacle


def _obstacle_of_experts(layers: list[Any], x: Tensor) -> str:
    settings = [(getattr(layer, "graph_settings", None), getattr(layer, "group_size", None)) for layer in layers]
    if settings[0][0] is None or any(other != settings[0] for other in settings):
        return "its experts do not all spike, or with different settings"
    for layer in layers:
        if _obstacle(layer):
            return f"{layer.where()}: {_obstacle(layer)}"
    if torch.is_grad_enabled() and x.requires_grad:
        return "no gradient passes experts in a graph. Run under torch.no_grad()"
    return ""


def _name(layer: Any) -> str:
    """Return a layer's name for messages, or none where blocks that are equal but for names share a graph."""
    return "" if torch.compiler.is_dynamo_compiling() and not torch.compiler.is_exporting() else layer.name


def _leave_graph(where: str, obstacle: str, x: Tensor) -> None:
    """Break the graph where torch.compile makes one.

    Raises:
        InputError: another tracer does, which cannot break it.
    """
    message = f"{where} cannot be part of a graph: {obstacle.removesuffix('.')}."
    if torch.compiler.is_dynamo_compiling():
        torch._dynamo.graph_break(msg=message)
    elif torch.compiler.is_compiling() or records_operators(x):
        raise InputError(message)


@torch.compiler.disable(reason="a spiking layer that cannot be part of a graph")
def _outside(run: Any, *arguments: Tensor) -> Tensor:
    return run(*arguments)
