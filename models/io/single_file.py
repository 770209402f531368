"""A spiking model as one safetensors file, read back with identical logits.

The file holds every parameter and buffer once, and JSON in its metadata: the configuration of the transformers
model, the settings of each spiking layer (`layer_table`), which names share a tensor, and the files of the tokenizer.
"""

from __future__ import annotations

import json
import struct
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    GenerationMixin,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ...errors import CheckpointError, InputError
from ...files import parse_json, whole_file
from ..layers.spike_linear import SpikeLinear, spiking_layers
from .layer_table import LayerTable, layer_table

FORMAT = "spikebrain-converted"
VERSION = 2

# safetensors' own limit.
_MAX_HEADER_BYTES = 100_000_000


def write_file(model: nn.Module, path: Path, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
    """Write a spiking model to one file; `models.io.save` is the public verb.

    Args:
        model: the result of `to_spiking`; if it is not from transformers, `load` needs its architecture again.
        path: the file to write; an existing file is replaced in one step.
        tokenizer: stored in the same file, so that `load` returns it too.
    Raises:
        InputError: no layer of the model spikes, or it uses a class or a setting that a file cannot hold.
        CheckpointError: the file cannot be written.
    """
    spiking = spiking_layers(model, every_name=True)
    if not spiking:
        raise InputError("save: expected a model with SpikeLinear layers. Call to_spiking first.")
    if "" in spiking:
        raise InputError("save: expected a model that contains SpikeLinear layers. Wrap a single one in nn.Sequential.")
    tensors, aliases = _distinct_tensors(model)
    header = {
        "format": FORMAT,
        "version": VERSION,
        **_describe(model),
        "spiking": layer_table(model),
        "aliases": aliases,
        "frozen": [name for name, p in model.named_parameters(remove_duplicate=False) if not p.requires_grad],
        "tokenizer": _tokenizer_files(tokenizer),
    }
    text = json.dumps(header)
    with whole_file(path, CheckpointError) as partial:
        save_file(tensors, partial, metadata={FORMAT: text})


def read_file(path: Path, architecture: nn.Module | None = None) -> tuple[nn.Module, PreTrainedTokenizerBase | None]:
    """Read a file that `write_file` wrote.

    Args:
        path: the file.
        architecture: for a model that is not from transformers: a model with the same modules, whose tensors are
            replaced.
    Returns:
        The model and its tokenizer, if it was saved with one.
    Raises:
        CheckpointError: the file is damaged, has another version or is not from `save`, or a class that it names is
            not registered.
    """
    check_safetensors(path)
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if FORMAT not in metadata:
                raise CheckpointError(
                    f"{path}: expected a file that spikebrain.save wrote. For a Hugging Face model name its folder."
                )
            header = parse_json(metadata[FORMAT], str(path), CheckpointError)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        if header["version"] != VERSION:
            raise CheckpointError(
                f"{path}: expected format version {VERSION}, got {header['version']}. Use the version of "
                "spikebrain that wrote it."
            )
        tensors |= {name: tensors[stored] for name, stored in header["aliases"].items()}
        model = architecture or _empty_model(header, path)
        built: dict[str, SpikeLinear] = {}
        table = LayerTable(header["spiking"])
        for name in table.names:
            same = table.same_as(name)
            own = (tensors[f"{name}.weight"], tensors[f"{name}.scale"], tensors.get(f"{name}.bias"))
            built[name] = built[same] if same else table.build(name, *own)
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, built[name])
        _assign(model, tensors, set(header["frozen"]), path)
        table.restore_conversion(model)
        if header["generation_config"] and isinstance(model, GenerationMixin):
            model.generation_config = GenerationConfig.from_dict(header["generation_config"])
        return model, _tokenizer_from(header["tokenizer"])
    except InputError as error:
        raise CheckpointError(
            f"{path}: {error} If the file uses a plug-in of your own, import the module that registers it first."
        ) from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: its description does not fit its tensors or this version; the file is damaged or was changed. "
            f"({type(error).__name__}: {error})"
        ) from error


def check_safetensors(path: Path) -> None:
    """Raise a CheckpointError unless the file has a header of plausible size and all the bytes that it declares."""
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


def _describe(model: nn.Module) -> dict[str, Any]:
    """Return what is needed to rebuild a transformers causal language model; None fields for any other model."""
    if not isinstance(model, PreTrainedModel) or type(model) not in MODEL_FOR_CAUSAL_LM_MAPPING.values():
        return {"config": None, "generation_config": None}
    generation = getattr(model, "generation_config", None)
    return {
        "config": json.loads(model.config.to_json_string(use_diff=False)),
        "attention": model.config._attn_implementation,
        "generation_config": json.loads(generation.to_json_string(use_diff=False)) if generation else None,
    }


def _empty_model(header: dict[str, Any], path: Path) -> nn.Module:
    """Return the transformers model that a header describes, on the meta device."""
    config = header["config"]
    if config is None:
        raise CheckpointError(
            f"{path}: its model is not a transformers causal LM. Pass architecture=, a model with the same modules."
        )
    try:
        built = AutoConfig.for_model(config.pop("model_type"), **config)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(built, attn_implementation=header["attention"])
    except (ValueError, KeyError, ImportError) as error:
        raise CheckpointError(f"{path}: transformers cannot build this model: {error}") from error


def _named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return all parameters and buffers under each of their names, including buffers that state_dict leaves out."""
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


def _assign(model: nn.Module, tensors: dict[str, Tensor], frozen: set[str], path: Path) -> None:
    """Replace the model's tensors by the stored ones; names that share a tensor share one parameter or buffer."""
    wanted = _named_tensors(model)
    missing, extra = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
    misshapen = sorted(n for n in wanted.keys() & tensors.keys() if wanted[n].shape != tensors[n].shape)
    if missing or extra or misshapen:
        raise CheckpointError(f"{path}: tensors missing {missing}, not expected {extra}, of another shape {misshapen}.")
    shared: dict[int, Tensor] = {}
    for name, tensor in wanted.items():
        owner_name, _, attribute = name.rpartition(".")
        owner, stored = model.get_submodule(owner_name), tensors[name]
        if isinstance(tensor, nn.Parameter):
            trained = name not in frozen and stored.is_floating_point()
            placed = shared.setdefault(id(stored), nn.Parameter(stored, requires_grad=trained))
            owner.register_parameter(attribute, placed)  # pyright: ignore[reportArgumentType]
        else:
            # A SpikeLinear has already put its weight in the order in which spikes read it.
            own = tensor if isinstance(owner, SpikeLinear) else stored
            owner._buffers[attribute] = shared.setdefault(id(stored), own)


def _tokenizer_files(tokenizer: PreTrainedTokenizerBase | None) -> dict[str, str] | None:
    if tokenizer is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        files = sorted(file for file in Path(folder).rglob("*") if file.is_file())
        try:
            return {file.relative_to(folder).as_posix(): file.read_text(encoding="utf-8") for file in files}
        except UnicodeDecodeError as error:
            raise InputError(
                "save: expected a tokenizer whose files are text, got a binary one. Save it with its own "
                "save_pretrained instead."
            ) from error


def _tokenizer_from(files: dict[str, str] | None) -> PreTrainedTokenizerBase | None:
    if files is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        for name, text in files.items():
            file = Path(folder, name).resolve()
            if not file.is_relative_to(Path(folder).resolve()):
                raise ValueError(f"the tokenizer file {name!r} lies outside its folder")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
