"""Which layers of a model can spike, and why each of the others does not."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ...errors import InputError
from ...module_check import check_module
from .attention_interface import check_counts
from .experts import FusedExperts
from .settings import ATTENTION, SpikeSettings, matches_any
from .spike_linear import SpikeLinear
from .stored import check_stored
from .weight_readers import why_its_weights_are_needed

_PLAIN: dict[type, Any] = {kind: kind.forward for kind in (nn.Linear, Conv1D)}
# What a plain layer has; all else on an object was added to it, and a swap would lose it.
_OWN = frozenset(vars(nn.Linear(1, 1, device="meta"))) | {"nf", "nx", "_compiled_call_impl"}
_PACKED = (torch.int8, torch.uint8, torch.int16, torch.int32)


def choose_layers(
    model: nn.Module, settings: SpikeSettings, fused: FusedExperts | None = None, *, without_weights: bool = False
) -> tuple[dict[str, nn.Linear | Conv1D], dict[str, str]]:
    """Return the layers that would spike, by name, and why every other module with weights would not.

    Args:
        model: the model.
        settings: which layers are to spike.
        fused: its fused experts, whose layers are named as `to_spiking` names them; found here if None.
        without_weights: the model is on the meta device on purpose, and only its layers are asked for.
    Raises:
        InputError: attention is to spike and cannot, no layer matches, a pattern matches no name, the weights of a
            layer that would spike are not in memory or not a plain tensor, or stored integers are asked for and no file
            holds any.
    """
    check_module("choose_layers", model)
    check_counts(model, settings)
    fused = fused or FusedExperts(model)
    heads = _inside_output_heads(model)
    linears: dict[str, nn.Linear | Conv1D] = {}
    skipped: dict[str, str] = {}
    for name, module in fused.named_modules(model):
        if isinstance(module, SpikeLinear):
            skipped[name] = "spikes already"
        elif name in fused.unknown:
            skipped[name] = fused.unknown[name]
        elif not _is_plain(module):
            if _holds_weights(module):
                skipped[name] = f"{type(module).__name__} is not a plain linear layer"
        elif module in heads and not settings.include_head:
            skipped[name] = "output head"
        elif not settings.matches(name):
            skipped[name] = "a pattern of skip matches" if settings.skips(name) else "no pattern matches"
        elif (reason := _why_not(model, module, name, fused, check=not without_weights)) is not None:
            skipped[name] = reason
        else:
            assert isinstance(module, nn.Linear | Conv1D)
            linears[name] = module
    names = [*linears, *skipped]
    neurons = tuple(settings.neuron) if isinstance(settings.neuron, Mapping) else ()
    check_matches("skip", settings.skip, names)
    check_matches("neuron", neurons, names)
    check_matches("coarse", tuple(settings.coarse) if isinstance(settings.coarse, Mapping) else (), names)
    if not linears:
        reasons = [f"{name!r}: {reason}" for name, reason in skipped.items()]
        listed = "; ".join(reasons[:6]) + ("; ..." if len(reasons) > 6 else "") if reasons else "it has no weights"
        words = "" if any(matches_any(name, settings.layers) for name in names) else _words_for(settings.layers, names)
        raise InputError(
            f"layers: expected a linear layer that matches {settings.layers}, found none. {listed}. {words}".strip()
        )
    _check_order("neuron", neurons, linears)
    _check_order("coarse", tuple(settings.coarse) if isinstance(settings.coarse, Mapping) else (), linears)
    if settings.attention not in ATTENTION:  # those are for a kind of model, which need not have all the layers
        check_matches("layers", settings.layers, names)
    if settings.weights == "stored":
        check_stored(linears)
    return linears, skipped


def _inside_output_heads(model: nn.Module) -> set[nn.Module]:
    """Return the output heads of all transformers models in `model`, with what wraps or is inside them."""
    heads = [m.get_output_embeddings() for m in model.modules() if isinstance(m, PreTrainedModel)]
    return {part for head in heads if isinstance(head, nn.Module) for part in head.modules()}


def _why_not(model: nn.Module, module: nn.Module, name: str, fused: FusedExperts, *, check: bool) -> str | None:
    """Return why a layer that the settings name does not spike, or None; nobody reads the weights of one expert.

    Raises:
        InputError: with `check`, its weights cannot be read.
    """
    if check:
        _check_readable(module, name)
    reason = None if module in fused else why_its_weights_are_needed(model, name)
    return reason or _why_not_plain(module)


def _is_plain(module: nn.Module) -> bool:
    """Return whether a module is a linear layer, or a subclass in transformers that computes the same, as Falcon's."""
    if type(module) in _PLAIN or not isinstance(module, nn.Linear):
        return type(module) in _PLAIN
    weight = module._parameters.get("weight")
    if not type(module).__module__.startswith("transformers.") or weight is None or weight.is_meta:
        return False
    x = torch.randn(3, module.in_features, generator=torch.Generator().manual_seed(0)).to(weight)
    try:
        with torch.no_grad():
            y, expected = type(module).forward(module, x), nn.functional.linear(x, weight, module.bias)
        tolerance = 1e-4 if weight.dtype in (torch.float32, torch.float64) else 3e-2
        return y.shape == expected.shape and bool(((y - expected).abs() <= tolerance * expected.abs().max()).all())
    except (TypeError, ValueError, RuntimeError, AttributeError):
        return False


def _holds_weights(module: nn.Module) -> bool:
    """Return whether a module that is no plain linear layer has weights of two or more axes, packed ones included."""
    if isinstance(module, (nn.Linear, Conv1D)) or any(p.ndim >= 2 for p in module.parameters(recurse=False)):
        return True
    for name, buffer in module.named_buffers(recurse=False):
        if buffer.ndim >= 2 and (buffer.dtype in _PACKED or "weight" in name):
            return True
    # Kinds that hide their weights in objects or in parametrizations are known by their widths; what merely wraps a
    # linear layer has them, too.
    widths = (("in_features", "out_features"), ("infeatures", "outfeatures"))
    has_widths = any(all(isinstance(getattr(module, name, None), int) for name in pair) for pair in widths)
    inside = (part for part in module.modules() if part is not module)
    return has_widths and not any(isinstance(part, (*_PLAIN, SpikeLinear)) for part in inside)


def _why_not_plain(layer: nn.Module) -> str | None:
    """Return what a swap would lose or get wrong, or None."""
    own = vars(layer)
    if any(value for key, value in own.items() if key.endswith("_hooks")):
        return "has hooks, which a swap would lose"
    replaced = [key for key in own.keys() - _OWN if hasattr(type(layer), key)]
    if replaced or type(layer).forward is not _PLAIN.get(type(layer), type(layer).forward):
        return f"its {', '.join(sorted(replaced)) or 'forward'} was replaced, which a swap would lose"
    more = [*layer._parameters.keys() - {"weight", "bias"}, *layer._buffers, *layer._modules]
    if more or "weight" not in layer._parameters or "bias" not in layer._parameters:
        return f"has more than weight and bias, which a swap would lose: {', '.join(sorted(more)) or 'plain tensors'}"
    weight = layer._parameters["weight"]
    if weight is None or not weight.is_floating_point():
        return f"its weights are {None if weight is None else weight.dtype}"
    return None


def _check_readable(layer: nn.Module, name: str) -> None:
    """Raise an InputError if a parameter is not in memory, or is another kind of tensor than PyTorch's dense one."""
    for key, tensor in layer._parameters.items():
        if tensor is None:
            continue
        where = f"to_spiking: {key} of {name or 'the layer'}"
        if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout != torch.strided:
            kind = type(tensor).__name__ if type(tensor) not in (Tensor, nn.Parameter) else str(tensor.layout)
            raise InputError(
                f"{where}: expected a dense tensor, got {kind}. Load the model without quantisation or sharding, make "
                "the tensor dense, or leave the layer out with `skip`."
            )
        if tensor.is_meta:
            raise InputError(
                f"{where}: expected numbers in memory, got a tensor on the meta device: it is offloaded or was never "
                "loaded. Load the whole model into memory, or leave the layer out with `skip`."
            )


def patterns_of(names: Iterable[str]) -> list[str]:
    """Return patterns for kinds of layers, those of whole parts of a layer first.

    >>> patterns_of(["layers.0.self_attn.q_proj", "layers.0.mlp.up_proj"])
    ['*self_attn*', '*mlp*', '*q_proj', '*up_proj']
    """
    parts = [name.split(".") for name in names]
    owners = [f"*{part[-2]}*" for part in parts if len(part) > 1 and not part[-2].isdigit()]
    return list(dict.fromkeys([*owners, *(f"*{part[-1]}" for part in parts)]))


def check_matches(field: str, patterns: Collection[str], names: Collection[str]) -> None:
    """Raise an InputError for a pattern that matches no layer, and would be ignored; it names patterns that match.

    Args:
        field: what the patterns are, for the message.
        patterns: with * and ?.
        names: of all layers; if there are none, nothing is checked.
    """
    for pattern in patterns if names else ():
        if not any(matches_any(name, (pattern,)) for name in names):
            raise InputError(
                f"{field} {pattern!r}: expected a pattern that matches the name of a layer, got one that matches none. "
                f"{_words_for((pattern,), names)}"
            )


def _check_order(field: str, patterns: Collection[str], names: Collection[str]) -> None:
    """Raise an InputError for a pattern of a field whose layers are all taken by patterns before it."""
    taken = {next((p for p in patterns if matches_any(name, (p,))), None) for name in names}
    for pattern in patterns:
        if pattern not in ("*", *taken) and any(matches_any(name, (pattern,)) for name in names):
            raise InputError(
                f"{field} {pattern!r}: has no effect, since earlier patterns match all of its layers. Name it first."
            )


def _words_for(patterns: Collection[str], names: Collection[str]) -> str:
    """Return patterns to write instead of those, which match nothing."""
    cores = [core for pattern in patterns if (core := pattern.strip("*."))]
    found = [f"*{core}*" for core in cores if any(matches_any(name, (f"*{core}*",)) for name in names)]
    words = list(dict.fromkeys(word for name in names for word in name.split(".") if word and not word.isdigit()))
    if not found:
        near = [word for core in cores for word in difflib.get_close_matches(core.rpartition(".")[2], words)]
        found = [f"*{word}*" for word in near or words] or ["*"]
    return f"Patterns that match: {', '.join(found[:12])}{', ...' if len(found) > 12 else ''}."
