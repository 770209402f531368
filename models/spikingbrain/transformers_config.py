"""The configuration in transformers' form, so that its save, load and Auto classes work."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from transformers import GenerationConfig, PretrainedConfig

from ...errors import InputError
from .config import SpikingBrainConfig
from .layouts import spikingbrain_7b

_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
_FIELDS = tuple(field.name for field in dataclasses.fields(SpikingBrainConfig))
# Fields that transformers writes into any config.json, besides its own defaults.
_GENERIC = {
    *("model_type", "_name_or_path", "name_or_path", "torch_dtype", "use_cache", "num_labels"),
    *("attn_implementation", "_attn_implementation", "bos_token_id", "eos_token_id", "pad_token_id", "_commit_hash"),
    *("output_attentions", "experts_implementation", "generation_config", "quantization_config"),
}


def _check_generic(fields: Mapping[str, Any]) -> None:
    """Raise an InputError if a field of transformers that matters here has a value of another type."""
    switches = {"use_cache", *(name for name, value in PretrainedConfig().to_dict().items() if type(value) is bool)}
    for name, value in fields.items():
        ids = value if name == "eos_token_id" and isinstance(value, list) else [value]
        if name in switches and value is not None and type(value) is not bool:
            expected = "True or False"
        elif name in _TOKENS and not all(one is None or type(one) is int for one in ids):
            expected = "an integer or None"
        else:
            continue
        raise InputError(f"SpikingBrainPretrainedConfig.{name}: expected {expected}, got {value!r}.")


class SpikingBrainPretrainedConfig(PretrainedConfig):
    """Holds the fields of a `SpikingBrainConfig` alongside those of transformers.

    Args:
        settings: the configuration; None to build it from its fields in kwargs, or the 7B if there are none.
        kwargs: fields of `SpikingBrainConfig` and of transformers' own configuration.
    Raises:
        InputError: a field belongs to neither, or the values do not make a valid model.
    """

    model_type = "spikingbrain"
    attribute_map = {"num_attention_heads": "num_heads", "num_key_value_heads": "num_kv_heads"}  # noqa: RUF012

    def __init__(self, settings: SpikingBrainConfig | None = None, **kwargs: Any) -> None:
        kwargs.pop("auto_map", None)  # of a folder, to find this class, which has been found
        ours = {name: kwargs.pop(name) for name in _FIELDS if name in kwargs}
        generic = {*PretrainedConfig().to_dict(), *GenerationConfig().to_dict(), *_GENERIC}
        unknown = sorted(kwargs.keys() - generic)
        if unknown:
            raise InputError(f"SpikingBrainPretrainedConfig: unknown fields {unknown}. Known are {sorted(_FIELDS)}.")
        if settings is None:
            settings = SpikingBrainConfig.from_dict(ours) if ours else spikingbrain_7b()
        elif ours:
            settings = settings.replace(**ours)
        self.use_cache = True
        _check_generic(kwargs)
        try:
            super().__init__(**{**kwargs, "tie_word_embeddings": settings.tie_word_embeddings})
        except (TypeError, ValueError, AttributeError, KeyError) as error:  # of transformers' own fields
            raise InputError(f"SpikingBrainPretrainedConfig: transformers refuses a field. ({error})") from error
        for name, value in settings.to_dict().items():
            setattr(self, name, value)

    @property
    def settings(self) -> SpikingBrainConfig:
        """The validated configuration that the layers use."""
        return SpikingBrainConfig.from_dict({name: getattr(self, name) for name in _FIELDS})

    @property
    def num_hidden_layers(self) -> int:
        """Number of layers."""
        return len(self.layers)
