"""A SpikingBrain model writes text, and says how fast, with how much state and how many spikes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import TextStreamer

from ..analysis.stats import spike_statistics
from ..backends import device_of
from ..errors import InputError
from ..models.recording import record
from ..models.spikingbrain import SpikingBrainCache, SpikingBrainForCausalLM
from .given import refuse, usual
from .inputs import is_spiking, load_spikingbrain
from .progress import SILENT, Progress


@dataclass(frozen=True)
class GenerateSettings:
    """What to write.

    Attributes:
        model: folder of a SpikingBrain model.
        prompt: text to go on from.
        max_new_tokens: most tokens to write.
        temperature: of the distribution that tokens are drawn from; 0 takes the most likely one.
        device: "cpu", "cuda", or "auto" for a GPU if there is one.
        seed: random seed for the tokens that are drawn, which needs a temperature above 0; None for 0.
    """

    model: Path
    prompt: str
    max_new_tokens: int = 64
    temperature: float = 0.0
    device: str = "auto"
    seed: int | None = None

    def __post_init__(self) -> None:
        """Raise an InputError if a value is out of range."""
        if not isinstance(self.prompt, str) or any("\ud800" <= letter <= "\udfff" for letter in self.prompt):
            raise InputError(f"prompt: expected a text that UTF-8 can hold, got {self.prompt!a}.")
        if self.max_new_tokens < 1:
            raise InputError(f"max_new_tokens: expected an integer >= 1, got {self.max_new_tokens}.")
        if not 0 <= self.temperature < math.inf:
            raise InputError(f"temperature: expected a finite number >= 0, got {self.temperature:g}.")
        if not 0 <= usual(self.seed, 0) < 2**63:
            raise InputError(f"seed: expected an integer from 0 to 2^63 - 1, got {self.seed}.")
        if self.temperature == 0:
            refuse(self, ("seed",), "at `temperature` 0, where no token is drawn")


class SpikesWritten(NamedTuple):
    """Spikes of a text, in all spiking layers together.

    Attributes:
        per_token: spikes per token.
        per_channel: spikes per channel and token.
        num_tokens: tokens of the text, sink tokens included.
    """

    per_token: float
    per_channel: float
    num_tokens: int


@dataclass(frozen=True)
class Generated:
    """What `generate` wrote.

    Attributes:
        text: the new text, without the prompt.
        ids: token ids of prompt and new text, int64 [tokens], on the CPU.
        num_new_tokens: tokens that were written.
        seconds: time from the prompt to the last token.
        cache_bytes: size of the model's state after the text.
        spikes: of a pass over the whole text; None for a model without spikes.
    """

    text: str
    ids: Tensor
    num_new_tokens: int
    seconds: float
    cache_bytes: int
    spikes: SpikesWritten | None


def generate(
    settings: GenerateSettings, write: Callable[[str], None] = lambda text: None, progress: Progress = SILENT
) -> Generated:
    """Let a model write.

    Args:
        settings: what to write.
        write: called with the prompt and the new text as they come, piece by piece.
        progress: told what happens.
    Raises:
        SpikebrainError: bad input; the message says which and what to do.
    """
    where = device_of(settings.device)
    model, tokenizer, _ = load_spikingbrain(settings.model, progress)
    model: Any = model.to(where)
    ids = torch.tensor([tokenizer.encode(settings.prompt)], dtype=torch.int64, device=where)
    if ids.shape[1] == 0:
        raise InputError("prompt: expected at least one token, got none.")
    options = {"temperature": settings.temperature, "seed": usual(settings.seed, 0)}
    if where == "cuda":
        # The first call of a shape compiles kernels and times their launch settings, which is not the model's speed.
        progress.say("Preparing kernels for this GPU, which takes up to minutes the first time")
        write_tokens(model, ids, 2, **options)
    streamer = _Pieces(tokenizer, write)
    streamer.put(ids.cpu())
    start = time.perf_counter()
    cache, written = write_tokens(
        model, ids, settings.max_new_tokens, **options, done=lambda token: streamer.put(token.cpu())
    )
    seconds = time.perf_counter() - start
    streamer.end()
    return Generated(
        text=tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True),
        ids=written[0].cpu(),
        num_new_tokens=written.shape[1] - ids.shape[1],
        seconds=seconds,
        cache_bytes=cache.num_bytes,
        spikes=_count_spikes(model, written) if is_spiking(model) else None,
    )


@torch.inference_mode()
def write_tokens(
    model: SpikingBrainForCausalLM,
    ids: Tensor,
    limit: int,
    *,
    temperature: float = 0.0,
    seed: int = 0,
    done: Callable[[Tensor], None] = lambda token: None,
) -> tuple[SpikingBrainCache, Tensor]:
    """Write tokens after a prompt, up to one that ends the text.

    Args:
        model: writes.
        ids: token ids of the prompt, [1, L].
        limit: most tokens to write.
        temperature: as of `GenerateSettings`.
        seed: as of `GenerateSettings`.
        done: called with each new token, [1], but for one that ends the text.
    Returns:
        The state after the text, and the ids of prompt and text, [1, L].
    """
    ends = model.generation_config.eos_token_id if model.generation_config else None
    ends = [ends] if isinstance(ends, int) else list(ends or [])
    cache, generator, new = SpikingBrainCache(model.settings), torch.Generator(ids.device).manual_seed(seed), ids
    for _ in range(limit):
        logits = model(new, cache=cache, logits_to_keep=1).logits[:, -1].float()
        if temperature == 0:
            new = logits.argmax(-1, keepdim=True)
        else:
            # At most 0, and float64, so that however low a temperature leaves the most likely token.
            below = (logits - logits.amax(-1, keepdim=True)).double()
            new = torch.multinomial((below / temperature).softmax(-1), 1, generator=generator)
        ids = torch.cat([ids, new], 1)
        if int(new) in ends:
            break
        done(new[0])
    return cache, ids


class _Pieces(TextStreamer):
    """Gives text to a function instead of printing it."""

    def __init__(self, tokenizer: Any, write: Callable[[str], None]) -> None:
        super().__init__(tokenizer)
        self._write = write

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Hand on a piece of text."""
        if text:
            self._write(text)


@torch.inference_mode()
def _count_spikes(model: SpikingBrainForCausalLM, ids: Tensor) -> SpikesWritten:
    """Run the text again, in a pass of its own, since counting takes time."""
    with record(model) as recording:
        model(ids, use_cache=False)
    layers = list(recording.layers.values())
    num_tokens = max(layer.num_tokens for layer in layers)
    num_spikes = sum(layer.num_spikes for layer in layers)
    return SpikesWritten(num_spikes / num_tokens, spike_statistics(layers).mean_spikes, num_tokens)
