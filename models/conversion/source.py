"""What a Transformer must be to become a SpikingBrain model: its settings in our terms, and where its weights go."""

from __future__ import annotations

from typing import Any

from torch import nn

from ...errors import InputError

MODEL_TYPES = ("llama", "qwen2")
# Our names of what all kinds of layer reuse, and theirs.
LAYER = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn.q_proj.weight": "self_attn.q_proj.weight",
    "attn.k_proj.weight": "self_attn.k_proj.weight",
    "attn.v_proj.weight": "self_attn.v_proj.weight",
    "attn.o_proj.weight": "self_attn.o_proj.weight",
    "mlp_norm.weight": "post_attention_layernorm.weight",
}
BIASES = {f"attn.{x}_proj.bias": f"self_attn.{x}_proj.bias" for x in "qkv"}
FFN = {f"mlp.{name}_proj.weight": f"mlp.{name}_proj.weight" for name in ("gate", "up", "down")}


def settings_of(model: nn.Module) -> dict[str, Any]:
    """Return the fields of a `SpikingBrainConfig` that a Transformer fixes.

    Args:
        model: a LlamaForCausalLM or Qwen2ForCausalLM of transformers.
    Raises:
        InputError: another architecture, or a variant that our layers do not compute; all that is wrong is listed.
    """
    config: Any = getattr(model, "config", None)
    kind = getattr(config, "model_type", None)
    if kind not in MODEL_TYPES:
        raise InputError(
            f"from_transformer: expected a causal language model of transformers with model_type in {MODEL_TYPES}, got "
            f"{type(model).__name__} ({kind}). Other architectures have other projections."
        )
    names = {name for name, _ in model.named_parameters()}
    biases = {name for name in names if name.endswith(tuple(BIASES.values()))}
    expected = _expected_names(config, bool(biases))
    wrong = _wrong_settings(config)
    if missing := sorted(expected - names):
        wrong.append(f"parameters {_some(missing)} are missing")
    if unexpected := sorted(names - expected):
        wrong.append(f"parameters {_some(unexpected)} have no place in our layers")
    if wrong:
        raise InputError(
            f"from_transformer: {type(model).__name__} is none that our layers compute: {'; '.join(wrong)}."
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


def _expected_names(config: Any, has_biases: bool) -> set[str]:
    names = [*LAYER.values(), *FFN.values(), *(BIASES.values() if has_biases else ())]
    expected = {f"model.layers.{i}.{name}" for i in range(config.num_hidden_layers) for name in names}
    expected |= {"model.embed_tokens.weight", "model.norm.weight"}
    return expected if config.tie_word_embeddings else expected | {"lm_head.weight"}


def _wrong_settings(config: Any) -> list[str]:
    """Say which settings our layers do not have."""
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
