"""Spiking layers as operators that PyTorch knows, for the graphs of torch.compile, torch.export and other tracers.

A graph holds tensors, numbers and text, so an operator gets its neuron, encoder and backend as `plugins_as_text` writes
them. Outside of graphs layers run directly, which takes less time a call.
"""

from __future__ import annotations

import functools
import gc
import json
from typing import Any

import torch
from torch import Tensor

from ...errors import InputError
from ...registry import from_dict
from .spike_linear import SpikeLinear

# Where the package is imported again in the same process, the operators of before go first.
_before: Any = getattr(torch.library, "_spikebrain", None)
if _before is not None:
    _before._destroy()
LIBRARY = torch.library.Library("spikebrain", "FRAGMENT")
setattr(torch.library, "_spikebrain", LIBRARY)  # noqa: B010 - an attribute that PyTorch does not declare
# An input channel's weights lie together: a copy in another order would be made at every call. The kernels of experts
# depend on which tokens they get, which no CUDA graph can hold.
_TAGS = [torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides]
_WAITS = [tag for name, tag in vars(torch.Tag).items() if name == "cudagraph_unsafe"]

LIBRARY.define(
    "spike_linear(Tensor x, Tensor weight, Tensor scale, Tensor? bias, str plugins, int? group_size=None, "
    "str name='') -> Tensor",
    tags=_TAGS,
)
LIBRARY.define(
    "spike_experts(Tensor x, Tensor expert, Tensor[] weight, Tensor[] scale, Tensor[] bias, str plugins, "
    "int? group_size=None, str name='') -> Tensor",
    tags=[*_TAGS, *_WAITS],
)


class _Layer(SpikeLinear):
    """A layer for one call, made of what an operator gets."""

    @property
    def _where(self) -> str:
        """Return the layer's name. Equal blocks share a graph, so in one that is compiled it is looked for."""
        if self.name:
            return super()._where
        layers = (thing for thing in gc.get_objects() if issubclass(type(thing), SpikeLinear))
        found = {layer.name for layer in layers if _same_memory(layer._buffers.get("weight"), self.weight)}
        return "SpikeLinear" + "".join(f" {name!r}" for name in sorted(found) if name)


def _same_memory(a: Tensor | None, b: Tensor) -> bool:
    return type(a) is Tensor and a.data_ptr() == b.data_ptr()  # fake tensors have no address


@functools.lru_cache(maxsize=1024)
def _settings(plugins: str, group_size: int | None) -> dict[str, Any]:
    """Return the attributes of a layer that has these settings."""
    neuron, encoder, backend = (p if isinstance(p, str) else from_dict(p) for p in json.loads(plugins))
    # Without numbers, which a tracer could not check.
    weight, scale = torch.zeros(1, 1, dtype=torch.int8, device="meta"), torch.ones(1, 1, device="meta")
    return vars(
        SpikeLinear(weight, scale, group_size=group_size, neuron=neuron, encoder=encoder, backend=backend).eval()
    )


def _layer(
    weight: Tensor, scale: Tensor, bias: Tensor | None, plugins: str, group_size: int | None, name: str
) -> SpikeLinear:
    layer = object.__new__(_Layer)
    own = {
        "_buffers": {"weight": weight, "scale": scale, "minimum": None},
        "bias": bias,
        "out_features": weight.shape[0],
        "in_features": weight.shape[1],
        "name": name,
    }
    object.__setattr__(layer, "__dict__", _settings(plugins, group_size) | own)  # __init__ takes longer than the kernel
    return layer


def _spike_linear(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    plugins: str,
    group_size: int | None = None,
    name: str = "",
) -> Tensor:
    layer = _layer(weight, scale, bias, plugins, group_size, name)
    if not torch.is_grad_enabled():
        return layer.run(x)
    with torch.no_grad():  # PyTorch has the gradient from _gradients
        return layer.run(x)


def _spike_experts(
    x: Tensor,
    expert: Tensor,
    weight: list[Tensor],
    scale: list[Tensor],
    bias: list[Tensor],
    plugins: str,
    group_size: int | None = None,
    name: str = "",
) -> Tensor:
    y = x.new_zeros(len(x), len(weight[0]))
    for e in expert.unique().tolist():
        if 0 <= e < len(weight):
            rows = (expert == e).nonzero().flatten()
            own = (bias[e] if bias else None, plugins, group_size, name.replace("*", str(e)))
            y[rows] = _spike_linear(x[rows], weight[e], scale[e], *own)
    return y


def _fake_linear(x: Tensor, weight: Tensor, *others: Any) -> Tensor:
    if x.ndim == 0 or x.shape[-1] != weight.shape[1]:
        raise InputError(f"spike_linear: expected activations [..., {weight.shape[1]}], got shape {tuple(x.shape)}.")
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def _fake_experts(x: Tensor, expert: Tensor, weight: list[Tensor], *others: Any) -> Tensor:
    return x.new_empty((x.shape[0], weight[0].shape[0]))


def _keep(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, *tensors, ctx.plugins, ctx.group_size, ctx.name = inputs
    neuron = _settings(ctx.plugins, ctx.group_size)["neuron"]
    if ctx.needs_input_grad[0] and neuron.kernel_rule() is None:
        raise InputError(f"{ctx.name}: {type(neuron).__name__} passes no gradient. Run under torch.no_grad().")
    ctx.save_for_backward(*tensors)
    ctx.dtype = x.dtype


def _gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    """Return the gradient of x W^T, straight through the counts, and that of the bias."""
    weight, scale, bias = ctx.saved_tensors
    of_x = of_bias = None
    if ctx.needs_input_grad[0]:
        dense = _layer(weight, scale, bias, ctx.plugins, ctx.group_size, ctx.name).dequantized_weight()
        of_x = (gradient.to(dense.dtype) @ dense).to(ctx.dtype)
    if bias is not None and ctx.needs_input_grad[3]:
        of_bias = gradient.to(bias.dtype).reshape(-1, len(bias)).sum(0)
    return of_x, None, None, of_bias, None, None, None


def _refuse_gradient(ctx: Any, inputs: tuple, output: Tensor) -> None:
    raise InputError(
        "spike_experts: experts pass no gradient in a graph. Run under torch.no_grad(), or train without torch.compile."
    )


def _batched(info: Any, in_dims: tuple, x: Tensor, *others: Any) -> tuple[Tensor, int]:
    """Run a batch as leading axis: tokens are independent."""
    if in_dims[0] is None or any(d is not None for d in in_dims[1:]):
        raise InputError("spike_linear: torch.vmap over weights, scales or biases is not possible. Map activations.")
    return torch.ops.spikebrain.spike_linear(x.movedim(in_dims[0], 0), *others), 0


for _name, _run, _fake in (
    ("spike_linear", _spike_linear, _fake_linear),
    ("spike_experts", _spike_experts, _fake_experts),
):
    for _device in ("CPU", "CUDA"):
        LIBRARY.impl(_name, _run, _device)
    torch.library.register_fake(f"spikebrain::{_name}", _fake, lib=LIBRARY)
torch.library.register_autograd("spikebrain::spike_linear", _gradients, setup_context=_keep, lib=LIBRARY)
torch.library.register_autograd(
    "spikebrain::spike_experts", _refuse_gradient, setup_context=_refuse_gradient, lib=LIBRARY
)
torch.library.register_vmap("spikebrain::spike_linear", _batched, lib=LIBRARY)
