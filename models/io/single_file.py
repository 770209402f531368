"""A spiking model as one safetensors file, read back with identical logits.

The file holds every parameter and buffer once, and JSON in its metadata: the configuration of the transformers
model, the settings of each spiking layer (`layer_table`), which names share a tensor, and the files of the tokenizer.
"""

from __future__ import annotations

import json
import struct
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
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
from ..layers.attention_interface import COUNTS, set_counts
from ..layers.experts import unfuse_for
from ..layers.graded_linear import check_graded, check_upper_bits, grade_for
from ..layers.quantize import check_finite
from ..layers.spike_linear import SpikeLinear, spiking_layers
from . import packed_bits
from .checksums import check_tensor, of_tensor, of_text
from .hub import check_depth, fault
from .layer_table import LayerTable, layer_table

FORMAT = "spikebrain-converted"
VERSION = 3
# In the metadata beside the description: its checksum. A description that another program wrote has none.
_SEAL = "spikebrain-converted-sha256"
# Implementations of attention that come with PyTorch; ours comes with this package.
_ATTENTION = ("eager", "sdpa", "flex_attention")

# safetensors' own limit.
_MAX_HEADER_BYTES = 100_000_000


def write_file(model: nn.Module, path: Path, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
    """Write a spiking model to one file; `models.io.save` is the public verb.

    Args:
        model: the result of `to_spiking`; if it is not from transformers, `load` needs its architecture again.
        path: the file to write; an existing file is replaced in one step.
        tokenizer: stored in the same file, so that `load` returns it too.
    Raises:
        InputError: no layer of the model spikes, a weight is not finite, the model uses a class or a setting that a
            file cannot hold, or the file could not be loaded again.
        CheckpointError: the file cannot be written.
    """
    spiking = spiking_layers(model, every_name=True)
    if not spiking:
        raise InputError("save: expected a model with SpikeLinear layers. Call to_spiking first.")
    if "" in spiking:
        raise InputError("save: expected a model that contains SpikeLinear layers. Wrap a single one in nn.Sequential.")
    tensors, aliases = _distinct_tensors(model)
    for name, layer in spiking.items():
        if layer.weight_bits < 8 and f"{name}.weight" in tensors:
            tensors[f"{name}.weight"] = packed_bits.pack(tensors[f"{name}.weight"], layer.weight_bits)
    header = {
        "format": FORMAT,
        "version": VERSION,
        **_describe(model),
        "spiking": layer_table(model),
        "aliases": aliases,
        "frozen": [name for name, p in model.named_parameters(remove_duplicate=False) if not p.requires_grad],
        "tokenizer": _tokenizer_files(tokenizer),
        "checksums": {name: of_tensor(tensor) for name, tensor in tensors.items()},
    }
    text = json.dumps(header)
    with whole_file(path, CheckpointError) as partial:
        save_file(tensors, partial, metadata={FORMAT: text, _SEAL: of_text(text)})
        del tensors
        _try_to_read(partial)


def _try_to_read(path: Path) -> None:
    """Raise an InputError unless a file can be read again; of a model that is not from transformers, its tensors."""
    try:
        header, tensors = _content(path)
        if header["config"] is not None:
            _build(header, tensors, None, path)
    except CheckpointError as error:
        raise InputError(f"save: the model could not be loaded again, so nothing was written. ({error})") from error


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
    header, tensors = _content(path)
    return _build(header, tensors, architecture, path)


def _content(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the description in a file and its tensors, if both are as they were saved."""
    check_safetensors(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        if FORMAT not in metadata:
            raise CheckpointError(
                f"{path}: expected a file that spikebrain.save wrote. For a Hugging Face model name its folder."
            )
        text = metadata[FORMAT]
        if metadata.keys() - {FORMAT, _SEAL} or metadata.get(_SEAL, of_text(text)) != of_text(text):
            raise CheckpointError(
                f"{path}: its description is not what was saved (another checksum): the file is damaged or was "
                "changed. Fetch it or save it again."
            )
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    header = parse_json(text, f"{path}: its description", CheckpointError, object_hook=_number)
    try:
        version, checksums = header["version"], header.get("checksums", {})
        if version == VERSION:
            for name, tensor in tensors.items():
                check_tensor(tensor, name, checksums.get(name), str(path))
    except Exception as error:  # whatever a changed description leads to
        raise _misfit(path, error) from error
    if version != VERSION:
        raise CheckpointError(
            f"{path}: expected format version {VERSION}, got {version}. Load it with the version of spikebrain that "
            "wrote it, and save it again with this one."
        )
    return header, tensors


def _build(
    header: dict[str, Any], tensors: dict[str, Tensor], architecture: nn.Module | None, path: Path
) -> tuple[nn.Module, PreTrainedTokenizerBase | None]:
    try:
        tensors |= {name: tensors[stored] for name, stored in header["aliases"].items()}
        if architecture is None and header["config"]:
            check_depth(header["config"], len(tensors), path)
        model = architecture or _empty_model(header, path)
        built: dict[str, SpikeLinear] = {}
        table = LayerTable(header["spiking"])
        unfuse_for(model, table.names)
        grade_for(model, table.names)
        unpacked: dict[int, Tensor] = {}
        for name in table.names:
            same = table.same_as(name)
            weight, minimum = tensors[f"{name}.weight"], tensors.get(f"{name}.minimum")
            bits = table.weight_bits(same or name)
            if bits < 8:
                num_inputs = _num_inputs(model.get_submodule(name))
                if id(weight) not in unpacked:
                    unpacked[id(weight)] = packed_bits.unpack(weight, num_inputs, bits, signed=minimum is None)
                weight = tensors[f"{name}.weight"] = unpacked[id(weight)]
            own = (weight, tensors[f"{name}.scale"], tensors.get(f"{name}.bias"), minimum)
            built[name] = built[same] if same else table.build(name, *own)
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, built[name])
        check_graded(model)
        check_upper_bits(model)
        _assign(model, tensors, set(header["frozen"]), path)
        table.restore_conversion(model)
        if architecture is not None and table.attends_on_counts:
            set_counts(model)
        if header["generation_config"] and isinstance(model, GenerationMixin):
            model.generation_config = GenerationConfig.from_dict(header["generation_config"])
        return model, _tokenizer_from(header["tokenizer"], path)
    except InputError as error:
        raise CheckpointError(
            f"{path}: {error} If the file uses a plug-in of your own, import the module that registers it first."
        ) from error
    except Exception as error:  # whatever a changed description leads to
        raise _misfit(path, error) from error


def _num_inputs(layer: nn.Module) -> int:
    """Return the input channels of a linear layer, or of a Conv1D, which stores [in, out]."""
    if isinstance(layer, nn.Linear | SpikeLinear):
        return layer.in_features
    return layer.get_parameter("weight").shape[0]


def _misfit(path: Path, error: Exception) -> CheckpointError:
    told = "its description does not fit its tensors or this version; the file is damaged or was changed."
    return fault(error, path, told)


def _number(content: dict[str, Any]) -> Any:
    """Return the number that transformers writes as {"__float__": "Infinity"}, and any other object as it is."""
    return float(content["__float__"]) if content.keys() == {"__float__"} else content


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
        fields = {name: value for name, value in config.items() if name != "model_type"}
        built = AutoConfig.for_model(config["model_type"], **fields)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(
                built, attn_implementation=installed_attention(header["attention"], path)
            )
    except BaseException as error:
        raise fault(error, path, "transformers cannot build this model.") from error


def installed_attention(name: Any, where: str | Path) -> str | None:
    """Return the implementation of attention that a model was saved with, or None if it is not installed here."""
    if name in (*_ATTENTION, COUNTS):
        return name
    is_here = getattr(transformers.utils, f"is_{str(name).replace('attention', 'attn')}_available", lambda: False)
    if name is not None and not is_here():
        warnings.warn(
            f"{where}: was saved with the attention {name!r}, which is not installed here. That of PyTorch is used, "
            "which rounds differently.",
            stacklevel=2,
        )
        return None
    return name


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
            if isinstance(tensor, nn.Parameter) or name.endswith((".scale", ".minimum")):
                check_finite(tensor, f"save: weights of {name}")
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
        if attribute in owner._parameters:  # some models register a parameter as a buffer
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


def _tokenizer_from(files: dict[str, str] | None, path: Path) -> PreTrainedTokenizerBase | None:
    if files is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        for name, text in files.items():
            file = Path(folder, name).resolve()
            if not file.is_relative_to(Path(folder).resolve()):
                raise ValueError(f"the tokenizer file {name!r} lies outside its folder")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
        try:
            return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except BaseException as error:
            raise fault(error, path, "its tokenizer cannot be read. Fetch it again.") from error
