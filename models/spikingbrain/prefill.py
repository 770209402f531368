"""Prefill of a long text in portions: memory grows with the portion, and with what full attention must keep."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Int
from torch import Tensor

from ...errors import InputError
from .cache import SpikingBrainCache, check_cache
from .causal_lm import SpikingBrainForCausalLM, check_spikingbrain
from .model import SpikingBrainOutput

# Tokens of a portion: enough to fill a GPU.
PORTION = 65536


@torch.no_grad()
def prefill(
    model: SpikingBrainForCausalLM,
    input_ids: Int[Tensor, "B L"],
    *,
    portion: int = PORTION,
    cache: SpikingBrainCache | None = None,
    done: Callable[[int], object] = lambda num_tokens: None,
) -> SpikingBrainOutput:
    """Read a text of any length, and return the logits after its last token and the state from which it goes on.

    Each portion continues from the state of those before it, so the result is that of one call, up to the rounding of
    floats.

    Args:
        model: reads.
        input_ids: token ids, without padding; they may be on the CPU while the model is on a GPU.
        portion: tokens of a call, at least 1.
        cache: state after the preceding tokens, updated in place; None at the start of a text.
        done: called after each portion with its tokens.
    Returns:
        Logits, [B, 1, V], and the cache.
    Raises:
        InputError: no text, a portion below 1, a text beyond the positions that the model was made for, or a portion
            that does not fit into the GPU's memory.
    """
    check_spikingbrain("prefill", model)
    if type(portion) is not int or portion < 1:
        raise InputError(f"prefill.portion: expected a number of tokens >= 1, got {portion!r}.")
    if input_ids.ndim != 2 or input_ids.shape[1] == 0:
        raise InputError(f"prefill.input_ids: expected [B, L] with at least one token, got {tuple(input_ids.shape)}.")
    check_cache(cache)
    cache = SpikingBrainCache(model.settings) if cache is None else cache
    limit, end = model.settings.max_position_embeddings, cache.num_tokens + input_ids.shape[1]
    if limit is not None and end > limit:
        raise InputError(
            f"prefill: the text ends at token {end:,}, and the model was made for {limit:,} positions. Shorten it, or "
            "set max_position_embeddings of the model's configuration to None to go beyond."
        )
    device = next(model.parameters()).device
    found = None
    for part in input_ids.split(portion, 1):
        before = {**vars(cache), "layers": [layer.copy() for layer in cache.layers]}
        try:
            found = model(part.to(device), cache=cache, use_cache=True, logits_to_keep=1)
        except torch.OutOfMemoryError as error:
            vars(cache).update(before)  # layers that ran have changed it
            raise _too_large(model, part, error) from error
        done(part.shape[1])
    assert found is not None
    return found


def _too_large(model: SpikingBrainForCausalLM, part: Tensor, error: Exception) -> InputError:
    """Return an error that says what would fit, from the bytes that a layer holds for each token."""
    settings = model.settings
    widths = 6 * settings.hidden_size + 3 * settings.intermediate_size
    widths += 3 * (settings.num_heads + 2 * settings.num_kv_heads) * settings.dim
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    token_bytes = widths * next(model.parameters()).element_size() * len(part)
    fits = max(min(free // token_bytes // 1024 * 1024, part.shape[1] // 2), 1)
    return InputError(
        f"prefill: a portion of {part.shape[1]:,} tokens x {len(part)} does not fit into the GPU's memory, of which "
        f"{free / 1e9:.1f} GB are free. About {fits:,} tokens would fit: pass portion={fits}. ({error})"
    )
