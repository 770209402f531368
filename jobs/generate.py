"""A model writes text, and says how fast, with how much state and how many spikes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..analysis.stats import spike_statistics
from ..backends import device_of
from ..errors import InputError
from ..models.decoding import describe_decoding
from ..models.io import load
from ..models.recording import record
from ..models.spikingbrain import SpikingBrainCache, SpikingBrainForCausalLM, sequence_prefill
from .given import refuse, usual
from .inputs import check_room, is_spiking, read_text, require_tokenizer
from .progress import SILENT, Progress
from .ranks import processes
from .writing import NewText, write_by_transformers, write_tokens


@dataclass(frozen=True)
class GenerateSettings:
    """What to write.

    Attributes:
        model: anything that `load` takes; it runs as it is, on spikes or in floating point.
        prompt: text to go on from; None for that of `prompt_file`.
        max_new_tokens: most tokens to write.
        temperature: of the distribution that tokens are drawn from; 0 takes the most likely one.
        device: "cpu", "cuda", or "auto" for a GPU if there is one.
        seed: random seed for the tokens that are drawn, which needs a temperature above 0; None for 0.
        prompt_file: a UTF-8 file with the text to go on from, instead of `prompt`.
    """

    model: str | Path
    prompt: str | None = None
    max_new_tokens: int = 64
    temperature: float = 0.0
    device: str = "auto"
    seed: int | None = None
    prompt_file: Path | None = None

    def __post_init__(self) -> None:
        """Raise an InputError if a value is out of range."""
        if (self.prompt is None) == (self.prompt_file is None):
            got = "neither" if self.prompt is None else "both"
            raise InputError(f"prompt: expected a text, or `prompt_file` with one; got {got}.")
        if self.prompt is not None and not _is_text(self.prompt):
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
        text: the new text, without the prompt and without special tokens.
        ids: token ids of prompt and new text, int64 [tokens], on the CPU.
        num_new_tokens: tokens that were written.
        seconds: time from the prompt to the last token.
        cache_bytes: size of the model's state after the text, such as its keys and values.
        spikes: of a pass over the whole text; None for a model without spikes, and where several processes read it.
        is_spiking: whether the model spikes.
        is_spikingbrain: whether it is a SpikingBrain model; else it is one of transformers.
    """

    text: str
    ids: Tensor
    num_new_tokens: int
    seconds: float
    cache_bytes: int
    spikes: SpikesWritten | None
    is_spiking: bool = False
    is_spikingbrain: bool = True


def generate(
    settings: GenerateSettings, write: Callable[[str], None] = lambda text: None, progress: Progress = SILENT
) -> Generated:
    """Let a model write.

    Args:
        settings: what to write.
        write: called with the prompt, unless it is in a file, and the new text as they come, piece by piece.
        progress: told what happens.
    Raises:
        SpikebrainError: bad input; the message says which and what to do.
    """
    where = device_of(settings.device)
    model, tokenizer, ids = _prepared(settings, where, progress)
    if not isinstance(model, SpikingBrainForCausalLM):
        check_room(model, ids.shape[1], settings.max_new_tokens)
    on_spikes = is_spiking(model)
    progress.say(describe_decoding(model) if on_spikes else "Decoding in floating point: the model has no spikes.")
    if where == "cuda" or on_spikes:
        # The first call of a shape compiles kernels, and on a GPU times their launch settings: not the model's speed.
        progress.say("Preparing kernels for this machine, which takes up to minutes the first time")
        some = ids if where == "cuda" else ids[:, :2]
        _writer_of(model)(model, some, 2, temperature=settings.temperature, seed=usual(settings.seed, 0))
    found = _write(settings, model, tokenizer, ids, write)
    return replace(found, spikes=_count_spikes(model, found.ids[None].to(where)) if on_spikes else None)


def generate_in_parallel(
    settings: GenerateSettings, write: Callable[[str], None] = lambda text: None, progress: Progress = SILENT
) -> Generated | None:
    """Let the processes that torchrun started read a prompt together (`sequence_prefill`), and the last of them write.

    Each has the whole model, on a GPU of its own if there are any, and reads an equal part of the prompt.

    Args:
        settings: as for `generate`; `temperature` and `seed` as well.
        write: called on the last process with the prompt and the new text as they come.
        progress: told what happens.
    Returns:
        What was written, without its spikes, on the last process; None on the others.
    Raises:
        SpikebrainError: bad input, or no processes of torchrun.
    """
    where = device_of(settings.device)
    with processes(where) as (rank, size):
        model, tokenizer, ids = _prepared(settings, where, progress)
        if not isinstance(model, SpikingBrainForCausalLM):
            raise InputError(
                f"{settings.model}: expected a SpikingBrain model, as which several processes can read a text, got "
                f"{type(model).__name__}. spikebrain convert makes one; a single process writes with any model."
            )
        rest = ids.shape[1] % size
        if ids.shape[1] < size:
            raise InputError(
                f"{_name_of_prompt(settings)}: expected {size} tokens or more, one for each process, got "
                f"{ids.shape[1]}. Give a longer text, or start fewer processes."
            )
        progress.say(f"{size} processes read {ids.shape[1]:,} tokens")
        start = time.perf_counter()
        read = sequence_prefill(model, ids[:, : ids.shape[1] - rest])
        if rank < size - 1:
            return None
        assert read.cache is not None
        assert read.logits is not None
        state = (read.cache, read.logits, ids[:, ids.shape[1] - rest :])
        return _write(settings, model, tokenizer, ids, write, start, state)


def _is_text(prompt: Any) -> bool:
    return isinstance(prompt, str) and not any("\ud800" <= letter <= "\udfff" for letter in prompt)


def _name_of_prompt(settings: GenerateSettings) -> str:
    return "prompt" if settings.prompt_file is None else f"prompt_file {settings.prompt_file}"


def _prepared(settings: GenerateSettings, where: str, progress: Progress) -> tuple[Any, Any, Tensor]:
    """Return model, tokenizer and the prompt's token ids, int64 [1, L]."""
    text = settings.prompt
    if text is None:
        text, _ = read_text(settings.prompt_file, "prompt_file")
    loaded = load(settings.model, say=progress.say, bar=progress.bar)
    tokenizer = require_tokenizer(loaded.tokenizer, loaded.source)
    ids = torch.tensor([tokenizer.encode(text)], dtype=torch.int64, device=where)
    if ids.shape[1] == 0:
        raise InputError(f"{_name_of_prompt(settings)}: expected at least one token, got none. Give a text.")
    return loaded.model.to(where), tokenizer, ids


def _writer_of(model: Any) -> Callable[..., tuple[int, Tensor]]:
    return write_tokens if isinstance(model, SpikingBrainForCausalLM) else write_by_transformers


def _write(
    settings: GenerateSettings,
    model: Any,
    tokenizer: Any,
    ids: Tensor,
    write: Callable[[str], None],
    start: float | None = None,
    state: tuple[SpikingBrainCache, Tensor, Tensor] | None = None,
) -> Generated:
    """Write after a prompt, [1, L], which a state may have read already; `start` is when its reading began."""
    if settings.prompt is not None:
        write(settings.prompt)
    streamer = NewText(tokenizer, write, ids[0].cpu())
    start = time.perf_counter() if start is None else start
    cache_bytes, written = _writer_of(model)(
        model,
        ids,
        settings.max_new_tokens,
        temperature=settings.temperature,
        seed=usual(settings.seed, 0),
        done=lambda token: streamer.put(token.cpu()),
        **({} if state is None else {"state": state}),
    )
    seconds = time.perf_counter() - start
    streamer.end()
    return Generated(
        text=streamer.text,
        ids=written[0].cpu(),
        num_new_tokens=written.shape[1] - ids.shape[1],
        seconds=seconds,
        cache_bytes=cache_bytes,
        spikes=None,
        is_spiking=is_spiking(model),
        is_spikingbrain=isinstance(model, SpikingBrainForCausalLM),
    )


@torch.inference_mode()
def _count_spikes(model: Any, ids: Tensor) -> SpikesWritten:
    """Run the text again, in a pass of its own, since counting takes time."""
    with record(model) as recording:
        model(ids, use_cache=False)
    layers = list(recording.layers.values())
    num_tokens = max(layer.num_tokens for layer in layers)
    num_spikes = sum(layer.num_spikes for layer in layers)
    return SpikesWritten(num_spikes / num_tokens, spike_statistics(layers).mean_spikes, num_tokens)
