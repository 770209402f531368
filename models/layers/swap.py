"""Swap the linear layers of a model for spiking ones, and back."""

from __future__ import annotations

import copy
import types
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ...errors import InputError
from ...module_check import check_module
from ...registry import label
from ...text_table import kind_of, text_table
from .attention_interface import unset_counts
from .choose import choose_layers
from .compact import compact
from .experts import FusedExperts, own_weights
from .graded_linear import GradedLinear
from .guards import guard, unguard
from .quantize import QuantizedWeight, copy_bias, input_major, quantize_to, quantize_with
from .settings import COUNTED, SpikeSettings
from .spike_linear import SpikeLinear
from .stored import in_words, nothing_stored, stored_weight_of


@dataclass(frozen=True)
class Conversion:
    """What `to_spiking` did; a spiking model keeps it as its attribute `conversion`.

    Attributes:
        settings: the settings it was called with.
        converted: names of the layers that spike now.
        skipped: why each other module with weights of two or more axes does not spike, by name.
        rounded: with weights="stored", why a layer has INT8 rows rounded from floats instead, by name.
    """

    settings: SpikeSettings
    converted: tuple[str, ...]
    skipped: Mapping[str, str]
    rounded: Mapping[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        """Return how each kind of layer spikes, and why others do not."""
        kinds = Counter((kind_of(name), repr(self.settings.neuron_of(name))) for name in self.converted)
        rows = [(name, f"{number:,}", neuron) for (name, neuron), number in kinds.items()]
        reasons = Counter((kind_of(name), reason) for name, reason in self.skipped.items())
        stays = [f"stays dense: {name} ({number:,}): {reason}" for (name, reason), number in reasons.items()]
        encoder, weights = label(self.settings.encoder), self.settings.weights
        rounded = f", {len(self.rounded):,} of them rounded to INT8" if self.rounded else ""
        coarse = sum(self.settings.coarse_of(name) != () for name in self.converted)
        graded = f", {coarse:,} with coarse rows for small counts" if coarse else ""
        counted = ", attention on counts" if self.settings.attention == COUNTED else ""
        lines = [
            f"{len(self.converted):,} layers on spikes, code {encoder}, weights {weights}{rounded}{graded}{counted}"
        ]
        return "\n".join([*lines, text_table(("kind of layer", "layers", "neuron"), rows), *stays])


def swap_linears(
    model: nn.Module, settings: SpikeSettings, *, inplace: bool = False, scales: Mapping[str, Tensor] | None = None
) -> nn.Module:
    """Swap the linear layers that the settings name for `SpikeLinear`; `to_spiking` is the public verb.

    A layer used in several places becomes one spiking layer. Weights that several layers share are quantised once. An
    output head that is tied to the embedding leaves the embedding as it is. Fused experts become `Experts`, if any of
    their projections spikes.

    Args:
        model: any PyTorch model; `nn.Linear` and transformers' `Conv1D` modules are swapped.
        settings: which layers spike, and how.
        inplace: change the model itself; otherwise work on a copy and leave the model unchanged.
        scales: weight scales from a checkpoint, by layer name, instead of those computed with settings.group_size; see
            `quantize_with`. Only for weights="int8".
    Returns:
        The spiking model, with its attribute `conversion`.
    Raises:
        InputError: no layer matches, a weight is not finite, scales do not fit their layer, or no layer has stored
            integers where they are asked for.
    """
    scales = scales or {}
    if scales and settings.weights != "int8":
        raise InputError(
            f'to_spiking.scales: expected weights="int8", got {settings.weights!r}. Leave one of them out.'
        )
    fused = FusedExperts(model)
    linears, skipped = choose_layers(model, settings, fused)
    spiking: dict[int, nn.Module] = {}
    quantized: dict[tuple[int, type], QuantizedWeight] = {}
    rounded: dict[str, str] = {}
    for name, layer in linears.items():
        linear, key = _as_linear(layer), (id(layer.weight), type(layer))
        if key not in quantized:
            found = _quantized(name, layer, linear.weight.detach(), settings, scales)
            if isinstance(found, str):
                rounded[name] = found
                found = quantize_to(8, linear.weight.detach(), None, name)
            found = compact(found, name) if settings.compact_scales else found
            quantized[key] = replace(found, weight=input_major(found.weight))
        plug_ins = {"neuron": settings.neuron_of(name), "encoder": settings.encoder, "backend": settings.backend}
        coarse, own = settings.coarse_of(name), (quantized[key], copy_bias(linear.bias))
        if coarse:
            made = GradedLinear.from_quantized(own[0], coarse, own[1], name=name, **plug_ins)
        else:
            made = SpikeLinear.from_quantized(*own, name=name, **plug_ins)
        spiking[id(layer)] = made.train(layer.training)
    _tell_rounded(rounded, len(linears))
    for replaced, experts in fused.experts.items():
        if any(id(module) in spiking for module in experts.modules()):
            spiking[replaced] = _swap(experts, spiking, inplace=True)
            own_weights(experts)
    swapped = guard(_swap(model, spiking, inplace))
    swapped.conversion = Conversion(settings, tuple(linears), skipped, rounded)  # pyright: ignore[reportArgumentType]
    return swapped


def _quantized(
    name: str, layer: nn.Module, weight: Tensor, settings: SpikeSettings, scales: Mapping[str, Tensor]
) -> QuantizedWeight | str:
    """Return the integer weights of a layer, or why it has none stored."""
    if name in scales:
        integers, scale, group_size = quantize_with(weight, scales[name], name)
        return QuantizedWeight(integers, scale, None, group_size)
    if settings.weights == "stored":
        return stored_weight_of(layer, weight)
    return quantize_to(4 if settings.weights == "int4" else 8, weight, settings.group_size, name)


def _tell_rounded(rounded: Mapping[str, str], num_layers: int) -> None:
    """Warn of layers without stored integers; if none has any, raise an InputError."""
    if not rounded:
        return
    if len(rounded) == num_layers:
        raise nothing_stored(rounded)
    warnings.warn(
        f"to_spiking: {len(rounded)} of {num_layers} layers get INT8 rows, rounded from their float weights, as their "
        f"file's integers cannot be kept. {in_words(rounded)}.",
        stacklevel=4,
    )


def to_dense(model: nn.Module, *, inplace: bool = False) -> nn.Module:
    """Swap every `SpikeLinear` for an `nn.Linear` with the same integer weights as floats: the model without spikes.

    A `GradedLinear` becomes one with the layer's own rows. The weights get the dtype of the model's float parameters.
    Attention on counts becomes that which transformers gives the model by itself.

    Args:
        model: a spiking model.
        inplace: change the model itself; otherwise work on a copy.
    """
    check_module("to_dense", model)
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    dense: dict[int, nn.Module] = {}
    for module in model.modules():
        if isinstance(module, SpikeLinear | GradedLinear):
            linear = nn.Linear(module.in_features, module.out_features, module.bias is not None, device="meta")
            linear.weight = nn.Parameter(module.dequantized_weight().to(dtype), requires_grad=False)
            linear.register_parameter("bias", copy_bias(module.bias))
            dense[id(module)] = linear.train(module.training)
    swapped = _swap(model, dense, inplace)
    unguard(swapped)
    unset_counts(swapped)
    swapped.__dict__.pop("conversion", None)
    return swapped


def _swap(model: nn.Module, replacements: dict[int, nn.Module], inplace: bool) -> nn.Module:
    """Replace modules, looked up by id, wherever they occur."""
    if not inplace:
        _refuse_bound_forwards(model, replacements)
        # A deep copy that meets a replaced module takes its replacement instead of copying its weights.
        return copy.deepcopy(model, dict(replacements))
    for parent in list(model.modules()):
        for child_name, child in list(parent._modules.items()):
            if id(child) in replacements:
                setattr(parent, child_name, replacements[id(child)])
    return replacements.get(id(model), model)


def _refuse_bound_forwards(model: nn.Module, replacements: dict[int, nn.Module]) -> None:
    """Raise an InputError if a forward is a plain function, which in a copy would run the original's layers."""
    for name, module in model.named_modules():
        replaced = isinstance(vars(module).get("forward"), types.FunctionType)
        if replaced and any(id(part) in replacements for part in module.modules()):
            raise InputError(
                f"to_spiking: forward of {name or 'the model'} was replaced by a function, which in a copy would run "
                "the original's layers. Pass inplace=True, or make it a method with types.MethodType."
            )


def _as_linear(layer: nn.Linear | Conv1D) -> nn.Linear:
    """Return a Conv1D, which stores [in, out], as the equivalent nn.Linear."""
    if isinstance(layer, nn.Linear):
        return layer
    linear = nn.Linear(layer.weight.shape[0], layer.weight.shape[1], device="meta")
    linear.weight = nn.Parameter(layer.weight.detach().t(), requires_grad=False)
    linear.register_parameter("bias", layer.bias)
    return linear
