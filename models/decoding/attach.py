"""Give a spiking model a fast decoder: `model.generate()` and the commands then use it by themselves."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer
from transformers.modeling_outputs import CausalLMOutputWithPast

from ...backends.gpu.one_pass import one_pass
from ...module_check import check_module
from ...neuro.checks import checks_all
from ..layers.spike_linear import SpikeLinear
from ..spikingbrain.model import SpikingBrainOutput
from .compiled import CompiledDecoder
from .fits import is_llama_type
from .graph import GraphDecoder
from .hybrid import HybridDecoder, is_hybrid
from .kv_room import KvRoom, room_of
from .watch import Decoder, Watch, why_not_decoded

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
# Kinds of a cache's layers that replace their tensors, and of arguments that a model does not change.
_REPLACING = (DynamicLayer, DynamicSlidingWindowLayer)
_PLAIN = (bool, int, float, str)
_CACHE_FIELD = "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"


def attach_decoder(model: nn.Module) -> None:
    """Let single tokens of a model with a cache go through a fast decoder, where one fits the model.

    The model's forward decides call by call; what the decoder is not for takes the model's own code, on a GPU in one
    pass (`one_pass`) if it is code of transformers. Other models, and those without spikes, are left as they are;
    `describe_decoding` says why a model has no decoder.
    """
    known = is_hybrid(model) or _is_of_transformers(model)
    if known and any(isinstance(module, SpikeLinear) for module in model.modules()):
        model.forward = MethodType(_with_decoder(type(model).forward), model)


def describe_decoding(model: nn.Module) -> str:
    """Return one line about how a model decodes: by a fast decoder, or layer by layer in PyTorch, and why."""
    check_module("describe_decoding", model)
    reason = why_not_decoded(model)
    if reason is not None:
        return f"Decoding layer by layer in PyTorch: {reason}."
    if next(model.parameters()).is_cuda:
        return "Decoding one text by the graph decoder: one CUDA graph a token; it is captured at the first token."
    return f"Decoding one text by the compiled decoder: one call a token, {torch.get_num_threads()} threads."


def decoder_of(model: nn.Module) -> Decoder | None:
    """Return the decoder that a model uses now, or None if it has none; it is made again when the model changed."""
    watch = _watch_of(model)
    if not watch.unchanged():
        watch = vars(model)["_watch"] = Watch(model)
    return watch.decoder


def _watch_of(model: nn.Module) -> Watch:
    watch = vars(model).get("_watch")
    if watch is None or not watch.may_run():
        watch = vars(model)["_watch"] = Watch(model)
    return watch


def _with_decoder(plain: Any) -> Any:
    @functools.wraps(plain)
    def forward(self: Any, *args: Any, **options: Any) -> Any:
        if len(args) <= 1 and not torch.compiler.is_compiling() and not torch._C._get_tracing_state():
            given = {"input_ids": args[0], **options} if args else options
            whole = _decode(self, given) if is_llama_type(self) or is_hybrid(self) else None
            if whole is not None:
                return whole
            if _runs_in_one_pass(self, given):
                return _in_one_pass(functools.partial(plain, self, *args, **options), _caches_in(given))
        return plain(self, *args, **options)

    return forward


def _in_one_pass(run: Callable[[], Any], caches: list[Any]) -> Any:
    """Return what a model's forward gives; where a layer's kernels fail, it runs again without them."""
    before = [(cache, [(layer, dict(vars(layer))) for layer in cache.layers]) for cache in caches]
    with one_pass() as shared:
        found = run()
    if not shared.failed():
        return found
    for cache, layers in before:
        cache.layers[:] = [layer for layer, _ in layers]
        for layer, fields in layers:
            vars(layer).clear()
            vars(layer).update(fields)
    return run()


def _caches_in(options: dict[str, Any]) -> list[Any]:
    return [options[name] for name in _CACHES if options.get(name) is not None]


def _is_of_transformers(model: nn.Module) -> bool:
    """Return whether a model is of a class of transformers itself, whose code changes nothing but the caches."""
    return type(model).__module__.startswith("transformers.models.")


def _runs_in_one_pass(model: Any, options: dict[str, Any]) -> bool:
    """Return whether a call of a model on a GPU changes nothing that cannot be put back."""
    inputs = [value for value in options.values() if isinstance(value, Tensor)]
    others = [value for name, value in options.items() if name not in _CACHES and not isinstance(value, Tensor)]
    return (
        _is_of_transformers(model)
        and any(value.is_cuda for value in inputs)
        and not torch.is_grad_enabled()
        and not torch.cuda.is_current_stream_capturing()
        and all(value is None or isinstance(value, _PLAIN) for value in others)
        # Layers of these kinds replace their tensors and do not write to them.
        and all(
            type(cache) is DynamicCache and all(type(layer) in _REPLACING for layer in cache.layers)
            for cache in _caches_in(options)
        )
    )


def _decode(model: Any, options: dict[str, Any]) -> CausalLMOutputWithPast | SpikingBrainOutput | None:
    """Return the logits of one token, or None if the model's own code must run."""
    cache: Any = next((options[name] for name in _CACHES if options.get(name) is not None), None)
    if cache is None or not _is_plain_step(model, options):
        return None
    watch = _watch_of(model)
    # Where a GPU works while Python goes on, the rest is looked at meanwhile.
    if (watch.decoder is None or not watch.decoder.overlaps) and not watch.unchanged():
        watch = vars(model)["_watch"] = Watch(model)
    decoder = watch.decoder
    if isinstance(decoder, HybridDecoder):
        return _step_of_hybrid(model, decoder, cache, options)
    room = None if decoder is None else _room_for(decoder, cache, options.get("attention_mask"))
    if decoder is None or room is None:
        return None
    length, positions = cache.layers[0].keys.shape[2], options.get("position_ids")
    if positions is None:
        positions = torch.tensor([[length]], device=decoder.device)
    if length == room.num_rows:
        room.grow(length)
    decoder.start(options["input_ids"], positions, room.memory, length)
    # Nothing has changed yet but a row of the room that nobody has.
    stands = not decoder.overlaps or watch.unchanged()
    views = room.views(length + 1)
    is_open = not decoder.overlaps or _is_open(options.get("attention_mask"))
    logits = decoder.finish()
    if not stands:
        vars(model)["_watch"] = None
        return _decode(model, options)
    if logits is None or not is_open:
        return None
    room.show(cache.layers, views)
    return CausalLMOutputWithPast(logits=logits, **{_CACHE_FIELD: cache})


def _step_of_hybrid(
    model: Any, decoder: HybridDecoder, cache: Any, options: dict[str, Any]
) -> SpikingBrainOutput | None:
    keeps = options.get("use_cache")
    if not (model.config.use_cache if keeps is None else keeps):
        return None
    return decoder.step(options["input_ids"], cache, options.get("attention_mask"), options.get("position_ids"))


def _room_for(decoder: CompiledDecoder | GraphDecoder, cache: Any, mask: Any) -> KvRoom | None:
    """Return the room of a cache that a decoder can go on with, or None if it cannot."""
    room = room_of(cache, decoder.num_key_heads, decoder.head_dim, decoder.dtype, decoder.device)
    if room is None or len(cache.layers) != decoder.num_layers:
        return None
    width = cache.layers[0].keys.shape[2] + 1
    if mask is not None and (not isinstance(mask, Tensor) or mask.shape != (1, width)):
        return None
    return room if decoder.overlaps or _is_open(mask) else None


def _is_open(mask: Tensor | None) -> bool:
    """Return whether every token may be seen; this waits for a GPU."""
    return mask is None or bool(mask.all())


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
        and not torch.is_autocast_enabled(ids.device.type)
        and not checks_all()
    )
