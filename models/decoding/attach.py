"""Give a spiking model the compiled decoder: `model.generate()` and the commands then use it by themselves."""

from __future__ import annotations

import functools
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutputWithPast

from ...neuro.checks import checks_all
from .compiled import CompiledDecoder, why_not_compiled
from .kv_room import room_of
from .watch import Watch

# What `generate` passes with each token; the names of the cache differ between versions of transformers.
_CACHES = ("cache", "past_key_values")
_KNOWN = {
    "input_ids",
    "attention_mask",
    "position_ids",
    "cache_position",
    "use_cache",
    "logits_to_keep",
    "return_dict",
    *_CACHES,
}
_CACHE_FIELD = "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"


def attach_decoder(model: nn.Module) -> None:
    """Let single tokens of a model with a cache go through the compiled decoder, where it fits the model.

    The model's forward decides call by call; what the decoder is not for takes the model's own code. A model that does
    not fit is left as it is; `describe_decoding` says why.
    """
    if why_not_compiled(model) is None:
        model.forward = MethodType(_with_decoder(type(model).forward), model)


def describe_decoding(model: nn.Module) -> str:
    """Return one line about how a model decodes: by the compiled decoder, or layer by layer in PyTorch, and why."""
    reason = why_not_compiled(model)
    if reason is not None:
        return f"Decoding layer by layer in PyTorch: {reason}."
    return f"Decoding one text by the compiled decoder: one call a token, {torch.get_num_threads()} threads."


def compiled_decoder(model: nn.Module) -> CompiledDecoder | None:
    """Return the decoder that a model uses now, or None if it has none; it is made again when the model changed."""
    watch = vars(model).get("_watch")
    if watch is None or not watch.unchanged():
        watch = vars(model)["_watch"] = Watch(model)
    return watch.decoder


def _with_decoder(plain: Any) -> Any:
    @functools.wraps(plain)
    def forward(self: Any, *args: Any, **options: Any) -> Any:
        if len(args) <= 1 and not torch.compiler.is_compiling() and not torch._C._get_tracing_state():
            whole = _decode(self, {"input_ids": args[0], **options} if args else options)
            if whole is not None:
                return whole
        return plain(self, *args, **options)

    return forward


def _decode(model: Any, options: dict[str, Any]) -> CausalLMOutputWithPast | None:
    """Return the logits of one token, or None if the model's own code must run."""
    cache: Any = next((options[name] for name in _CACHES if options.get(name) is not None), None)
    decoder = compiled_decoder(model) if cache is not None and _is_plain_step(model, options) else None
    room = room_of(cache, decoder.num_key_heads, decoder.head_dim) if decoder is not None else None
    if cache is None or decoder is None or room is None or len(cache.layers) != decoder.num_layers:
        return None
    length = cache.layers[0].keys.shape[2]
    mask, positions = options.get("attention_mask"), options.get("position_ids")
    if mask is not None and (not isinstance(mask, Tensor) or mask.shape != (1, length + 1) or not bool(mask.all())):
        return None
    if positions is None:
        positions = torch.tensor([[length]])
    if length == room.num_rows:
        room.grow(length)
    logits = decoder.decode(options["input_ids"], positions, room.memory, length)
    if logits is None:
        return None
    room.show(cache.layers, length + 1)
    return CausalLMOutputWithPast(logits=logits, **{_CACHE_FIELD: cache})


def _is_plain_step(model: Any, options: dict[str, Any]) -> bool:
    """Return whether a call is for one token of one text, with nothing asked for but its logits."""
    ids, positions, config = options.get("input_ids"), options.get("position_ids"), model.config
    asked = {name for name, value in options.items() if value is not None and value is not False}
    return (
        ids is not None
        and ids.shape == (1, 1)
        and (positions is None or positions.shape == (1, 1))
        and asked <= _KNOWN
        and options.get("return_dict") is not False
        and options.get("use_cache") is not False
        and isinstance(options.get("logits_to_keep", 0), int)
        and not (config.output_attentions or config.output_hidden_states)
        and config.return_dict
        and not model.training
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not checks_all()
    )
