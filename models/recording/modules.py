"""What a model computes beside its spiking layers: which parts there are, their sizes, and how often each ran."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from ..layers.spike_linear import SpikeLinear
from ..spikingbrain.attention import Attention
from ..spikingbrain.block import Block
from ..spikingbrain.mlp import SwiGLU
from ..spikingbrain.moe import MixtureOfExperts
from ..spikingbrain.norm import RMSNorm

# Containers, and parts whose work is counted with the module they are in or is none at all (in evaluation).
_NOTHING_OF_THEIR_OWN = (nn.ModuleList, nn.Sequential, nn.ModuleDict, nn.Identity, nn.Dropout, nn.SiLU)
_COUNTED_ELSEWHERE = ("SiLUActivation", "RotaryEmbedding")
# Classes of transformers that compute as their namesakes in Llama do; known by their ending.
_LLAMA_LIKE = ("Llama", "Qwen2", "Mistral")


@dataclass
class ModuleRecord:
    """What one part of a model that does not spike did.

    Attributes:
        name: of the module in the model.
        kind: "linear", "embedding", "rms-norm", "layer-norm", "softmax", "gla", "branches", "gated-mlp", "residual" or
            "moe".
        sizes: what the kind needs to know, such as channels and heads.
        num_tokens: vectors that passed.
        num_pairs: query tokens times the columns that each sees; of attention only.
    """

    name: str
    kind: str
    sizes: dict[str, int] = field(default_factory=dict)
    num_tokens: int = 0
    num_pairs: int = 0


# (module, positional arguments, keyword arguments) of a call -> (tokens, pairs)
Measure = Callable[[Any, tuple, dict], tuple[int, int]]


def describe(model: nn.Module) -> tuple[list[tuple[nn.Module, ModuleRecord, Measure]], tuple[str, ...]]:
    """Return the countable parts of a model beside its spiking layers, and what is there and not countable.

    Returns:
        A list of module, empty record, and what reads a call's tokens and pairs off its arguments; one module may be
        several parts. And a sentence for every kind of module that is not known.
    """
    parts: list[tuple[nn.Module, ModuleRecord, Measure]] = []
    unknown: dict[str, list[str]] = {}
    for name, module in model.named_modules():
        found = list(_parts(name, module))
        parts += [(module, record, measure) for record, measure in found]
        if not found and not _is_silent(module, model):
            unknown.setdefault(type(module).__name__, []).append(name)
    return parts, tuple(f"{kind} ({len(names)}, first {names[0]!r})" for kind, names in sorted(unknown.items()))


def _is_silent(module: nn.Module, model: nn.Module) -> bool:
    """Return whether a module has no work of its own: a container, a spiking layer, a model as a whole."""
    if isinstance(module, (SpikeLinear, *_NOTHING_OF_THEIR_OWN)):
        return True
    if type(module).__name__.endswith(_COUNTED_ELSEWHERE):
        return True
    whole = module is model or type(module).__name__.endswith(("Model", "ForCausalLM"))
    return whole and bool(list(module.children()))


def _parts(name: str, module: nn.Module) -> list[tuple[ModuleRecord, Measure]]:  # noqa: PLR0911 - one per kind
    if isinstance(module, SpikeLinear):
        return []
    if isinstance(module, nn.Linear | Conv1D):
        rows, columns = module.weight.shape
        inputs, outputs = (columns, rows) if isinstance(module, nn.Linear) else (rows, columns)
        sizes = {"in_features": inputs, "out_features": outputs, "bias": int(module.bias is not None)}
        return [(ModuleRecord(name, "linear", sizes), _vectors)]
    if isinstance(module, nn.Embedding):
        return [(ModuleRecord(name, "embedding", {"dim": module.embedding_dim}), _elements)]
    if isinstance(module, nn.LayerNorm):
        return [(ModuleRecord(name, "layer-norm", {"dim": module.weight.numel()}), _vectors)]
    if isinstance(module, RMSNorm) or type(module).__name__.endswith("RMSNorm"):
        return [(ModuleRecord(name, "rms-norm", {"dim": _numel(module)}), _vectors)]
    if isinstance(module, Attention):
        return _our_attention(name, module)
    if isinstance(module, Block):
        dim = module.attn_norm.weight.numel()
        # The second norm is called together with the residual before it, not as a module.
        norm = ModuleRecord(f"{name}.mlp_norm after residual", "rms-norm", {"dim": dim})
        return [(ModuleRecord(name, "residual", {"dim": dim}), _vectors), (norm, _vectors)]
    if isinstance(module, SwiGLU):
        return [(ModuleRecord(name, "gated-mlp", {"dim": module.gate_proj.out_features}), _vectors)]
    if isinstance(module, MixtureOfExperts):
        sizes = {"dim": module.router.in_features, "experts": len(module.experts)}
        sizes |= {"chosen": module.num_chosen, "shared": len(module.shared)}
        return [(ModuleRecord(name, "moe", sizes), _vectors)]
    return _llama_like(name, module)


def _numel(module: nn.Module) -> int:
    weight: Any = module.weight
    return weight.numel()


def _llama_like(name: str, module: Any) -> list[tuple[ModuleRecord, Measure]]:
    kind = type(module).__name__
    if not kind.startswith(_LLAMA_LIKE):
        return []
    if kind.endswith("DecoderLayer"):
        return [(ModuleRecord(name, "residual", {"dim": _numel(module.input_layernorm)}), _vectors)]
    if kind.endswith("MLP"):
        return [(ModuleRecord(name, "gated-mlp", {"dim": module.gate_proj.out_features}), _vectors)]
    if kind.endswith("Attention"):
        dim, config = module.head_dim, module.config
        sizes = {"heads": config.num_attention_heads, "kv_heads": config.num_key_value_heads, "dim": dim}
        return [(ModuleRecord(name, "softmax", {**sizes, "integer": 0}), _cached_pairs)]
    return []


def _our_attention(name: str, module: Attention) -> list[tuple[ModuleRecord, Measure]]:
    config, plan = module.config, module.plan
    sizes = {"heads": config.num_heads, "kv_heads": config.num_kv_heads, "dim": config.dim}
    parts: list[tuple[ModuleRecord, Measure]] = []
    if "gla" in plan.mixers:
        sigmoid = int(config.feature_map == "sigmoid")
        gated = {**sizes, "sigmoid": sigmoid, "tied": int(config.gate == "tied")}
        parts.append((ModuleRecord(f"{name} linear", "gla", gated), _vectors))
    if plan.softmax:
        integer = int(module.spiking == "as-described")
        softmax = {**sizes, "integer": integer, "rounds_cache": int(module.spiking is not None)}
        parts.append((ModuleRecord(f"{name} softmax", "softmax", softmax), _our_pairs))
    if plan.is_parallel:
        parts.append((ModuleRecord(f"{name} branches", "branches", sizes), _vectors))
    return parts


def _first(arguments: tuple, keywords: dict) -> Any:
    return arguments[0] if arguments else next(iter(keywords.values()))


def _vectors(module: Any, arguments: tuple, keywords: dict) -> tuple[int, int]:
    x = _first(arguments, keywords)
    return x.shape[:-1].numel(), 0


def _elements(module: Any, arguments: tuple, keywords: dict) -> tuple[int, int]:
    return _first(arguments, keywords).numel(), 0


def _cached_pairs(module: Any, arguments: tuple, keywords: dict) -> tuple[int, int]:
    """Causal attention of transformers, with the columns that its cache holds before the call."""
    batch, length = _first(arguments, keywords).shape[:2]
    names = ("cache", "past_key_values", "past_key_value")  # it was renamed from version to version
    cache = next((keywords[name] for name in names if keywords.get(name) is not None), None)
    before = 0 if cache is None else int(cache.get_seq_length(module.layer_idx))
    window = getattr(module, "sliding_window", None)
    return batch * length, batch * visible_columns(length, before, window)


def _our_pairs(module: Any, arguments: tuple, keywords: dict) -> tuple[int, int]:
    """Softmax attention of `Attention.forward(x, context, state)`: sinks in front, and a window over the rest."""
    named = dict(zip(("x", "context", "state"), arguments, strict=False)) | keywords
    batch, length = named["x"].shape[:2]
    if not named["context"].causal:
        return batch * length, batch * length * length
    state = named.get("state")
    columns = None if state is None else state.columns
    kept = columns.tensors[0].shape[2] if columns is not None and columns.tensors else 0
    sinks = 0 if columns is None else columns.num_pinned
    window = module.config.max_window_keys if module.plan.softmax == "swa" else None
    return batch * length, batch * (length * sinks + visible_columns(length, kept - sinks, window))


def visible_columns(length: int, before: int, window: int | None = None) -> int:
    """Return how many columns some consecutive tokens see together: each itself and those before it.

    Args:
        length: new tokens.
        before: columns in front of the first of them.
        window: columns that a token sees at most, itself included; None for all.

    >>> visible_columns(3, 2), visible_columns(3, 2, window=4)
    (12, 11)
    """
    seen = range(before + 1, before + length + 1)
    return sum(seen) if window is None else sum(min(n, window) for n in seen)
