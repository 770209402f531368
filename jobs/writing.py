"""Models write token by token: those of SpikingBrain here, all others by `generate` of transformers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, TextStreamer
from transformers.generation.streamers import BaseStreamer

from ..models.spikingbrain import SpikingBrainCache, SpikingBrainForCausalLM

# What versions of transformers call the state after a text.
_STATES = ("cache", "past_key_values", "cache_params", "state")
# Tokens at the end of a prompt behind which new text is read.
_BEHIND = 8


@torch.inference_mode()
def write_tokens(
    model: SpikingBrainForCausalLM,
    ids: Tensor,
    limit: int,
    *,
    temperature: float = 0.0,
    seed: int = 0,
    done: Callable[[Tensor], None] = lambda token: None,
    state: tuple[SpikingBrainCache, Tensor, Tensor] | None = None,
) -> tuple[int, Tensor]:
    """Let a SpikingBrain model write tokens after a prompt, up to one that ends the text.

    Args:
        model: writes.
        ids: token ids of the prompt, [1, L].
        limit: most tokens to write.
        temperature: as of `GenerateSettings`.
        seed: as of `GenerateSettings`.
        done: called with each new token, [1], but for one that ends the text.
        state: the state after a part of the prompt, the logits there, [1, 1, V], and the rest of it, [1, L]; None if
            nothing was read.
    Returns:
        The bytes of the state after the text, and the ids of prompt and text, [1, L].
    """
    ends = ends_of(model)
    cache, found, new = (SpikingBrainCache(model.settings), None, ids) if state is None else state
    generator = torch.Generator(ids.device).manual_seed(seed)
    for _ in range(limit):
        if new.shape[1]:
            found = model(new, cache=cache, logits_to_keep=1).logits
        assert found is not None
        logits = found[:, -1].float()
        if temperature == 0:
            new = logits.argmax(-1, keepdim=True)
        else:
            new = torch.multinomial(_cooled(logits, temperature).softmax(-1), 1, generator=generator)
        ids = torch.cat([ids, new], 1)
        if int(new) in ends:
            break
        done(new[0])
    return cache.num_bytes, ids


@torch.inference_mode()
def write_by_transformers(
    model: Any,
    ids: Tensor,
    limit: int,
    *,
    temperature: float = 0.0,
    seed: int = 0,
    done: Callable[[Tensor], None] = lambda token: None,
) -> tuple[int, Tensor]:
    """Let a model of transformers write tokens by its `generate`; arguments and results are those of `write_tokens`.

    Of the model's own settings for generation only the tokens that end a text are used.
    """
    ends = sorted(ends_of(model))
    pad = model.generation_config.pad_token_id
    config = GenerationConfig(
        max_new_tokens=limit,
        do_sample=temperature > 0,
        top_k=0,
        eos_token_id=ends or None,
        pad_token_id=(ends[0] if ends else 0) if pad is None else pad,
        return_dict_in_generate=True,
    )

    def cool(_: Tensor, logits: Tensor) -> Tensor:
        return _cooled(logits.float(), temperature).float()

    with _with_settings(model, config), torch.random.fork_rng([ids.device] if ids.is_cuda else []):
        torch.manual_seed(seed)
        found = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            logits_processor=LogitsProcessorList([cool] if temperature > 0 else []),
            streamer=_NewTokens(done, ends),
        )
    state = next((found[name] for name in _STATES if found.get(name) is not None), None)
    return _bytes_of(state), found.sequences


@contextmanager
def _with_settings(model: Any, config: GenerationConfig) -> Iterator[None]:
    """Give a model settings for generation; those passed to `generate` would be filled up with its own."""
    own, model.generation_config = model.generation_config, config
    try:
        yield
    finally:
        model.generation_config = own


def ends_of(model: Any) -> set[int]:
    """Return the tokens that end a text."""
    ends = model.generation_config.eos_token_id if model.generation_config else None
    return {ends} if isinstance(ends, int) else set(ends or ())


class NewText(TextStreamer):
    """Gives the text of new tokens to a function, word by word, without special tokens, and keeps it.

    The first word is read behind the end of the prompt: it may go on with a word, and whether a space is before it is
    not in its own tokens.

    Args:
        tokenizer: of the model.
        write: called with each piece.
        prompt: token ids, int64 [tokens].
    Attributes:
        text: all pieces so far.
    """

    def __init__(self, tokenizer: Any, write: Callable[[str], None], prompt: Tensor) -> None:
        super().__init__(tokenizer, skip_special_tokens=True)
        self.text, self._write = "", write
        end = prompt[-_BEHIND:]
        self._known = len(tokenizer.decode(end, skip_special_tokens=True))
        self.put(end)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Hand on what is behind the prompt."""
        new, self._known = text[self._known :], max(self._known - len(text), 0)
        if new:
            self.text += new
            self._write(new)


class _NewTokens(BaseStreamer):
    """Hands new tokens to a function, but for those that end a text."""

    def __init__(self, done: Callable[[Tensor], None], ends: Iterable[int]) -> None:
        self._done, self._ends, self._is_prompt = done, set(ends), True

    def put(self, value: Tensor) -> None:
        """Take the prompt first, then a token at a time."""
        if not self._is_prompt and int(value) not in self._ends:
            self._done(value.reshape(1))
        self._is_prompt = False

    def end(self) -> None:
        """Nothing is left to hand on."""


def _cooled(logits: Tensor, temperature: float) -> Tensor:
    """Return logits over a temperature, less the largest; float64, so that however low a one leaves the likeliest."""
    return (logits - logits.amax(-1, keepdim=True)).double() / temperature


def _bytes_of(state: Any) -> int:
    """Return the bytes of the tensors that a cache of transformers holds: in its layers, or else itself."""
    layers = getattr(state, "layers", [state])
    parts = [getattr(layer, "__dict__", layer) for layer in layers]
    return sum(tensor.numel() * tensor.element_size() for tensor in _tensors_in(parts))


def _tensors_in(part: Any) -> Iterator[Tensor]:
    """Yield the tensors in a nest of lists, tuples and dictionaries."""
    if isinstance(part, Tensor):
        yield part
    elif isinstance(part, list | tuple | dict):
        for one in part.values() if isinstance(part, dict) else part:
            yield from _tensors_in(one)
