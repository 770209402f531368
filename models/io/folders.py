"""Folders of SpikingBrain models: the released layout and our own, read and written one tensor at a time.

Both hold config.json and safetensors shards with the same tensor names. The weights of a spiking layer are stored as
floats, with their scales in `NAME.weight_quantizer.scales`; reading rounds them back to integers.
Our own config.json also holds the settings of every spiking layer (`layer_table`), under "quantization_config".
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedTokenizerBase

from ...errors import CheckpointError, InputError
from ...files import cannot_write, make_folder, read_json, whole_file, write_json
from ..conversion.to_spiking import set_settings, spikingbrain_settings
from ..layers.quantize import quantize, quantize_with
from ..layers.settings import SpikeSettings
from ..layers.spike_linear import SpikeLinear, spiking_layers
from ..spikingbrain.causal_lm import SpikingBrainForCausalLM
from ..spikingbrain.config import SpikingBrainConfig
from ..spikingbrain.transformers_config import SpikingBrainPretrainedConfig
from .layer_table import LayerTable, layer_table
from .released import MODEL_TYPE, from_released, to_released
from .shards import INDEX, Shards

SCALES = ".weight_quantizer.scales"
_GENERATION = "generation_config.json"
# Where config.json keeps the table of spiking layers, in the form that transformers uses for quantised models.
_TABLE, _METHOD = "quantization_config", "spikebrain"


def is_spikingbrain(path: Path) -> bool:
    """Return whether a folder's config.json describes a SpikingBrain model, in our layout or the released one.

    Raises:
        CheckpointError: config.json is not JSON.
    """
    return _config_json(path).get("model_type") in (MODEL_TYPE, SpikingBrainPretrainedConfig.model_type)


def read_folder(
    path: str | os.PathLike,
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    spiking: str | None = None,
) -> SpikingBrainForCausalLM:
    """Read a model with at most one extra tensor in memory at any time.

    Args:
        path: the folder.
        dtype: dtype of the float weights; None to keep that of the files.
        device: where each tensor of the model is put.
        spiking: how a spiking model runs, "as-described" or "as-released", with the default settings of that kind; None
            to follow config.json. The released layout does not say: then None means "as-described".
    Returns:
        The model, in evaluation mode; it spikes if the folder has weight scales or config.json says so.
    Raises:
        CheckpointError: config.json or a shard is missing or damaged, or tensors are missing, unexpected, of another
            shape or not finite; the message lists all of them.
        InputError: config.json does not describe a valid model.
    """
    path, device = Path(path), torch.device(device)
    fields, shards = _config_json(path), Shards(path)
    table = _table_of(fields) if spiking is None else None
    config = _read_config(fields, shards, spiking)
    settings = config.settings
    # A spiking output head has its own INT8 weights, even if its float weights were tied to the embedding.
    is_tied = settings.tie_word_embeddings and (table is None or "lm_head" not in table.names)
    with torch.device("meta"):
        empty = settings.replace(spiking=None, tie_word_embeddings=is_tied)
        model = SpikingBrainForCausalLM(SpikingBrainPretrainedConfig(empty))
    reader = _Reader(model, settings, shards, device, dtype, table)
    reader.run()
    model.config = model.model.config = config
    set_settings(model, settings)
    if is_tied:
        model.lm_head.register_parameter("weight", model.get_parameter("model.embeddings.weight"))
    if table is not None:
        table.restore_conversion(model)
    if (path / _GENERATION).is_file():
        model.generation_config = GenerationConfig.from_pretrained(path)
    return model.eval()


def write_folder(
    model: SpikingBrainForCausalLM,
    path: str | os.PathLike,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    released: bool = False,
    max_shard_bytes: int = 4 * 2**30,
) -> None:
    """Write a model, spiking or not, as config.json, safetensors shards and their index; `save` is the public verb.

    Args:
        model: a `SpikingBrainForCausalLM`.
        path: the folder; made if it is missing.
        tokenizer: saved in the same folder.
        released: write the released config.json (model_type "gla_swa"), which can't say how a spiking model runs;
            otherwise our own.
        max_shard_bytes: maximum size of the tensors in a shard; a larger tensor gets a shard of its own.
    Raises:
        InputError: the released layout cannot describe this model, the model's dtype is too coarse for its spiking
            weights, or a layer uses a class or a setting that a file cannot hold.
        CheckpointError: the folder cannot be written.
    """
    path = Path(path)
    config = to_released(model.settings) if released else _own_config(model)
    shards: list[list[tuple[str, nn.Module, str]]] = [[]]
    size = 0
    for name, module, attribute, num_bytes in _stored(model):
        if size + num_bytes > max_shard_bytes and shards[-1]:
            shards.append([])
            size = 0
        shards[-1].append((name, module, attribute))
        size += num_bytes
    names = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    try:
        make_folder(path, CheckpointError)
        (path / INDEX).unlink(missing_ok=True)  # until all shards are there
        for file, shard in zip(names, shards, strict=True):
            tensors = {name: _tensor(module, attribute, model.dtype, name) for name, module, attribute in shard}
            with whole_file(path / file, CheckpointError) as partial:
                save_file(tensors, partial, metadata={"format": "pt"})
        weight_map = {name: file for file, shard in zip(names, shards, strict=True) for name, *_ in shard}
        write_json(path / "config.json", config, error=CheckpointError)
        if model.generation_config is not None:
            model.generation_config.save_pretrained(path)
        if tokenizer is not None:
            tokenizer.save_pretrained(path)
        write_json(path / INDEX, {"metadata": {}, "weight_map": weight_map}, error=CheckpointError)
    except OSError as error:
        raise cannot_write(path, error, CheckpointError) from error


def _own_config(model: SpikingBrainForCausalLM) -> dict[str, Any]:
    """Return our config.json, with the table of spiking layers if there are any."""
    config = json.loads(model.config.to_json_string(use_diff=False))
    if spiking_layers(model):
        config[_TABLE] = {"quant_method": _METHOD, **layer_table(model)}
    return config


def _table_of(fields: dict[str, Any]) -> LayerTable | None:
    """Remove the table of spiking layers from the fields of config.json and return it; None if there is none."""
    content = fields.pop(_TABLE, None)
    if not isinstance(content, dict) or content.get("quant_method") != _METHOD:
        return None
    try:
        return LayerTable(content)
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"config.json: expected {_TABLE} as save wrote it; the file was changed. ({type(error).__name__}: {error})"
        ) from error


def _config_json(path: Path) -> dict[str, Any]:
    file = path / "config.json"
    if not file.exists():
        raise CheckpointError(f"{path}: expected a model folder, but it has no config.json.")
    fields = read_json(file, CheckpointError)
    if not isinstance(fields, dict):
        raise CheckpointError(f"{file}: expected a JSON object, got {type(fields).__name__}. Fetch it again.")
    return fields


def _read_config(fields: dict[str, Any], shards: Shards, spiking: str | None) -> SpikingBrainPretrainedConfig:
    """Return the configuration; tensor names supply what the released layout does not say."""
    has_scales = any(name.endswith(SCALES) for name in shards.shapes)
    if fields.get("model_type") != MODEL_TYPE:
        own = {k: v for k, v in fields.items() if k not in ("model_type", _TABLE)}
        config = SpikingBrainPretrainedConfig(**own)
        if spiking is not None:
            config.spiking = spiking
        return config
    settings = from_released(fields)
    if has_scales or spiking is not None:
        settings = settings.replace(spiking=spiking or "as-described")
    if any(name.endswith(".gk_proj.weight") for name in shards.shapes):
        settings = settings.replace(gate="full")
    tokens = {k: fields[k] for k in ("bos_token_id", "eos_token_id", "pad_token_id") if k in fields}
    return SpikingBrainPretrainedConfig(settings, **tokens)


class _Reader:
    """Fills a model on the meta device from shards, and swaps the layers that spike."""

    def __init__(
        self,
        model: SpikingBrainForCausalLM,
        settings: SpikingBrainConfig,
        shards: Shards,
        device: torch.device,
        dtype: torch.dtype | None,
        table: LayerTable | None,
    ) -> None:
        self.model, self.shards, self.device, self.dtype, self.table = model, shards, device, dtype, table
        self.names = set(table.names) if table is not None else set()
        self.spiking: SpikeSettings | None = None
        if table is None and settings.spiking is not None:
            self.spiking = spikingbrain_settings(settings.spiking, k=settings.k, group_size=settings.group_size)
        self.not_finite: list[str] = []
        self.not_floats: list[str] = []

    def run(self) -> None:
        """Read all tensors.

        Raises:
            CheckpointError: tensors are wrong; the message lists all of them.
        """
        wrong = self._compare()
        for name, module in list(self.model.named_modules()):
            own = [f"{name}.{key}".lstrip(".") for key, _ in module.named_parameters(recurse=False)]
            tensors = {key: self._read(key) for key in own if key in self.shards.shapes}
            if any((*wrong.values(), self.not_finite, self.not_floats)):
                continue  # only look for more errors to list
            if self._spikes(name, module):
                parent, _, child = name.rpartition(".")
                setattr(self.model.get_submodule(parent), child, self._spike_linear(name, tensors))
                continue
            for key, tensor in tensors.items():
                module.register_parameter(key.rpartition(".")[2], nn.Parameter(tensor))
        listed = {**wrong, "not of floats": self.not_floats, "not finite": sorted(self.not_finite)}
        if any(listed.values()):
            details = "; ".join(f"{what}: {', '.join(names)}" for what, names in listed.items() if names)
            raise CheckpointError(f"{self.shards.path}: its tensors do not match the model. {details}. Fetch it again.")

    def _compare(self) -> dict[str, list[str]]:
        """Return the names of tensors that are wrong according to the shards' headers."""
        wanted = {name: tuple(p.shape) for name, p in self.model.named_parameters()}  # a tied head only once
        shapes = self.shards.shapes
        linears = [n for n, m in self.model.named_modules() if type(m) is nn.Linear]
        scales = {f"{name}{SCALES}": name for name in linears}
        has_scales = any(name in shapes for name in scales)
        optional = {scale for scale, name in scales.items() if self.spiking is not None or name in self.names}
        # In the released model down_proj is dense and has no scales; if it spikes, rounding computes them.
        rounded = spikingbrain_settings("as-released")
        needed = {scale for scale, name in scales.items() if rounded.matches(name)} if has_scales else set()
        if self.table is not None:
            needed = set(optional)
        return {
            "missing": sorted((wanted.keys() | (needed & optional)) - shapes.keys()),
            "unexpected": sorted(shapes.keys() - wanted.keys() - optional),
            "of another shape": [
                f"{name} {shapes[name]} instead of {shape}"
                for name, shape in sorted(wanted.items())
                if name in shapes and shapes[name] != shape
            ],
        }

    def _spikes(self, name: str, module: nn.Module) -> bool:
        if type(module) is not nn.Linear:
            return False
        return name in self.names or (self.spiking is not None and self.spiking.matches(name))

    def _read(self, name: str) -> Tensor:
        tensor = self.shards.read(name, self.device)
        if not tensor.is_floating_point():
            self.not_floats.append(f"{name} ({tensor.dtype})")
        elif not bool(torch.isfinite(tensor).all()):
            self.not_finite.append(name)
        return tensor if self.dtype is None else tensor.to(self.dtype)

    def _spike_linear(self, name: str, tensors: dict[str, Tensor]) -> SpikeLinear:
        weight, bias = tensors[f"{name}.weight"], tensors.get(f"{name}.bias")
        if f"{name}{SCALES}" in self.shards.shapes:
            try:
                integers, scale, group_size = quantize_with(
                    weight, self.shards.read(f"{name}{SCALES}", self.device), name
                )
            except InputError as error:
                raise CheckpointError(f"{self.shards.path}: {error}") from error
        else:
            assert self.spiking is not None
            group_size = self.spiking.group_size
            integers, scale = quantize(weight, group_size, name)
        if self.table is not None:
            return self.table.build(name, integers, scale, bias)
        assert self.spiking is not None
        settings = {"encoder": self.spiking.encoder, "backend": self.spiking.backend}
        neuron = self.spiking.neuron_of(name)
        return SpikeLinear(integers, scale, bias, group_size=group_size, name=name, neuron=neuron, **settings)


def _stored(model: SpikingBrainForCausalLM) -> Iterator[tuple[str, nn.Module, str, int]]:
    """Yield name, owner, attribute and bytes of each tensor in the folder, without repeats."""
    seen: set[int] = set()
    element = torch.empty((), dtype=model.dtype).element_size()
    for prefix, module in model.named_modules():
        if isinstance(module, SpikeLinear):
            yield f"{prefix}.weight", module, "weight", module.weight.numel() * element
            yield f"{prefix}{SCALES}", module, "scale", module.scale.numel() * 4
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield f"{prefix}.{name}".lstrip("."), module, name, parameter.numel() * parameter.element_size()


def _tensor(module: nn.Module, attribute: str, dtype: torch.dtype, name: str) -> Tensor:
    """Return a tensor in the form that the folder stores."""
    tensor: Tensor = getattr(module, attribute)
    if isinstance(module, SpikeLinear) and attribute == "scale":
        tensor = module.scale if module.group_size is None else module.scale[..., None]
    elif isinstance(module, SpikeLinear) and attribute == "weight":
        size = min(module.group_size or module.in_features, module.in_features)
        if module.in_features % size:
            raise InputError(f"save: expected a group size that divides the inputs of {name}, got {size}.")
        tensor = module.dequantized_weight().to(dtype)
        found = (tensor.float() / module.scale.repeat_interleave(size, 1)).round_()
        if not torch.equal(found, module.weight.float()):
            raise InputError(f"save: {dtype} is too coarse for the weights of {name}. Use model.float() first.")
    return tensor.detach().cpu().contiguous()
