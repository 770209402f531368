"""The state of a long text without reading one: random numbers of the shapes that a text of that length leaves."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...errors import InputError
from .cache import SpikingBrainCache
from .causal_lm import SpikingBrainForCausalLM
from .int8 import quantize_tokens

# Tokens whose keys and values are drawn; they repeat, since speed does not depend on them.
_DRAWN = 4096


@torch.no_grad()
def filled_cache(model: SpikingBrainForCausalLM, num_tokens: int, *, seed: int = 0) -> SpikingBrainCache:
    """Return a cache as after that many tokens of one text, to measure how fast and in how much memory a model goes on.

    Keys, values and states of linear attention are random; shapes, dtypes and counters are those that a text leaves.

    Args:
        model: the model that is to go on. Sink tokens run through it.
        num_tokens: tokens that the text has so far.
        seed: of the random numbers.
    Raises:
        InputError: num_tokens is no integer >= 1, or leaves no position for the next token.
    """
    settings, parameter = model.settings, next(model.parameters())
    if type(num_tokens) is not int or num_tokens < 1:
        raise InputError(f"filled_cache.num_tokens: expected an integer >= 1, got {num_tokens!r}.")
    limit = settings.max_position_embeddings
    if limit is not None and num_tokens >= limit:
        raise InputError(
            f"filled_cache.num_tokens: expected at most {limit - 1}, as the model was made for texts of {limit} tokens "
            f"(max_position_embeddings) and one more is to follow, got {num_tokens}. Use fewer, or a model for more."
        )
    generator = torch.Generator().manual_seed(seed)
    cache = SpikingBrainCache(settings)
    model.model.start(cache, parameter.new_empty(1, 0, settings.hidden_size))
    heads, dim = settings.num_kv_heads, settings.dim

    def draw(rows: int) -> Tensor:
        return torch.randn(1, heads, rows, dim, generator=generator).to(parameter)

    for block, state in zip(model.model.layers, cache.layers, strict=True):
        attention: Any = block.attn
        if "gla" in attention.plan.mixers:
            state.linear = draw(dim).to(torch.promote_types(parameter.dtype, torch.float32))
        if state.columns is None:
            continue
        limit = state.columns.limit
        rows = num_tokens if limit is None else min(num_tokens, limit)
        some = [draw(min(rows, _DRAWN)) for _ in ("keys", "values")]
        if attention.spiking == "as-described":
            some = [part for x in some for part in quantize_tokens(x)]
        some.append(torch.ones(1, 1, some[0].shape[2], 1, dtype=torch.bool, device=parameter.device))
        sinks = state.columns.tensors or [x[:, :, :0] for x in some]
        pairs = zip(sinks, some, strict=True)
        state.columns.tensors = tuple(_longer(before, x, rows) for before, x in pairs)
    cache.num_tokens = num_tokens
    cache.num_valid = torch.full((1,), num_tokens, device=parameter.device)
    return cache


def _longer(before: Tensor, drawn: Tensor, rows: int) -> Tensor:
    """Return columns [1, Hk, ., D] and after them so many more: those that were drawn, again and again."""
    first = before.shape[2]
    found = drawn.new_empty(*drawn.shape[:2], first + rows, drawn.shape[3])
    found[:, :, :first] = before
    for begin in range(0, rows, drawn.shape[2]):
        part = drawn[:, :, : rows - begin]
        found[:, :, first + begin : first + begin + part.shape[2]] = part
    return found
