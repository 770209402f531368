"""The tensors of a SpikingBrain model in the released layout, which knows floats beside scales."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ...errors import InputError
from ..layers.quantize import check_finite, integers_of
from ..layers.spike_linear import SpikeLinear, spiking_layers
from ..spikingbrain.causal_lm import SpikingBrainForCausalLM
from .folder_entries import Entry

SCALES = ".weight_quantizer.scales"
MINIMA = ".weight_quantizer.minima"


def released_entries(model: SpikingBrainForCausalLM) -> list[Entry]:
    """Return the tensors of a folder in the released layout."""
    return [
        Entry(name, num_bytes, functools.partial(_tensor_of, module, attribute, model.dtype, name))
        for name, module, attribute, num_bytes in _stored_tensors(model)
    ]


def _stored_tensors(model: SpikingBrainForCausalLM) -> Iterator[tuple[str, nn.Module, str, int]]:
    """Yield name, owner, attribute and bytes of each tensor in the folder, without repeats."""
    seen: set[int] = set()
    element = torch.empty((), dtype=model.dtype).element_size()
    for prefix, module in model.named_modules():
        if isinstance(module, SpikeLinear):
            yield f"{prefix}.weight", module, "weight", module.weight.numel() * element
            for name, attribute in ((SCALES, "scale"), (MINIMA, "minimum")):
                if module._buffers[attribute] is not None:
                    yield f"{prefix}{name}", module, attribute, module.scale.numel() * 4
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield f"{prefix}.{name}".lstrip("."), module, name, parameter.numel() * parameter.element_size()


def _tensor_of(module: nn.Module, attribute: str, dtype: torch.dtype, name: str) -> Tensor:
    """Return a tensor in the form that the folder stores."""
    tensor: Tensor = getattr(module, attribute)
    if isinstance(module, SpikeLinear) and attribute in ("scale", "minimum"):
        tensor = tensor if module.group_size is None else tensor[..., None]
    elif isinstance(module, SpikeLinear) and attribute == "weight":
        size = min(module.group_size or module.in_features, module.in_features)
        if module.in_features % size:
            raise InputError(f"save: expected a group size that divides the inputs of {name}, got {size}.")
        tensor = module.dequantized_weight().to(dtype)
        found = integers_of(tensor, module.scale, module.minimum, size)
        counts = (module.scale != 0).repeat_interleave(size, 1)  # an integer times 0 is lost, and counts for nothing
        if not torch.equal(found, module.weight * counts):
            raise InputError(f"save: {dtype} is too coarse for the weights of {name}. Use model.float() first.")
    check_finite(tensor, f"save: weights of {name}")
    return tensor.detach().cpu().contiguous()


def check_for_release(model: SpikingBrainForCausalLM) -> None:
    """Raise an InputError if a layer has what the released layout does not know, and would lose."""
    for name, layer in spiking_layers(model).items():
        if layer.weight_bits != 8 or layer.minimum is not None or bool((layer.scale <= 0).any()):
            raise InputError(
                f"save.released: expected INT8 weights with scales above 0, got {layer.weight_bits} bits "
                f"{'with' if layer.minimum is not None else 'without'} minima at {name}, which the released layout has "
                'no place for. Leave out `released`, or convert with weights="int8".'
            )
