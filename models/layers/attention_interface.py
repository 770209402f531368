"""Which modules of a model leave softmax attention to transformers' interface, and by which function they run it.

Most modules of transformers look the function up by `config._attn_implementation` at every call. A model whose
configuration says `COUNTS` there runs softmax attention on spike counts of the queries; `spikingbrain.counted` is the
function. Nothing else of the model says so, so that what runs, what is counted and what is saved cannot differ.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from ...coding import BidirectionalBitwise, Encoder
from ...errors import InputError
from ...neuro import AdaptiveThreshold, Neuron, without_band
from .graded_linear import own_rows_of
from .settings import COUNTED, SpikeSettings

# The name of attention on spike counts among transformers' functions.
COUNTS = "spikebrain-counts"
# What modules call the projection that makes queries, alone or together with keys and values.
_QUERIES = ("q_proj", "query", "q_b_proj", "qkv_proj", "query_key_value", "qkv", "c_attn", "Wqkv", "q_lin", "to_q", "q")
# Attributes of modules, or of their configuration, for what attention on counts cannot do, and what it is.
_UNABLE = {
    "sinks": "sinks among its scores",
    "attn_logit_softcapping": "soft-capped scores",
    "has_relative_attention_bias": "a bias for each position",
}


def attention_modules(model: nn.Module) -> dict[str, Any]:
    """Return the modules of a model that look up how to attend in transformers' interface, by name."""
    return {name: module for name, module in model.named_modules() if _asks_interface(module)}


def runs_on_counts(module: nn.Module) -> bool:
    """Return whether a module's attention, or that of a whole model, runs on spike counts."""
    return getattr(getattr(module, "config", None), "_attn_implementation", None) == COUNTS


def query_neuron(module: nn.Module) -> AdaptiveThreshold:
    """Return what turns a module's queries into counts: an adaptive threshold with the k of their projection's neuron.

    Raises:
        InputError: there is no such projection, it does not spike, or its neuron has no k.
    """
    key = _query_key(module, type(module).__name__)
    layer = own_rows_of(module._modules[key])
    return _with_k_of(getattr(layer, "neuron", None), f"{key} of {type(module).__name__}")


def query_encoder(module: nn.Module) -> Encoder:
    """Return the code of a module's projection of queries, ours included; the usual one where it has none."""
    layer = own_rows_of(module._modules[_query_key(module, type(module).__name__)])
    return getattr(layer, "encoder", BidirectionalBitwise())


def check_counts(model: nn.Module, settings: SpikeSettings) -> None:
    """Raise an InputError if the attention of a model is to run on counts and cannot; it says which and why.

    Args:
        model: before its layers spike.
        settings: which layers are to spike, and whether attention is.
    """
    if settings.attention != COUNTED:
        return
    found = attention_modules(model)
    if not found:
        others = dict.fromkeys(type(m).__name__ for m in model.modules() if "attention" in type(m).__name__.lower())
        how = f"computes it in {', '.join(others)} itself" if others else "has none that is known"
        raise InputError(
            "to_spiking: attention on counts is for models that leave softmax attention to transformers' interface, "
            f"as Llama and Qwen do; {type(model).__name__} {how}. Leave `attention` out."
        )
    for name, module in found.items():
        config = getattr(module, "config", None)
        for attribute, what in _UNABLE.items():
            values = [getattr(one, attribute, None) for one in (module, config)]
            if any(value is not None and value is not False for value in values):
                raise InputError(
                    f"to_spiking: attention on counts does not know {what}, which {type(module).__name__} {name!r} has "
                    f"({attribute}). Leave `attention` out."
                )
        if config is None:
            raise InputError(
                f"to_spiking: expected a config at {type(module).__name__} {name!r}, by which its attention is chosen; "
                "it has none. Leave `attention` out."
            )
        layer = f"{name}.{_query_key(module, name)}".lstrip(".")
        _with_k_of(settings.neuron_of(layer) if settings.matches(layer) else None, layer)


def _query_key(module: nn.Module, where: str) -> str:
    key = next((key for key in _QUERIES if key in module._modules), None)
    if key is None:
        raise InputError(
            f"attention on counts, {where}: expected a projection of queries called {', '.join(_QUERIES)}; got "
            f"{', '.join(module._modules) or 'none'}. Leave `attention` out."
        )
    return key


def _with_k_of(neuron: Neuron | None, layer: str) -> AdaptiveThreshold:
    k = None if neuron is None else getattr(without_band(neuron), "k", None)
    if k is None:
        got = "a dense layer" if neuron is None else repr(neuron)
        raise InputError(
            f"attention on counts: expected {layer} to spike, by a neuron with a k, which the queries that it makes "
            f"take, too; got {got}. Let it spike by AdaptiveThreshold, or leave `attention` out."
        )
    return AdaptiveThreshold(k)


def set_counts(model: nn.Module) -> None:
    """Let all softmax attention of a spiking model run on counts."""
    for module in attention_modules(model).values():
        query_neuron(module)
        module.config._attn_implementation = COUNTS


def unset_counts(model: nn.Module) -> None:
    """Let attention on counts run in floating point again: by PyTorch's function, or by the model's own without it."""
    for part in model.modules():
        if runs_on_counts(part):
            assert not isinstance(part.config, nn.Module)
            config: Any = part.config
            config._attn_implementation = _usual(model, config)


def _usual(model: nn.Module, config: Any) -> str:
    """Return the function that transformers gives the models of a configuration by itself."""
    models = [m for m in model.modules() if isinstance(m, PreTrainedModel) and m.config is config]
    return "sdpa" if all(m._supports_sdpa for m in models) else "eager"


def _asks_interface(module: nn.Module) -> bool:
    forward = inspect.unwrap(type(module).forward)
    return "ALL_ATTENTION_FUNCTIONS" in getattr(getattr(forward, "__code__", None), "co_names", ())
