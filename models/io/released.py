"""Convert the config.json of the released checkpoints (model_type "gla_swa") to our configuration and back."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from ...errors import InputError
from ..spikingbrain.config import LayerPlan, SpikingBrainConfig

MODEL_TYPE = "gla_swa"
# Field names in the released file, and ours.
_NAMES = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "num_kv_heads",
    "head_dim": "head_dim",
    "intermediate_size": "intermediate_size",
    "sliding_window": "window",
    "rope_theta": "rope_theta",
    "norm_eps": "norm_eps",
    "tie_word_embeddings": "tie_word_embeddings",
    "gate_low_rank_dim": "gate_rank",
    "gate_logit_normalizer": "gate_divisor",
    "max_position_embeddings": "max_position_embeddings",
    "initializer_range": "initializer_range",
    "dynamic_sfr": "k",
    "w_group_size": "group_size",
}
_REQUIRED = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
_REQUIRED += ("intermediate_size", "attn_layers")
# Fields of which only these values are implemented, here and in the released code.
_FIXED = {"use_short_conv": (False,), "hidden_act": ("swish", "silu"), "rope_scaling": (None,)}
# Fields that do not change the model's results: how the released code runs, and what transformers writes everywhere.
_WITHOUT_EFFECT = {
    *("attn_mode", "fuse_cross_entropy", "fuse_norm", "fuse_swiglu", "use_cache", "seed", "elementwise_affine"),
    *("model_type", "architectures", "auto_map", "torch_dtype", "dtype", "transformers_version", "_name_or_path"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "name_or_path", "quant_weight_group_size"),
}


def from_released(fields: Mapping[str, Any], *, spiking: str | None = None) -> SpikingBrainConfig:
    """Read the fields of a released config.json.

    Args:
        fields: the file's content.
        spiking: how a checkpoint with weight scales runs, whose gate is one full matrix; None for a float model.
    Returns:
        The configuration. Layers listed in attn_layers have window attention, all others linear attention. A window
        covers w + 1 keys, as in the released code for prefill and in its vLLM plug-in.
    Raises:
        InputError: a field is missing, or has a value that is not implemented.
    """
    where = f"config.json of a {MODEL_TYPE} model"
    missing = [name for name in _REQUIRED if name not in fields]
    if missing:
        raise InputError(f"{where}: missing fields {missing}. Fetch it again.")
    for name, allowed in _FIXED.items():
        if name in fields and fields[name] not in allowed:
            raise InputError(f"{where}: expected {name} to be one of {allowed}, got {fields[name]!r}.")
    unread = sorted(fields.keys() - {*_NAMES, *_REQUIRED, *_FIXED, *_WITHOUT_EFFECT})
    if unread:
        warnings.warn(f"{where}: fields that this reader does not know are not used: {unread}.", stacklevel=2)
    num_layers, attention = fields["num_hidden_layers"], fields["attn_layers"]
    if type(num_layers) is not int or num_layers < 1:
        raise InputError(f"{where}: expected num_hidden_layers to be an integer >= 1, got {num_layers!r}.")
    if not isinstance(attention, list | tuple) or not all(type(i) is int and 0 <= i < num_layers for i in attention):
        raise InputError(f"{where}: expected attn_layers within 0 to {num_layers - 1}, got {attention!r}.")
    ours = {mine: fields[name] for name, mine in _NAMES.items() if name in fields}
    ours["layers"] = tuple(LayerPlan(("swa",) if i in attention else ("gla",)) for i in range(num_layers))
    if spiking is not None:
        ours |= {"spiking": spiking, "gate": "full"}
    return SpikingBrainConfig.from_dict(ours)


def to_released(config: SpikingBrainConfig) -> dict[str, Any]:
    """Return the fields of a released config.json.

    Raises:
        InputError: the model has a feature that the released code does not have.
    """
    plans = {str(plan) for plan in config.layers}
    expected_gate = "low-rank" if config.spiking is None else "full"
    unknown = {
        "layers": bool(plans - {"gla", "swa"}),
        "gate": config.gate != expected_gate,
        "feature_map": config.feature_map != "relu",
        "num_sinks": config.num_sinks > 0,
        "qkv_bias": not config.qkv_bias,
        "window_keys": config.window_keys != "w+1",
    }
    if any(unknown.values()):
        raise InputError(
            f"to_released: the released layout has no such {[name for name, bad in unknown.items() if bad]}. "
            "Save in our own layout."
        )
    ours = config.to_dict()
    fields = {name: ours[mine] for name, mine in _NAMES.items()}
    if config.spiking is None:
        del fields["dynamic_sfr"], fields["w_group_size"]
    return {
        "model_type": MODEL_TYPE,
        **fields,
        "num_hidden_layers": config.num_layers,
        "attn_layers": [i for i, plan in enumerate(config.layers) if plan.softmax],
        "hidden_act": "swish",
        "use_short_conv": False,
        "attn_mode": "chunk",
    }
