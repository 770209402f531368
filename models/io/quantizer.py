"""How transformers reads a folder with a spiking model: its own loader fills spiking layers instead of float ones.

To transformers the integers are a way of quantisation, which is registered here under the name "spikebrain". It calls
us before it reads tensors, when the model is on the meta device, and after.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.quantizers.auto import (
    AUTO_QUANTIZATION_CONFIG_MAPPING,
    AUTO_QUANTIZER_MAPPING,
    register_quantization_config,
    register_quantizer,
)
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from ...errors import CheckpointError, InputError
from ..decoding import attach_decoder
from ..layers.attention_interface import COUNTS
from ..layers.experts import Experts, unfuse_for
from ..layers.graded_linear import check_graded, check_upper_bits, grade_for
from ..layers.guards import guard
from ..layers.quantize import QuantizedWeight, groups_of, input_major
from ..layers.spike_linear import SpikeLinear
from . import packed_bits
from .checksums import check_files
from .folder_config import METHOD, NOT_THESE, check_format
from .layer_table import LayerTable
from .shards import INDEX, SUMS, Shards

# What transformers must not touch any more: set on a module or tensor, it is not initialised.
_DONE = "_is_hf_initialized"
_FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


# A module that is imported anew, as a reload does, takes the place of its former self.
AUTO_QUANTIZATION_CONFIG_MAPPING.pop(METHOD, None)
AUTO_QUANTIZER_MAPPING.pop(METHOD, None)


@register_quantization_config(METHOD)
class SpikebrainQuantizationConfig(QuantizationConfigMixin):
    """The table of spiking layers of a config.json, as transformers hands it around.

    Args:
        content: the table.
    """

    def __init__(self, **content: Any) -> None:
        self.quant_method: Any = METHOD
        self.content = content

    def to_dict(self) -> dict[str, Any]:
        """Return the table as it was."""
        return {**self.content, "quant_method": METHOD}


@register_quantizer(METHOD)
class SpikebrainQuantizer(HfQuantizer):
    """Lets transformers' loader fill the spiking layers of a model.

    The model that it returns is like one from `to_spiking`: it keeps nothing of this class.
    """

    # A float model becomes a spiking one by `to_spiking`, not while it is read.
    requires_calibration = True
    quantization_config: SpikebrainQuantizationConfig

    def __init__(self, quantization_config: SpikebrainQuantizationConfig, **kwargs: Any) -> None:
        if not kwargs.get("pre_quantized", True):
            raise InputError(
                "from_pretrained.quantization_config: a float model is not put on spikes while it is read. Load it, "
                "then call spikebrain.to_spiking."
            )
        super().__init__(quantization_config, **kwargs)
        self._layers: dict[str, SpikeLinear] = {}
        self._kept: list[tuple[nn.Module, str]] = []

    def update_attn_implementation(self, config: Any) -> Any:
        """Return the configuration as `SpikebrainConfig` would, where a class is asked directly."""
        for name in ("auto_map", "model_type", *NOT_THESE):
            vars(config).pop(name, None)
        table = self.quantization_config.content  # pyright: ignore[reportAttributeAccessIssue]
        if config._attn_implementation is None and table.get("attention") == COUNTS:
            config._attn_implementation = COUNTS
        return config

    # In transformers 5.6 only this is called with the configuration.
    update_tp_plan = update_attn_implementation

    def update_weight_conversions(self, *args: Any) -> list[Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return none: the folder has the names that the modules have. Some versions of transformers pass the model."""
        return []

    def is_serializable(self, *args: Any, **kwargs: Any) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return that the model can be saved; `save_pretrained` writes it as `spikebrain.save` does."""
        return True

    @property
    def is_trainable(self) -> bool:  # pyright: ignore
        """Whether its integers learn: they do not."""
        return False

    def _process_model_before_weight_loading(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, model: Any, checkpoint_files: list[str] | None = None, dtype: torch.dtype | None = None, **kwargs: Any
    ) -> Any:
        if not checkpoint_files:
            raise InputError("from_pretrained: expected a folder with a spiking model, got none. Name the folder.")
        folder = Path(checkpoint_files[0]).parent
        content = self.quantization_config.content  # pyright: ignore[reportAttributeAccessIssue]
        table, shards = table_of(content, folder), Shards(folder)
        check_sums(shards, whole=False)
        for name in shards.shapes:  # read to compare its checksum
            shards.read(name, torch.device("cpu"))
        self._layers, self._kept = prepare(model, table, shards, dtype)
        self._table, self._folder = table, folder
        return model

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        for name, layer in self._layers.items():
            _fill(layer, name, self._folder)
        try:
            check_upper_bits(model)
        except InputError as error:
            raise CheckpointError(f"{self._folder}: {error}") from error
        for module, name in self._kept:
            module._non_persistent_buffers_set.add(name)
        self._table.restore_conversion(model)
        self.remove_quantization_config(model)
        for part in model.modules():
            if isinstance(part, PreTrainedModel):
                vars(part.config).pop("_is_quantized", None)
        attach_decoder(model)
        return model


def table_of(content: dict[str, Any], folder: Path) -> LayerTable:
    """Return the table of spiking layers of a folder.

    Raises:
        CheckpointError: it is of another format, was changed, or names a class that is not registered here.
    """
    try:
        check_format({**content, "quant_method": METHOD})
        return LayerTable(content)
    except InputError as error:
        raise CheckpointError(
            f"{folder}: {error} If it uses a plug-in of your own, import the module that registers it first."
        ) from error
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise CheckpointError(
            f"{folder}: config.json: expected its spiking layers as save wrote them; the file was changed. "
            f"({type(error).__name__}: {error})"
        ) from error


def check_sums(shards: Shards, *, whole: bool) -> None:
    """Compare the files beside the weights of a folder with their checksums.

    Args:
        shards: the folder.
        whole: a file may not be missing; else it may, as a download need not fetch all.
    Raises:
        CheckpointError: something was damaged or changed.
    """
    sums = shards.metadata.get(SUMS, {})
    if not isinstance(sums, dict):
        raise CheckpointError(
            f"{shards.path / INDEX}: expected checksums under {SUMS!r}, got {sums!r}. Fetch it again."
        )
    there = {name: value for name, value in sums.items() if whole or (shards.path / name).exists()}
    check_files(shards.path, there, INDEX)


def prepare(
    model: PreTrainedModel, table: LayerTable, shards: Shards, dtype: torch.dtype | None
) -> tuple[dict[str, SpikeLinear], list[tuple[nn.Module, str]]]:
    """Make a float model on the meta device ready for the tensors of a folder.

    Args:
        model: of the folder's configuration.
        table: its spiking layers.
        shards: its tensors, of which names, shapes and dtypes are read.
        dtype: that was asked for, None for that of the configuration.
    Returns:
        The spiking layers, as the files have them; and buffers, by owner and name, that count as persistent until the
        model is read.
    Raises:
        CheckpointError: the model has no such layers, or the tensors are not those of the model.
    """
    layers = _put_layers(model, table, shards)
    kept = _keep_floats(model, shards, dtype)
    _check_names(model, shards)
    return layers, kept


def _put_layers(model: PreTrainedModel, table: LayerTable, shards: Shards) -> dict[str, SpikeLinear]:
    """Put empty spiking layers into a float model, and return them by name."""
    layers: dict[str, SpikeLinear] = {}
    try:
        unfuse_for(model, table.names)
        grade_for(model, table.names)
        for name in table.names:
            same = table.same_as(name)
            layer = layers[same] if same is not None else _empty_layer(model, name, table, shards)
            layers[name] = layer
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, layer)
        check_graded(model)
    except (InputError, AttributeError, KeyError, TypeError, IndexError) as error:
        raise CheckpointError(
            f"{shards.path}: its spiking layers are not those of a {type(model).__name__}. Open it as the class that "
            f"config.json names, with AutoModelForCausalLM or spikebrain.load; else the folder was changed. ({error})"
        ) from error
    for module in model.modules():
        if isinstance(module, SpikeLinear | Experts):
            for part in module.modules():
                setattr(part, _DONE, True)
    guard(model)
    return {name: layer for name, layer in layers.items() if table.same_as(name) is None}


def _empty_layer(model: nn.Module, name: str, table: LayerTable, shards: Shards) -> SpikeLinear:
    """Return the spiking layer in the place of a float one, on the meta device, its weight as the file keeps it."""
    float_layer: Any = model.get_submodule(name)
    if isinstance(float_layer, nn.Linear):
        sizes = (float_layer.out_features, float_layer.in_features)
    else:  # a Conv1D stores [in, out]
        sizes = tuple(reversed(float_layer.weight.shape))
    groups = len(groups_of(sizes[1], table.group_size(name)))
    per_group: dict[str, Any] = {"size": (sizes[0], groups), "dtype": torch.float32, "device": "meta"}
    weight = torch.empty(sizes, dtype=torch.int8, device="meta")
    minimum = torch.empty(**per_group) if table.has_minimum(name) else None
    bias = None
    if f"{name}.bias" in shards.shapes:
        bias = torch.empty(sizes[0], dtype=float_layer.weight.dtype, device="meta")
    layer = table.build(name, weight, torch.empty(**per_group), bias, minimum)
    if table.weight_bits(name) < 8:
        layer._buffers["weight"] = packed_bits.pack(weight, table.weight_bits(name))
    return layer.train(float_layer.training)


def _keep_floats(model: nn.Module, shards: Shards, dtype: torch.dtype | None) -> list[tuple[nn.Module, str]]:
    """Let floats be read as the folder has them: in their dtypes, and buffers that else follow from the configuration.

    If another dtype than the model's is asked for, all get that one.
    """
    kept: list[tuple[nn.Module, str]] = []
    changes = dtype is not None and getattr(model.config, "dtype", None) != dtype
    for prefix, module in model.named_modules():
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            key = f"{prefix}.{name}".lstrip(".")
            if name in module._non_persistent_buffers_set and key in shards.shapes:
                module._non_persistent_buffers_set.discard(name)
                kept.append((module, name))
            found = _FLOATS.get(shards.dtypes.get(key, ""))
            if found not in (None, tensor.dtype) and not changes and tensor.is_floating_point():
                tensor.data = torch.empty_like(tensor, dtype=found)
    return kept


def _check_names(model: PreTrainedModel, shards: Shards) -> None:
    """Raise a CheckpointError that lists all tensors of a folder that are missing, unexpected or of another shape."""
    tied: Any = getattr(model, "all_tied_weights_keys", None) or {}
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    missing = [name for name in wanted if name not in shards.shapes and tied.get(name) not in shards.shapes]
    shards.refuse(shards.misfits(wanted, missing))


def _fill(layer: SpikeLinear, name: str, folder: Path) -> None:
    """Turn what transformers read for a spiking layer into the layer's own form: bytes, rows in the order of spikes.

    Raises:
        CheckpointError: the weights are not in memory, or are none.
    """
    weight: Tensor | None = layer._buffers["weight"]
    if weight is None or weight.is_meta:
        raise CheckpointError(
            f"{folder}: expected room in memory for all spiking layers, but {name} was left on disk. Give a device_map "
            "without 'disk', or more memory."
        )
    try:
        if layer.weight_bits < 8:
            signed = layer.minimum is None
            weight = packed_bits.unpack(weight, layer.in_features, layer.weight_bits, signed=signed)
        QuantizedWeight(weight, layer.scale, layer.minimum, layer.group_size, layer.weight_bits).check()
    except InputError as error:
        raise CheckpointError(f"{folder}: {name}: {error}") from error
    layer._buffers["weight"] = input_major(weight)
