"""config.json of a folder that `save` writes, and the transformers configuration that it becomes.

The folder of a spiking model has the fields of the model's own configuration, with three changes. "model_type" is ours,
so that transformers without spikebrain refuses it instead of taking integers for weights; "auto_map" names a file in
the folder that imports spikebrain, which transformers runs if it is trusted; and "quantization_config" holds all that
the fields do not say: the real model type, and the settings of every spiking layer (`layer_table`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from ... import hugging_face
from ...errors import CheckpointError, InputError
from ...files import read_json
from ...results import about_result
from ..layers.spike_linear import spiking_layers
from ..spikingbrain.causal_lm import SpikingBrainForCausalLM
from .layer_table import layer_table
from .replace_folder import CONFIG, interrupted
from .single_file import installed_attention

TABLE, METHOD = "quantization_config", "spikebrain"
# Of a spiking folder. In format 1, of SpikingBrain models alone, weights were floats beside their scales.
FORMAT = 2
REMOTE_FILE = "spikebrain_model.py"
REMOTE_CODE = '''"""Opens this folder in transformers: it imports the package spikebrain, and does nothing else."""

try:
    from spikebrain.models.io import SpikebrainConfig, SpikebrainForCausalLM
except ImportError as error:
    raise ImportError(
        "The model in this folder runs on spikes, by the Python package spikebrain, which is missing here or too old "
        f"({error}). Install it: pip install spikebrain, or pip install . in a copy of its repository."
    ) from error
'''
AUTO_MAP = {
    "AutoConfig": f"{Path(REMOTE_FILE).stem}.SpikebrainConfig",
    "AutoModelForCausalLM": f"{Path(REMOTE_FILE).stem}.SpikebrainForCausalLM",
}
# transformers takes this for the name of the weights. A class asked directly, such as LlamaForCausalLM, looks at no
# model type: without spikebrain it stops at this name, as there is no such file.
NOT_THESE = {"transformers_weights": "open-this-folder-with-AutoModelForCausalLM-and-spikebrain.safetensors"}


def own_config(model: PreTrainedModel) -> dict[str, Any]:
    """Return the config.json of a model that spikes, or of a SpikingBrain model.

    Raises:
        InputError: a layer uses a class that is not registered, or a setting that JSON cannot hold.
    """
    fields = plain_fields(model)
    fields["auto_map"] = AUTO_MAP
    if not spiking_layers(model):
        return fields
    table = {
        "quant_method": METHOD,
        "format": FORMAT,
        # Not "model_type": a class asked directly would take the table for its configuration.
        "base_type": fields["model_type"],
        "attention": model.config._attn_implementation,
        **layer_table(model),
    }
    return {**fields, **NOT_THESE, "model_type": hugging_face.SPIKING, TABLE: table}


def plain_fields(model: PreTrainedModel) -> dict[str, Any]:
    """Return the fields of a model's configuration, with the class and the dtype that it has now."""
    fields = json.loads(model.config.to_json_string(use_diff=False))
    dtype = str(model.dtype).removeprefix("torch.")
    return {**fields, "architectures": [type(model).__name__], "dtype": dtype}


class SpikebrainConfig(PretrainedConfig):
    """Stands in transformers' lookup for the folders of spiking models; what it reads is the model's own configuration.

    The result is a `LlamaConfig` for a spiking Llama, and so on, so that the model is of its usual class.
    """

    model_type = hugging_face.SPIKING

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the model's own configuration, with the table of its spiking layers as `quantization_config`.

        Raises:
            InputError: the folder is of another format, or its config.json was changed.
        """
        fields = {name: value for name, value in config_dict.items() if name not in ("auto_map", *NOT_THESE)}
        if fields.get("model_type") == cls.model_type:
            table = fields.get(TABLE)
            check_format(table)
            assert isinstance(table, dict)
            fields["model_type"] = table.get("base_type")
            if "attn_implementation" not in kwargs:
                fields["attn_implementation"] = installed_attention(table.get("attention"), CONFIG)
        kind = fields.get("model_type")
        if not isinstance(kind, str) or kind not in CONFIG_MAPPING or kind == cls.model_type:
            raise InputError(
                f"{CONFIG}: expected a model type that transformers {transformers.__version__} knows, got {kind!r}. "
                "Use the version of transformers that the model was saved with, or a later one."
            )
        return CONFIG_MAPPING[kind].from_dict(fields, **kwargs)


class SpikebrainForCausalLM:
    """What auto_map names for causal language models; it opens a folder as `AutoModelForCausalLM` does."""

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Return the model of a folder, of its usual class."""
        return AutoModelForCausalLM.from_pretrained(*args, **{**kwargs, "trust_remote_code": False})

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = None) -> None:
        """Do nothing: transformers asks for it, to copy the code of classes whose models it saves."""


AutoConfig.register(hugging_face.SPIKING, SpikebrainConfig, exist_ok=True)


def check_format(table: Any) -> None:
    """Raise an InputError unless a table of spiking layers is of this version's format."""
    found = table.get("format", 1) if isinstance(table, dict) and table.get("quant_method") == METHOD else None
    if found == FORMAT and type(found) is int:
        return
    if found == 1:
        raise InputError(
            "config.json: a spiking model in the format of spikebrain 0.2, with weights as floats, which only "
            "spikebrain.load opens. Load it and save it again with spikebrain.save."
        )
    raise InputError(
        f"config.json: expected the table of spiking layers in format {FORMAT} under {TABLE!r}, got "
        f"{'none' if found is None else f'format {found!r}'}. Use the version of spikebrain that wrote it, or later."
    )


def class_of(config: PretrainedConfig) -> type[PreTrainedModel]:
    """Return the class of the model that a configuration was saved with.

    Raises:
        InputError: it is neither of transformers nor ours.
    """
    names: Any = getattr(config, "architectures", None)
    name = names[0] if isinstance(names, list) and len(names) == 1 and isinstance(names[0], str) else ""
    ours = SpikingBrainForCausalLM if name == SpikingBrainForCausalLM.__name__ else None
    found: Any = ours or getattr(transformers, name, None)
    if not (isinstance(found, type) and issubclass(found, PreTrainedModel) and found.config_class is type(config)):
        raise InputError(
            f"config.json: expected a class of transformers that belongs to {type(config).__name__}, got {names!r}. A "
            "model of a class of your own goes into a file: save(model, 'NAME.safetensors')."
        )
    return found


def config_json(path: Path) -> dict[str, Any]:
    """Return the fields of a folder's config.json.

    Raises:
        CheckpointError: there is none, or it is no JSON object.
    """
    file = path / CONFIG
    if not file.exists():
        raise CheckpointError(
            f"{path}: expected a model folder, but it has no config.json.{interrupted(path)}{about_result(path)}"
        )
    fields = read_json(file, CheckpointError)
    if not isinstance(fields, dict):
        raise CheckpointError(f"{file}: expected a JSON object, got {type(fields).__name__}. Fetch it again.")
    return fields


def is_spiking(fields: Mapping[str, Any]) -> bool:
    """Return whether config.json is that of a spiking model in our format, or a later one."""
    return fields.get("model_type") == hugging_face.SPIKING


def empty_model(config: PretrainedConfig) -> PreTrainedModel:
    """Return the float model of a configuration without weights, on the meta device."""
    with torch.device("meta"):
        return class_of(config)(config)
