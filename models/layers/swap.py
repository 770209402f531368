"""Swap the linear layers of a model for spiking ones, and back."""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ...errors import InputError
from .quantize import copy_bias, input_major, quantize, quantize_with
from .settings import SpikeSettings
from .spike_linear import SpikeLinear


@dataclass(frozen=True)
class Conversion:
    """What `to_spiking` did; a spiking model keeps it as its attribute `conversion`.

    Attributes:
        settings: the settings it was called with.
        converted: names of the layers that spike now.
        skipped: why each other module with weights of two or more axes does not spike, by name.
    """

    settings: SpikeSettings
    converted: tuple[str, ...]
    skipped: Mapping[str, str]


def swap_linears(
    model: nn.Module, settings: SpikeSettings, *, inplace: bool = False, scales: Mapping[str, Tensor] | None = None
) -> nn.Module:
    """Swap the linear layers that the settings name for `SpikeLinear`; `to_spiking` is the public verb.

    A layer used in several places becomes one spiking layer. Weights that several layers share are quantised once. An
    output head that is tied to the embedding leaves the embedding as it is.

    Args:
        model: any PyTorch model; `nn.Linear` and transformers' `Conv1D` modules are swapped.
        settings: which layers spike, and how.
        inplace: change the model itself; otherwise work on a copy and leave the model unchanged.
        scales: weight scales from a checkpoint, by layer name, instead of those computed with settings.group_size; see
            `quantize_with`.
    Returns:
        The spiking model, with its attribute `conversion`.
    Raises:
        InputError: no layer matches, a weight is not finite, or scales do not fit their layer.
    """
    scales = scales or {}
    linears, skipped = choose_layers(model, settings)
    spiking: dict[int, nn.Module] = {}
    quantized: dict[tuple[int, type], tuple[Tensor, Tensor, int | None]] = {}
    for name, layer in linears.items():
        linear, key = _as_linear(layer), (id(layer.weight), type(layer))
        if key not in quantized:
            weight, group_size = linear.weight.detach(), settings.group_size
            if name in scales:
                integers, scale, group_size = quantize_with(weight, scales[name], name)
            else:
                integers, scale = quantize(weight, group_size, name)
            quantized[key] = (input_major(integers), scale, group_size)
        integers, scale, group_size = quantized[key]
        spike_linear = SpikeLinear(
            integers,
            scale,
            copy_bias(linear.bias),
            group_size=group_size,
            neuron=settings.neuron_of(name),
            encoder=settings.encoder,
            backend=settings.backend,
            name=name,
        )
        spiking[id(layer)] = spike_linear.train(layer.training)
    swapped = _swap(model, spiking, inplace)
    swapped.conversion = Conversion(settings, tuple(linears), skipped)  # pyright: ignore[reportArgumentType]
    return swapped


def choose_layers(model: nn.Module, settings: SpikeSettings) -> tuple[dict[str, nn.Linear | Conv1D], dict[str, str]]:
    """Return the layers that would spike, by name, and why every other module with weights would not.

    Raises:
        InputError: no layer matches.
    """
    heads = _output_heads(model)
    linears: dict[str, nn.Linear | Conv1D] = {}
    skipped: dict[str, str] = {}
    for name, module in model.named_modules():
        if isinstance(module, SpikeLinear):
            skipped[name] = "spikes already"
        elif not isinstance(module, nn.Linear | Conv1D) or type(module) not in (nn.Linear, Conv1D):
            if any(p.ndim >= 2 for p in module.parameters(recurse=False)):
                skipped[name] = f"{type(module).__name__} is not a plain linear layer"
        elif any(module is head for head in heads) and not settings.include_head:
            skipped[name] = "output head"
        elif not settings.matches(name):
            skipped[name] = "a pattern of skip matches" if settings.skips(name) else "no pattern matches"
        elif (owner := _reads_weights_itself(model, name)) is not None:
            skipped[name] = f"{owner} uses its weights without calling it"
        elif module._forward_hooks or module._forward_pre_hooks:
            skipped[name] = "has hooks, which a swap would lose"
        elif not module.weight.is_floating_point():
            skipped[name] = f"its weights are {module.weight.dtype}"
        else:
            linears[name] = module
    if not linears:
        reasons = [f"{name!r}: {reason}" for name, reason in skipped.items()]
        listed = "; ".join(reasons[:6]) + ("; ..." if len(reasons) > 6 else "") if reasons else "it has no weights"
        unmatched = [name for name, reason in skipped.items() if reason == "no pattern matches"]
        hint = f" A pattern is for whole names: try {_pattern_for(settings.layers, unmatched)!r}." if unmatched else ""
        raise InputError(
            f"to_spiking: expected a linear layer that matches {settings.layers}, found none. {listed}.{hint}"
        )
    return linears, skipped


def patterns_of(names: Iterable[str]) -> list[str]:
    """Return patterns for kinds of layers, those of whole parts of a layer first.

    >>> patterns_of(["layers.0.self_attn.q_proj", "layers.0.mlp.up_proj"])
    ['*self_attn*', '*mlp*', '*q_proj', '*up_proj']
    """
    parts = [name.split(".") for name in names]
    owners = [f"*{part[-2]}*" for part in parts if len(part) > 1 and not part[-2].isdigit()]
    return list(dict.fromkeys([*owners, *(f"*{part[-1]}" for part in parts)]))


def _pattern_for(patterns: tuple[str, ...], names: list[str]) -> str:
    """Return a pattern that matches some of the names: what was given, as a part of a name, or that of a kind."""
    within = (f"*{pattern.strip('*')}*" for pattern in patterns if pattern.strip("*"))
    return next((w for w in (*within, *patterns_of(names)) if any(fnmatch.fnmatchcase(n, w) for n in names)), "*")


def to_dense(model: nn.Module, *, inplace: bool = False) -> nn.Module:
    """Swap every `SpikeLinear` for an `nn.Linear` with the same INT8-rounded weights: the model without spikes.

    The weights get the dtype of the model's float parameters.

    Args:
        model: a spiking model.
        inplace: change the model itself; otherwise work on a copy.
    """
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    dense: dict[int, nn.Module] = {}
    for module in model.modules():
        if isinstance(module, SpikeLinear):
            linear = nn.Linear(module.in_features, module.out_features, module.bias is not None, device="meta")
            linear.weight = nn.Parameter(module.dequantized_weight().to(dtype), requires_grad=False)
            linear.register_parameter("bias", copy_bias(module.bias))
            dense[id(module)] = linear.train(module.training)
    swapped = _swap(model, dense, inplace)
    swapped.__dict__.pop("conversion", None)
    return swapped


def _swap(model: nn.Module, replacements: dict[int, nn.Module], inplace: bool) -> nn.Module:
    """Replace modules, looked up by id, wherever they occur."""
    if not inplace:
        # A deep copy that meets a replaced module takes its replacement instead of copying its weights.
        return copy.deepcopy(model, dict(replacements))
    for parent in list(model.modules()):
        for child_name, child in list(parent._modules.items()):
            if id(child) in replacements:
                setattr(parent, child_name, replacements[id(child)])
    return replacements.get(id(model), model)


def _output_heads(model: nn.Module) -> list[nn.Module]:
    """Return the output heads of all transformers models in `model`, which may be a wrapper around one."""
    heads = [m.get_output_embeddings() for m in model.modules() if isinstance(m, PreTrainedModel)]
    return [head for head in heads if isinstance(head, nn.Module)]


def _reads_weights_itself(model: nn.Module, name: str) -> str | None:
    """Return the type of a parent that passes this layer's weights to a fused function, or None."""
    parent = model.get_submodule(name.rpartition(".")[0])
    fused = (nn.MultiheadAttention, nn.TransformerEncoderLayer)
    return type(parent).__name__ if isinstance(parent, fused) else None


def _as_linear(layer: nn.Linear | Conv1D) -> nn.Linear:
    """Return a Conv1D, which stores [in, out], as the equivalent nn.Linear."""
    if isinstance(layer, nn.Linear):
        return layer
    linear = nn.Linear(layer.weight.shape[0], layer.weight.shape[1], device="meta")
    linear.weight = nn.Parameter(layer.weight.detach().t(), requires_grad=False)
    linear.register_parameter("bias", layer.bias)
    return linear
