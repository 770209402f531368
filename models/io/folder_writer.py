"""Write a model as a folder: config.json, safetensors shards with their index, and the files beside them.

There is one layout for spiking models of every kind, and two more for tools that know no spikes: the released one of
SpikingBrain models, and that of the library compressed-tensors.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...errors import CheckpointError, InputError
from ...files import write_json, write_tensors, write_whole
from ..layers.quantize import check_finite
from ..layers.spike_linear import spiking_layers
from ..spikingbrain.causal_lm import SpikingBrainForCausalLM
from . import packed_bits
from .checksums import of_files, of_tensor
from .compressed_tensors import compressed_config, compressed_entries
from .folder_config import REMOTE_CODE, REMOTE_FILE, SpikebrainConfig, empty_model, own_config
from .folder_entries import Entry
from .folder_tensors import check_for_release, released_entries
from .folders import read_empty
from .hub import GENERATION
from .quantizer import prepare, table_of
from .released import to_released
from .replace_folder import CONFIG, replaced
from .shards import CHECKSUMS, INDEX, SUMS, Shards, shard_name

# Layouts of a folder: ours, that of the released SpikingBrain checkpoints, and that of the library of this name.
FORMATS = ("spikebrain", "released", "compressed-tensors")


def write_folder(
    model: PreTrainedModel,
    path: str | os.PathLike,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    layout: str = "spikebrain",
    max_shard_bytes: int = 4 * 2**30,
    tensors: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a model as a folder; `save` is the public verb.

    Args:
        model: a transformers model that spikes, or a SpikingBrain model.
        path: the folder; made if it is missing.
        tokenizer: saved in the same folder.
        layout: one of `FORMATS`.
        max_shard_bytes: maximum size of the tensors in a shard; a larger tensor gets a shard of its own.
        tensors: written instead of the model's own, by the names of its state dict; only for our layout.
    Raises:
        InputError: the layout cannot describe this model, the model's dtype is too coarse for its spiking weights, a
            weight is not finite, or a layer uses a class or a setting that a file cannot hold.
        CheckpointError: the folder cannot be written.
    """
    path = Path(path)
    if layout == "released":
        assert isinstance(model, SpikingBrainForCausalLM)
        check_for_release(model)
        config, entries = to_released(model.settings), released_entries(model)
    elif layout == "compressed-tensors":
        config, entries = compressed_config(model), compressed_entries(model)
    else:
        config, entries = own_config(model), _own_entries(model, tensors)
    shards = _divided(entries, max_shard_bytes)
    names = [shard_name(i, len(shards)) for i in range(1, len(shards) + 1)]
    weight_map = {entry.name: file for file, shard in zip(names, shards, strict=True) for entry in shard}
    generation = getattr(model, "generation_config", None)
    with replaced(path) as new:
        for file, shard in zip(names, shards, strict=True):
            made = {entry.name: entry.make() for entry in shard}
            checksums = json.dumps({name: of_tensor(tensor) for name, tensor in made.items()})
            write_tensors(new / file, made, {"format": "pt", CHECKSUMS: checksums}, CheckpointError)
        write_json(new / CONFIG, config, error=CheckpointError)
        if "auto_map" in config:
            write_whole(new / REMOTE_FILE, REMOTE_CODE, CheckpointError)
        if generation is not None:
            # Its own save_pretrained refuses settings that many models on the hub have, such as an unused temperature.
            (new / GENERATION).write_text(generation.to_json_string(), encoding="utf-8")
        if tokenizer is not None:
            tokenizer.save_pretrained(new)
        index = {"metadata": {SUMS: of_files(new, ".safetensors")}, "weight_map": weight_map}
        write_json(new / INDEX, index, error=CheckpointError)
        if layout != "compressed-tensors":
            _try_to_read(new, spiking=layout == "spikebrain" and bool(spiking_layers(model)))


def _divided(entries: list[Entry], max_shard_bytes: int) -> list[list[Entry]]:
    """Return the tensors of each shard."""
    shards: list[list[Entry]] = [[]]
    size = 0
    for entry in entries:
        if size + entry.num_bytes > max_shard_bytes and shards[-1]:
            shards.append([])
            size = 0
        shards[-1].append(entry)
        size += entry.num_bytes
    return shards


def _try_to_read(new: Path, *, spiking: bool) -> None:
    """Raise an InputError unless a folder describes a model with its tensors."""
    try:
        if not spiking:
            read_empty(new)
            return
        config = SpikebrainConfig.from_pretrained(new)
        prepare(empty_model(config), table_of(config.quantization_config, new), Shards(new), None)
    except (CheckpointError, InputError) as error:
        raise InputError(f"save: the model could not be loaded again, so nothing was written. ({error})") from error


def _own_entries(model: PreTrainedModel, tensors: Mapping[str, Tensor] | None) -> list[Entry]:
    """Return the tensors of a folder in our layout, by the names that the modules have; tied ones once."""
    own = named_tensors(model)
    if tensors is not None and (differing := sorted(tensors.keys() ^ model.state_dict().keys())):
        raise InputError(
            f"save_pretrained.state_dict: expected the names of the model's own state dict, they differ in "
            f"{', '.join(differing[:6])}. Leave it out to save the model as it is."
        )
    tied: Any = getattr(model, "all_tied_weights_keys", None) or {}
    bits = {f"{name}.weight": layer.weight_bits for name, layer in spiking_layers(model, every_name=True).items()}
    entries = []
    for name, tensor in own.items():
        if own.get(tied.get(name, "")) is tensor:
            continue
        given = tensor if tensors is None else tensors.get(name, tensor)
        entries.append(Entry(name, given.numel() * given.element_size(), _maker(name, given, bits.get(name, 8))))
    return entries


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return what a folder holds of a model: parameters, buffers of its state dict, and other buffers of floats.

    The latter follow from the configuration, but not in another dtype: those of `model.half()` are coarser.
    """
    found: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    kept = model.state_dict().keys()
    for name, buffer in model.named_buffers(remove_duplicate=False):
        if name in kept or buffer.is_floating_point():
            found[name] = buffer
    return found


def _maker(name: str, tensor: Tensor, bits: int) -> Any:
    def make() -> Tensor:
        if isinstance(tensor, nn.Parameter) or name.endswith((".scale", ".minimum")):
            check_finite(tensor, f"save: weights of {name}")
        if tensor.is_meta:
            raise InputError(
                f"save: expected numbers in memory, got {name} on the meta device: it is offloaded. Load the whole "
                "model into memory."
            )
        # A copy, since two tensors may be views of one storage, which the format refuses.
        whole = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        return packed_bits.pack(whole, bits) if bits < 8 else whole

    return make
