"""Read model folders: those of spiking models through transformers, those of SpikingBrain models tensor by tensor.

The released layout, and the folders of spikebrain 0.2, hold the weights of a spiking layer as floats, with their scales
in `NAME.weight_quantizer.scales` and minima in `NAME.weight_quantizer.minima`; reading rounds them back to integers.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel

from ...errors import CheckpointError, InputError
from ..conversion.to_spiking import set_settings, spikingbrain_settings
from ..layers.quantize import quantize, quantize_with
from ..layers.settings import SpikeSettings
from ..layers.spike_linear import SpikeLinear
from ..spikingbrain.causal_lm import SpikingBrainForCausalLM
from ..spikingbrain.config import SpikingBrainConfig
from ..spikingbrain.transformers_config import SpikingBrainPretrainedConfig
from .folder_config import METHOD, TABLE, SpikebrainConfig, class_of, config_json, is_spiking
from .folder_tensors import MINIMA, SCALES
from .hub import check_depth, fault, generation_config_of, quiet
from .layer_table import LayerTable
from .quantizer import check_sums
from .released import MODEL_TYPE, from_released
from .replace_folder import CONFIG
from .shards import Shards


def is_spikingbrain(path: Path) -> bool:
    """Return whether a folder's config.json describes a SpikingBrain model, in our layout or the released one.

    Raises:
        CheckpointError: config.json is not JSON.
    """
    fields = config_json(path)
    table = fields.get(TABLE) if is_spiking(fields) else None
    kind = table.get("base_type") if isinstance(table, dict) else fields.get("model_type")
    return kind in (MODEL_TYPE, SpikingBrainPretrainedConfig.model_type)


def names_quantization(path: Path) -> bool:
    """Return whether a folder's config.json says that its weights are quantised, which transformers then undoes."""
    return bool(config_json(path).get("quantization_config"))


def read_folder(
    path: str | os.PathLike,
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    spiking: str | None = None,
) -> Any:
    """Read a folder that `save` wrote, or a released one.

    Args:
        path: the folder.
        dtype: dtype of the float weights; None to keep that of the files.
        device: where each tensor of the model is put.
        spiking: how a spiking model runs, "as-described" or "as-released", with the default settings of that kind; None
            to follow config.json. The released layout does not say: then None means "as-described". Only for folders
            with weights as floats.
    Returns:
        The model, in evaluation mode; it spikes if the folder has weight scales or config.json says so.
    Raises:
        CheckpointError: config.json or a shard is missing or damaged, or tensors are missing, unexpected, of another
            shape or not finite; the message lists all of them.
        InputError: config.json does not describe a valid model.
    """
    path = Path(path)
    if is_spiking(config_json(path)):
        if spiking is not None:
            raise InputError(f"read_folder.spiking: {path} says itself how it spikes. Leave it out, got {spiking!r}.")
        return _read_spiking(path, dtype, device)
    config, generation, reader = _prepare(path, torch.device(device), dtype, spiking)
    reader.run()
    model = reader.model
    model.config = model.model.config = config
    set_settings(model, config.settings)
    if reader.is_tied:
        model.lm_head.register_parameter("weight", model.get_parameter("model.embeddings.weight"))
    if reader.table is not None:
        reader.table.restore_conversion(model)
    if generation is not None:
        model.generation_config = generation
    return model.eval()


def _read_spiking(path: Path, dtype: torch.dtype | None, device: str | torch.device) -> PreTrainedModel:
    """Read a spiking model of any class, as transformers' from_pretrained does."""
    shards = Shards(path)
    check_sums(shards, whole=True)
    check_depth(config_json(path), len(shards.shapes), path / CONFIG)
    generation_config_of(path)
    try:
        with quiet():
            config = SpikebrainConfig.from_pretrained(path)
            options: dict[str, Any] = {"local_files_only": True, "use_safetensors": True}
            where: dict[str, Any] = {} if str(device) == "cpu" else {"device_map": device}
            return class_of(config).from_pretrained(path, config=config, dtype=dtype or "auto", **options, **where)
    except BaseException as error:
        raise fault(error, path, "transformers cannot load it.") from error


def read_empty(path: Path) -> None:
    """Compare the names and shapes of a folder with weights as floats with those of its model.

    Raises:
        CheckpointError: they differ; the message lists all of them.
        InputError: config.json does not describe a valid model.
    """
    *_, reader = _prepare(path, torch.device("cpu"), None, None)
    reader.check()


def _prepare(
    path: Path, device: torch.device, dtype: torch.dtype | None, spiking: str | None
) -> tuple[SpikingBrainPretrainedConfig, GenerationConfig | None, _Reader]:
    """Return the configurations of a folder, and what reads its tensors into an empty model."""
    fields, shards = config_json(path), Shards(path)
    check_depth(fields, len(shards.shapes), path / CONFIG)
    table = _table_of(fields) if spiking is None else None
    config = _read_config(fields, shards, spiking)
    generation = generation_config_of(path)
    check_sums(shards, whole=True)  # after their content, whose errors say more
    settings = config.settings
    # A spiking output head has its own INT8 weights, even if its float weights were tied to the embedding.
    is_tied = settings.tie_word_embeddings and (table is None or "lm_head" not in table.names)
    try:
        with torch.device("meta"):
            empty = settings.replace(spiking=None, tie_word_embeddings=is_tied)
            model = SpikingBrainForCausalLM(SpikingBrainPretrainedConfig(empty))
    except (RuntimeError, OverflowError, TypeError) as error:  # sizes beyond 64 bits
        raise CheckpointError(f"{path / CONFIG}: no model has such sizes. Fetch it again. ({error})") from error
    return config, generation, _Reader(model, settings, shards, device, dtype, table, is_tied=is_tied)


def without_weights(path: Path) -> tuple[SpikingBrainForCausalLM, bool]:
    """Return the float model that a folder describes, on the meta device, and whether the folder's model spikes.

    Raises:
        CheckpointError: as for `read_folder`, as far as config.json and the names of the tensors go.
        InputError: config.json does not describe a valid model.
    """
    fields = config_json(path)
    table = _table_of(fields)
    settings = _read_config(fields, Shards(path), None).settings
    with torch.device("meta"):
        model = SpikingBrainForCausalLM(SpikingBrainPretrainedConfig(settings.replace(spiking=None)))
    return model, table is not None or settings.spiking is not None


def _table_of(fields: dict[str, Any]) -> LayerTable | None:
    """Remove the table of spiking layers from the fields of config.json and return it; None if there is none."""
    content = fields.pop(TABLE, None)
    if not isinstance(content, dict) or content.get("quant_method") != METHOD:
        return None
    try:
        return LayerTable(content)
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"config.json: expected {TABLE} as save wrote it; the file was changed. ({type(error).__name__}: {error})"
        ) from error


def _read_config(fields: dict[str, Any], shards: Shards, spiking: str | None) -> SpikingBrainPretrainedConfig:
    """Return the configuration; tensor names supply what the released layout does not say."""
    has_scales = any(name.endswith(SCALES) for name in shards.shapes)
    if fields.get("model_type") != MODEL_TYPE:
        own = {k: v for k, v in fields.items() if k not in ("model_type", "auto_map", TABLE)}
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
        *,
        is_tied: bool,
    ) -> None:
        self.is_tied = is_tied
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
        self.shards.refuse({**wrong, "not of floats": self.not_floats, "not finite": sorted(self.not_finite)})

    def check(self) -> None:
        """Compare names and shapes only.

        Raises:
            CheckpointError: tensors are wrong; the message lists all of them.
        """
        self.shards.refuse(self._compare())

    def _compare(self) -> dict[str, list[str]]:
        """Return the names of tensors that are wrong according to the shards' headers."""
        wanted = {name: tuple(p.shape) for name, p in self.model.named_parameters()}  # a tied head only once
        shapes = self.shards.shapes
        linears = [n for n, m in self.model.named_modules() if type(m) is nn.Linear]
        scales = {f"{name}{SCALES}": name for name in linears}
        has_scales = any(name in shapes for name in scales)
        optional = {scale for scale, name in scales.items() if self.spiking is not None or name in self.names}
        if self.table is not None:
            optional |= {f"{name}{MINIMA}" for name in self.names if self.table.has_minimum(name)}
        # In the released model down_proj is dense and has no scales; if it spikes, rounding computes them.
        rounded = spikingbrain_settings("as-released")
        needed = {scale for scale, name in scales.items() if rounded.matches(name)} if has_scales else set()
        if self.table is not None:
            needed = set(optional)
        missing = (wanted.keys() | (needed & optional)) - shapes.keys()
        return self.shards.misfits(wanted, missing, optional)

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
        minima, ours = None, self.table is not None
        if self.table is not None and self.table.has_minimum(name):
            minima = self.shards.read(f"{name}{MINIMA}", self.device).squeeze(-1)
        if f"{name}{SCALES}" in self.shards.shapes:
            scales = self.shards.read(f"{name}{SCALES}", self.device)
            try:
                integers, scale, group_size = quantize_with(weight, scales, name, minima, ours=ours)
            except InputError as error:
                raise CheckpointError(f"{self.shards.path}: {error}") from error
        else:
            assert self.spiking is not None
            group_size = self.spiking.group_size
            integers, scale = quantize(weight, group_size, name)
        if self.table is not None:
            return self.table.build(name, integers, scale, bias, minima)
        assert self.spiking is not None
        settings = {"encoder": self.spiking.encoder, "backend": self.spiking.backend}
        neuron = self.spiking.neuron_of(name)
        return SpikeLinear(integers, scale, bias, group_size=group_size, name=name, neuron=neuron, **settings)
