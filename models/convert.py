"""A Transformer in, a spiking model out: swap linear layers for spiking ones, and back."""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ..backends import Backend
from ..coding import BidirectionalBitwise, Encoder
from ..errors import InputError
from ..neuro import AdaptiveThreshold, Neuron
from .spike_linear import SpikeLinear


@dataclass(frozen=True)
class Policy:
    """Which layers spike, and how.

    Attributes:
        layers: patterns of module names (as of `named_modules`, with * and ?); a layer spikes if one matches.
        neuron: turns activations into counts; `AdaptiveThreshold(k)` sets k.
        encoder: turns counts into spikes.
        group_size: input channels that share a weight scale; None for one scale per output channel.
        backend: accumulates spikes; None picks the fastest for each input's device.
        include_head: whether the output head of a causal language model spikes too.
    """

    layers: tuple[str, ...] = ("*",)
    neuron: Neuron = field(default_factory=AdaptiveThreshold)
    encoder: Encoder = field(default_factory=BidirectionalBitwise)
    group_size: int | None = None
    backend: Backend | None = None
    include_head: bool = False

    def matches(self, name: str) -> bool:
        """Return whether the layer of that name is to spike."""
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self.layers)


@dataclass(frozen=True)
class Conversion:
    """What `convert` did.

    Attributes:
        model: the spiking model.
        converted: names of the layers that spike now.
        skipped: for every other module that holds weights of two or more axes, why it does not.
    """

    model: nn.Module
    converted: tuple[str, ...]
    skipped: Mapping[str, str]


def convert(model: nn.Module, policy: Policy | None = None, *, inplace: bool = False) -> Conversion:
    """Swap the linear layers that the policy names for `SpikeLinear`.

    A layer used in several places becomes one spiking layer, weights shared by several layers are quantised once,
    and an output head that is tied to the embedding leaves the embedding as it is.

    Args:
        model: any PyTorch model; `nn.Linear` and transformers' `Conv1D` modules are swapped.
        policy: None for `Policy()`.
        inplace: change the model itself; else work on a copy and leave the model as it was.
    Returns:
        The spiking model, and what was converted and skipped.
    Raises:
        InputError: no layer matches, or a weight is not finite.
    """
    policy = policy or Policy()
    head = _output_head(model)
    linears: dict[str, nn.Linear | Conv1D] = {}
    skipped: dict[str, str] = {}
    for name, module in model.named_modules():
        if isinstance(module, SpikeLinear):
            skipped[name] = "spikes already"
        elif type(module) not in (nn.Linear, Conv1D):
            if any(p.ndim >= 2 for p in module.parameters(recurse=False)):
                skipped[name] = f"{type(module).__name__} is not a linear layer"
        elif module is head and not policy.include_head:
            skipped[name] = "output head"
        elif not policy.matches(name):
            skipped[name] = "no pattern matches"
        elif (owner := _reads_weights_itself(model, name)) is not None:
            skipped[name] = f"{owner} uses its weights without calling it"
        else:
            linears[name] = module  # pyright: ignore[reportArgumentType]
    if not linears:
        known = [name for name, module in model.named_modules() if type(module) in (nn.Linear, Conv1D)]
        example = f"This model has {len(known)} linear layers, such as {known[0]!r}." if known else "It has none."
        raise InputError(f"convert: expected a linear layer that matches {policy.layers}. {example}")
    spiking: dict[int, nn.Module] = {}
    by_weight: dict[tuple[int, type], SpikeLinear] = {}
    for name, linear in linears.items():
        spike_linear = SpikeLinear.from_linear(
            _as_linear(linear),
            group_size=policy.group_size,
            neuron=policy.neuron,
            encoder=policy.encoder,
            backend=policy.backend,
            name=name,
        )
        first = by_weight.setdefault((id(linear.weight), type(linear)), spike_linear)
        spike_linear.weight, spike_linear.scale = first.weight, first.scale
        spike_linear.train(linear.training)
        spiking[id(linear)] = spike_linear
    return Conversion(_swap(model, spiking, inplace), tuple(linears), skipped)


def dequantize(model: nn.Module, *, inplace: bool = False) -> nn.Module:
    """Swap every `SpikeLinear` for an `nn.Linear` with the same INT8-rounded weights: the model without spikes.

    Args:
        model: a converted model.
        inplace: change the model itself; else work on a copy.
    """
    dense: dict[int, nn.Module] = {}
    for module in model.modules():
        if isinstance(module, SpikeLinear):
            linear = nn.Linear(module.in_features, module.out_features, module.bias is not None, device="meta")
            linear.weight = nn.Parameter(module.dequantized_weight(), requires_grad=False)
            if module.bias is not None:
                linear.bias = nn.Parameter(module.bias.detach().clone(), requires_grad=False)
            dense[id(module)] = linear.train(module.training)
    return _swap(model, dense, inplace)


def _swap(model: nn.Module, replacements: dict[int, nn.Module], inplace: bool) -> nn.Module:
    """Replace modules, given by id, wherever they occur."""
    if not inplace:
        # A deep copy that meets a replaced module takes its replacement instead of copying its weights.
        return copy.deepcopy(model, dict(replacements))
    for parent in list(model.modules()):
        for child_name, child in list(parent._modules.items()):
            if id(child) in replacements:
                setattr(parent, child_name, replacements[id(child)])
    return replacements.get(id(model), model)


def _output_head(model: nn.Module) -> nn.Module | None:
    return model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None


def _reads_weights_itself(model: nn.Module, name: str) -> str | None:
    """Return the type of a parent that passes this layer's weights to a fused function, or None."""
    parent = model.get_submodule(name.rpartition(".")[0])
    fused = (nn.MultiheadAttention, nn.TransformerEncoderLayer)
    return type(parent).__name__ if isinstance(parent, fused) else None


def _as_linear(layer: nn.Linear | Conv1D) -> nn.Linear:
    """Return a Conv1D, which stores [in, out], as the nn.Linear that it is."""
    if isinstance(layer, nn.Linear):
        return layer
    linear = nn.Linear(layer.weight.shape[0], layer.weight.shape[1], device="meta")
    linear.weight = nn.Parameter(layer.weight.detach().t(), requires_grad=False)
    linear.bias = nn.Parameter(layer.bias.detach(), requires_grad=False)
    return linear
