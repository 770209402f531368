"""INT8 weights of a spiking model in the layout of the library compressed-tensors, which knows no spikes.

W = integer * scale per output, or per output and group of inputs, with the integers of the spiking layers. Other tools
multiply it with activations in floating point: what a model on spikes computes but for its neurons and codes, which
this layout cannot say.

Source:
    compressed-tensors 0.20, format "pack-quantized", the one of weights without quantised activations:
    https://github.com/vllm-project/compressed-tensors
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from ...errors import InputError
from ..layers.quantize import check_finite
from ..layers.spike_linear import SpikeLinear, spiking_layers
from .folder_config import AUTO_MAP, SpikebrainConfig, empty_model, plain_fields
from .folder_entries import Entry

METHOD = "compressed-tensors"
_WHERE = f'save.format="{METHOD}"'


def compressed_config(model: PreTrainedModel) -> dict[str, Any]:
    """Return the config.json of a model whose spiking layers become INT8 weights.

    Raises:
        InputError: a layer has what this layout cannot say.
    """
    layers = spiking_layers(model, every_name=True)
    if not layers:
        raise InputError(f"{_WHERE}: expected a model with INT8 weights, one that spikes. Call to_spiking first.")
    fields = plain_fields(model)
    if fields.get("spiking") is not None:  # attention of a SpikingBrain model, in floating point there
        fields |= {"spiking": None, "auto_map": AUTO_MAP}
    head = model.get_output_embeddings()
    if isinstance(head, SpikeLinear):  # with weights of its own
        fields["tie_word_embeddings"] = False
    base = empty_model(SpikebrainConfig.from_dict(dict(fields)))
    linears = {name for name, module in base.named_modules() if isinstance(module, nn.Linear)}
    for name, layer in layers.items():
        why = _why_not(layer, is_linear=name in linears)
        if why is not None:
            raise InputError(f"{_WHERE}: {name} {why}. Leave out `format`, or write spikebrain.to_dense(model).")
    groups: dict[int | None, list[str]] = {}
    for name, layer in layers.items():
        groups.setdefault(layer.group_size, []).append(name)
    schemes = {}
    for i, (size, names) in enumerate(groups.items()):
        weights = {"num_bits": 8, "type": "int", "symmetric": True, "dynamic": False, "group_size": size}
        weights["strategy"] = "channel" if size is None else "group"
        targets = ["Linear"] if len(groups) == 1 else names
        schemes[f"group_{i}"] = {"targets": targets, "weights": weights, "input_activations": None}
    fields["quantization_config"] = {
        "quant_method": METHOD,
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": schemes,
        "ignore": sorted(linears - layers.keys()),
    }
    return fields


def compressed_entries(model: PreTrainedModel) -> list[Entry]:
    """Return the tensors of that folder: packed integers, scales and shape of a spiking layer, others as they are."""
    layers = spiking_layers(model, every_name=True)
    tied: Any = getattr(model, "all_tied_weights_keys", None) or {}
    found = model.state_dict(keep_vars=True)
    entries = []
    for name, tensor in found.items():
        owner, _, attribute = name.rpartition(".")
        if owner in layers and attribute != "bias":
            stored = {"weight": ("weight_packed", pack), "scale": ("weight_scale", _whole)}[attribute]
            entries.append(_entry(f"{owner}.{stored[0]}", tensor, stored[1]))
            if attribute == "weight":
                entries.append(_entry(f"{owner}.weight_shape", torch.tensor(tensor.shape), _whole))
        elif found.get(tied.get(name, "")) is not tensor:
            entries.append(_entry(name, tensor, _whole))
    return entries


def pack(weight: Tensor) -> Tensor:
    """Return INT8 weights raised by 128, four to an int32 word, the first of them in the low byte.

    Args:
        weight: int8 [out_features, in_features].
    Returns:
        int32 [out_features, ceil(in_features / 4)].

    >>> pack(torch.tensor([[-128, -127, 0, 1, 2]], dtype=torch.int8)).tolist()  # 0, 1, 128, 129; 130
    [[-2122317568, 130]]
    """
    raised = (weight.detach().cpu().to(torch.int32) + 128).to(torch.uint8)
    padded = F.pad(raised, (0, -weight.shape[1] % 4)).contiguous()
    return padded.view(torch.int32)


def _whole(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def _entry(name: str, tensor: Tensor, form: Any) -> Entry:
    if tensor.is_floating_point():
        check_finite(tensor, f"save: weights of {name}")
    return Entry(name, tensor.numel() * tensor.element_size(), functools.partial(form, tensor))


def _why_not(layer: SpikeLinear, *, is_linear: bool) -> str | None:
    """Return what the layout cannot say of a layer, or None."""
    if layer.weight_bits != 8 or layer.minimum is not None:
        minima = "with" if layer.minimum is not None else "without"
        return f"has weights of {layer.weight_bits} bits {minima} minima, but there is only place for INT8 and scales"
    if layer.group_size is not None and layer.in_features % layer.group_size:
        return f"has groups of {layer.group_size}, which do not divide its {layer.in_features} inputs"
    if not is_linear:
        return "is no linear layer in the model without spikes, but an expert or a transposed one"
    return None
