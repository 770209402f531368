"""Whether a Transformer can become a SpikingBrain model, its settings in our terms, and where its weights go."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from ...errors import InputError
from ..architectures import Weights, architecture_of, convertible_types


def weights_of(model: nn.Module) -> Weights:
    """Return where the weights of a Transformer are.

    Args:
        model: a causal language model of transformers, of an architecture that our layers can compute.
    Raises:
        InputError: another architecture.
    """
    kind = getattr(getattr(model, "config", None), "model_type", None)
    known = architecture_of(kind)
    if known is None or known.weights is None:
        why = "Other architectures have other projections." if known is None else known.not_convertible
        raise InputError(
            "from_transformer: expected a causal language model of transformers with model_type in "
            f"{convertible_types()}, got {type(model).__name__} ({kind}). {why}"
        )
    return known.weights


def is_convertible(model: nn.Module) -> bool:
    """Return whether `from_transformer` can convert a Transformer."""
    try:
        settings_of(model)
    except InputError:
        return False
    return True


def origins(weights: Weights, num_layers: int) -> dict[str, str]:
    """Return the name in a Transformer of each weight that our model reuses, by our name; biases included."""
    names = {
        "model.embeddings.weight": weights.embedding,
        "model.norm.weight": weights.norm,
        "lm_head.weight": weights.head,
    }
    for i in range(num_layers):
        for ours, theirs in {**weights.layer, **weights.biases}.items():
            names[f"model.layers.{i}.{ours}"] = f"{weights.layers}.{i}.{theirs}"
    return names


def settings_of(model: nn.Module) -> dict[str, Any]:
    """Return the fields of a `SpikingBrainConfig` that a Transformer fixes.

    Args:
        model: a causal language model of transformers, of an architecture that our layers can compute.
    Raises:
        InputError: another architecture, or a variant that our layers do not compute; all that is wrong is listed.
    """
    weights = weights_of(model)
    config: Any = model.config
    names = {name for name, _ in model.named_parameters()}
    biases = {name for name in names if name.endswith(tuple(weights.biases.values()))}
    expected = _expected_names(weights, config, has_biases=bool(biases))
    wrong = _wrong_settings(config)
    if missing := sorted(expected - names):
        wrong.append(f"parameters {_some(missing)} are missing")
    if unexpected := sorted(names - expected):
        wrong.append(f"parameters {_some(unexpected)} have no place in our layers")
    if wrong:
        raise InputError(
            f"from_transformer: {type(model).__name__} has parts that our layers cannot compute: {'; '.join(wrong)}."
        )
    theta, _ = _rope(config)
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_heads": config.num_attention_heads,
        "num_kv_heads": config.num_key_value_heads,
        "head_dim": getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        "intermediate_size": config.intermediate_size,
        "rope_theta": float(theta),
        "norm_eps": float(config.rms_norm_eps),
        "tie_word_embeddings": bool(config.tie_word_embeddings),
        "qkv_bias": bool(biases),
        "max_position_embeddings": config.max_position_embeddings,
        "initializer_range": float(config.initializer_range),
    }


def _expected_names(weights: Weights, config: Any, *, has_biases: bool) -> set[str]:
    names = origins(weights if has_biases else replace(weights, biases={}), config.num_hidden_layers)
    return set(names.values()) - ({weights.head} if config.tie_word_embeddings else set())


def _wrong_settings(config: Any) -> list[str]:
    """Return a text for each setting of a Transformer that our layers cannot compute."""
    wrong = []
    if config.hidden_act not in ("silu", "swish"):
        wrong.append(f"hidden_act is {config.hidden_act!r}, not 'silu'")
    _, kind = _rope(config)
    if kind != "default":
        wrong.append(f"its rotary embedding is scaled ({kind}), ours is not")
    if getattr(config, "partial_rotary_factor", None) not in (None, 1, 1.0):
        wrong.append("it rotates only some channels of a head")
    if getattr(config, "use_sliding_window", False) or "sliding_attention" in (
        getattr(config, "layer_types", None) or ()
    ):
        wrong.append("some of its layers have sliding-window attention (use_sliding_window)")
    if getattr(config, "pretraining_tp", 1) != 1:
        wrong.append(f"pretraining_tp is {config.pretraining_tp}, which changes its sums")
    return wrong


def _rope(config: Any) -> tuple[float, str]:
    """Return base and kind of the rotary embedding, from the fields of transformers 5 or 4."""
    fields = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    theta = fields.get("rope_theta") or getattr(config, "rope_theta", None)
    if theta is None:
        raise InputError("from_transformer: expected config.rope_theta, the base of the rotary embedding; it has none.")
    return theta, fields.get("rope_type") or fields.get("type") or "default"


def _some(names: list[str]) -> str:
    return ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
