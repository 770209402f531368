"""What the transformers model around spiking layers can no longer do: refused, or kept from undoing the conversion."""

from __future__ import annotations

import functools
from importlib import import_module
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from ...errors import InputError
from .graded_linear import GradedLinear
from .spike_linear import SpikeLinear, spiking_layers


def guard(model: nn.Module) -> nn.Module:
    """Prepare a model for the spiking layers in it; `to_spiking` and `load` do so.

    Its layers warn once together. `save_pretrained` writes what `spikebrain.save` does; `tie_weights` leaves spiking
    layers as they are; another size of an output head that spikes raises.
    """
    notices: set[str] = set()
    for layer in spiking_layers(model).values():
        layer.notices = notices
    for part in model.modules():
        if isinstance(part, PreTrainedModel) and spiking_layers(part):
            _untie(part)
            vars(part)["save_pretrained"] = functools.partial(save_pretrained, part)
            if isinstance(part.get_output_embeddings(), SpikeLinear | GradedLinear):
                vars(part)["resize_token_embeddings"] = functools.partial(_resize, part)
    return model


def unguard(model: nn.Module) -> None:
    """Undo `guard`, except that a head that was not the embedding's any more stays so."""
    for part in model.modules():
        for name in ("save_pretrained", "resize_token_embeddings"):
            part.__dict__.pop(name, None)


def save_pretrained(model: PreTrainedModel, *arguments: Any, **options: Any) -> None:
    """Stand in for `save_pretrained` of a transformers model that spikes: write it as `spikebrain.save` does."""
    # Late, since `models.io` stands on this room.
    import_module("..io", __package__).save_pretrained(model, *arguments, **options)


def _untie(model: PreTrainedModel) -> None:
    """Take spiking layers out of what `tie_weights` makes equal: their INT8 weights are their own."""
    tied = model.get_expanded_tied_weights_keys()
    kept = {name: source for name, source in tied.items() if not _is_spiking(model, name, source)}
    if len(kept) < len(tied):
        model._tied_weights_keys = kept
    expanded = getattr(model, "all_tied_weights_keys", None)
    if expanded:
        model.all_tied_weights_keys = {n: s for n, s in expanded.items() if not _is_spiking(model, n, s)}


def _is_spiking(model: nn.Module, *names: str) -> bool:
    owners = [model.get_submodule(name.rpartition(".")[0]) for name in names]
    return any(isinstance(owner, SpikeLinear | GradedLinear) for owner in owners)


def _resize(model: PreTrainedModel, new_num_tokens: int | None = None, *arguments: Any, **settings: Any) -> nn.Module:
    """Stand in for `resize_token_embeddings` of a model whose output head spikes; the present size is allowed."""
    result: Any = model.get_input_embeddings()
    multiple = arguments[0] if arguments else settings.get("pad_to_multiple_of")
    size = result.num_embeddings
    if new_num_tokens not in (None, size) or size % (multiple or 1):
        raise InputError(
            f"resize_token_embeddings: expected {size}, the present size, got {new_num_tokens}: the INT8 weights of an "
            "output head that spikes cannot grow. Resize the float model, then call to_spiking."
        )
    return result
