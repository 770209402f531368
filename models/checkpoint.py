"""Save a converted model as one safetensors file, and read it back with identical logits.

The file holds every parameter and buffer once, and JSON in its metadata: the configuration of the transformers
model, the settings of each spiking layer, which names share a tensor, and the files of the tokenizer.
"""

from __future__ import annotations

import dataclasses
import json
import os
import struct
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    GenerationMixin,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..backends import BACKENDS
from ..coding import ENCODERS
from ..errors import CheckpointError, InputError
from ..neuro import NEURONS
from ..registry import Registry
from .spike_linear import SpikeLinear

FORMAT = "spikebrain-converted"
VERSION = 1

# safetensors' own limit.
_MAX_HEADER_BYTES = 100_000_000


def save(model: nn.Module, path: str | os.PathLike, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
    """Write a converted transformers model to one file.

    Args:
        model: a model that `convert` returned; `load` needs its architecture again if it is not of transformers.
        path: the file to write, usually *.safetensors; replaced in one step once it is complete.
        tokenizer: stored in the same file, so that `load` returns it too.
    Raises:
        InputError: no layer of the model spikes, or it uses a plug-in that is not registered, which `load` could
            not find again.
        CheckpointError: the file cannot be written.
    """
    path = Path(path)
    layers = {name: _settings(module) for name, module in model.named_modules() if isinstance(module, SpikeLinear)}
    if not layers:
        raise InputError("save: expected a model with SpikeLinear layers. Call convert first.")
    config = model.config if isinstance(model, PreTrainedModel) else None
    tensors, aliases = _distinct_tensors(model)
    generation = getattr(model, "generation_config", None)
    header = {
        "format": FORMAT,
        "version": VERSION,
        "config": config.to_dict() if config else None,
        "generation_config": generation.to_dict() if generation else None,
        "layers": layers,
        "aliases": aliases,
        "tokenizer": _tokenizer_files(tokenizer),
    }
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        save_file(tensors, partial, metadata={FORMAT: json.dumps(header, default=str)})
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be written: {error}") from error
    finally:
        partial.unlink(missing_ok=True)


def read(path: Path, architecture: nn.Module | None = None) -> tuple[nn.Module, PreTrainedTokenizerBase | None]:
    """Read a file that `save` wrote.

    Args:
        path: the file.
        architecture: for a model that is not of transformers: one with the same modules, whatever its weights; its
            tensors are replaced.
    Returns:
        The model and its tokenizer, if it was saved with one.
    Raises:
        CheckpointError: the file is damaged or of a later version, or a plug-in it names is not registered.
    """
    check_safetensors(path)
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()[FORMAT])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    if header["version"] != VERSION:
        raise CheckpointError(f"{path}: expected format version {VERSION}, got {header['version']}. Update spikebrain.")
    tensors |= {name: tensors[stored] for name, stored in header["aliases"].items()}
    model = architecture or _empty_model(header["config"], path)
    try:
        for name, settings in header["layers"].items():
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, _layer(name, settings, tensors))
    except InputError as error:
        raise CheckpointError(f"{path}: {error} Import the module that registers it first.") from error
    _assign(model, tensors, path)
    if header["generation_config"] and isinstance(model, GenerationMixin):
        model.generation_config = GenerationConfig.from_dict(header["generation_config"])
    return model, _tokenizer_from(header["tokenizer"])


def is_converted(path: Path) -> bool:
    """Return whether a safetensors file was written by `save`."""
    with safe_open(path, "pt") as file:
        return FORMAT in (file.metadata() or {})


def check_safetensors(path: Path) -> None:
    """Raise a CheckpointError unless the file has a header of sane size and all the bytes that it promises."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
    header_bytes = struct.unpack("<Q", start)[0] if len(start) == 8 else None
    if header_bytes is None or header_bytes > min(_MAX_HEADER_BYTES, size - 8):
        claim = "is too short for a header" if header_bytes is None else f"claims a header of {header_bytes:,} bytes"
        raise CheckpointError(
            f"{path}: expected a safetensors file, but it {claim} and has {size:,} bytes. It is truncated, damaged or "
            "of another kind: fetch it again."
        )
    try:
        with safe_open(path, "pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: damaged safetensors file, fetch it again. ({error})") from error


def _empty_model(config: dict[str, Any] | None, path: Path) -> nn.Module:
    """Return the transformers model of that configuration, without memory for its weights."""
    if config is None:
        raise CheckpointError(f"{path}: holds a model that is not of transformers. Pass architecture=, one like it.")
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(AutoConfig.for_model(config.pop("model_type"), **config))
    except (ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: transformers cannot build this model: {error}") from error


def _settings(layer: SpikeLinear) -> dict[str, Any]:
    return {
        "group_size": layer.group_size,
        "neuron": _plug_in(layer.neuron, NEURONS),
        "encoder": _plug_in(layer.encoder, ENCODERS),
        "backend": None if layer.backend is None else _plug_in(layer.backend, BACKENDS),
    }


def _plug_in(value: Any, registry: Registry) -> dict[str, Any]:
    name = registry.name_of(value)
    if name is None:
        raise InputError(
            f"save: {registry.kind} {type(value).__name__} has no name by which load could find it. "
            f"Decorate the class with @{registry.kind.upper()}S.register(...)."
        )
    return {"name": name, **(dataclasses.asdict(value) if dataclasses.is_dataclass(value) else {})}  # pyright: ignore[reportArgumentType]


def _build(settings: dict[str, Any], registry: Registry) -> Any:
    settings = dict(settings)
    return registry.get(settings.pop("name"))(**settings)


def _layer(name: str, settings: dict[str, Any], tensors: dict[str, Tensor]) -> SpikeLinear:
    return SpikeLinear(
        tensors[f"{name}.weight"],
        tensors[f"{name}.scale"],
        tensors.get(f"{name}.bias"),
        group_size=settings["group_size"],
        neuron=_build(settings["neuron"], NEURONS),
        encoder=_build(settings["encoder"], ENCODERS),
        backend=None if settings["backend"] is None else _build(settings["backend"], BACKENDS),
        name=name,
    )


def _named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return all parameters and buffers by every name they have, buffers that state_dict leaves out included."""
    everything = dict(model.named_parameters(remove_duplicate=False))
    return everything | dict(model.named_buffers(remove_duplicate=False))


def _distinct_tensors(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    names: dict[int, str] = {}
    for name, tensor in _named_tensors(model).items():
        first = names.setdefault(id(tensor), name)
        if first == name:
            # A copy, since two tensors may be views of one storage, which the format refuses.
            tensors[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        else:
            aliases[name] = first
    return tensors, aliases


def _assign(model: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Put stored tensors in place of the model's; names that share a tensor share one parameter."""
    wanted = _named_tensors(model)
    missing, extra = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
    misshapen = sorted(n for n in wanted.keys() & tensors.keys() if wanted[n].shape != tensors[n].shape)
    if missing or extra or misshapen:
        raise CheckpointError(f"{path}: tensors missing {missing}, not expected {extra}, of another shape {misshapen}.")
    parameters: dict[int, nn.Parameter] = {}
    for name, tensor in wanted.items():
        owner_name, _, attribute = name.rpartition(".")
        owner, stored = model.get_submodule(owner_name), tensors[name]
        if isinstance(tensor, nn.Parameter):
            owner._parameters[attribute] = parameters.setdefault(id(stored), nn.Parameter(stored))
        elif not isinstance(owner, SpikeLinear):  # which was built with its own
            owner._buffers[attribute] = stored


def _tokenizer_files(tokenizer: PreTrainedTokenizerBase | None) -> dict[str, str] | None:
    if tokenizer is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return {file.name: file.read_text(encoding="utf-8") for file in sorted(Path(folder).iterdir())}


def _tokenizer_from(files: dict[str, str] | None) -> PreTrainedTokenizerBase | None:
    if files is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        for name, text in files.items():
            (Path(folder) / Path(name).name).write_text(text, encoding="utf-8")
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
