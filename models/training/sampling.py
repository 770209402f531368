"""Text that a model writes itself, as training data where there is none."""

from __future__ import annotations

import copy
import inspect
import time
from typing import Any

import torch
from torch import Tensor

from ...errors import InputError
from ..conversion.source import is_convertible
from ..spikingbrain.swa import any_length
from .team import ALONE, Team
from .writer import Writer

# Share of a GPU's free memory that keys and values may take, and the most texts at a time there and on a CPU.
_MEMORY_SHARE, _MOST_TEXTS, _TEXTS_ON_CPU = 0.25, 2048, 32


@torch.no_grad()
def sample_from(
    teacher: Any, num_tokens: int, *, length: int = 512, batch_size: int = 32, temperature: float = 1.0, seed: int = 0
) -> Tensor:
    """Let a language model write texts, each from a token drawn at random, and join them.

    Args:
        teacher: causal language model of transformers, with a cache.
        num_tokens: number of tokens to return.
        length: tokens of one text. An end-of-text token does not end it.
        batch_size: texts written at the same time.
        temperature: divides the logits; 1 for the model's own distribution.
        seed: random seed for the tokens; the same seed gives the same text on the same device.
    Returns:
        Token ids, int64 [num_tokens], on the CPU.
    Raises:
        InputError: a size below 1, or a temperature not above 0.
    """
    for name, value, least in (("num_tokens", num_tokens, 1), ("length", length, 2), ("batch_size", batch_size, 1)):
        if type(value) is not int or value < least:
            raise InputError(f"sample_from.{name}: expected an integer >= {least}, got {value!r}.")
    if not 0 < temperature < float("inf"):
        raise InputError(f"sample_from.temperature: expected a finite number > 0, got {temperature!r}.")
    generator = torch.Generator(teacher.device).manual_seed(seed)
    # What transformers calls the cache changes with its version.
    name = "cache" if "cache" in inspect.signature(teacher.forward).parameters else "past_key_values"
    texts, num_texts = [], -(-num_tokens // length)
    for first in range(0, num_texts, batch_size):
        batch = min(batch_size, num_texts - first)
        ids = torch.randint(teacher.config.vocab_size, (batch, 1), generator=generator, device=teacher.device)
        written, cache = [ids], None
        for _ in range(length - 1):
            with any_length(teacher.device):
                found = teacher(input_ids=written[-1], use_cache=True, **{name: cache})
            cache = found[name]
            probability = (found.logits[:, -1].float() / temperature).softmax(-1)
            written.append(torch.multinomial(probability, 1, generator=generator))
        texts.append(torch.cat(written, 1).cpu())
    return torch.cat(texts).flatten()[:num_tokens]


def texts_at_once(teacher: Any, length: int) -> int:
    """Return how many texts a model should write at the same time, so that its keys and values fit the memory.

    Args:
        teacher: causal language model of transformers.
        length: of a text, in tokens.
    """
    if teacher.device.type == "cpu":
        return _TEXTS_ON_CPU
    config = teacher.config
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    num_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads  # GPT-2 has no groups
    text_bytes = 2 * config.num_hidden_layers * num_heads * dim * length * teacher.dtype.itemsize
    free_bytes, _ = torch.cuda.mem_get_info(teacher.device)
    return max(1, min(int(_MEMORY_SHARE * free_bytes / text_bytes), _MOST_TEXTS))


def writer_of(teacher: Any) -> Any:
    """Return the model that writes for a teacher: itself on a CPU, on a GPU a copy in bfloat16."""
    return teacher if teacher.device.type == "cpu" else copy.deepcopy(teacher).bfloat16()


class WrittenText:
    """Texts that a teacher writes when training comes to them, so that none is read twice.

    It writes many at a time, the same ones for the same arguments on the same device, so an interrupted training gets
    those that it would have got. On a GPU it writes in bfloat16, and by `Writer` if its architecture is convertible.

    Args:
        teacher: causal language model of transformers.
        at_once: number of texts that are written together; None for as many as fit the memory.
        longest: tokens of the longest text that will be asked for; only without at_once.
        seed: random seed.
        team: of the processes that train together; each reads portions of its own.
    Attributes:
        seconds_per_text: time that a text took to write, by its length in tokens.
    Raises:
        InputError: at_once is below 1.
    """

    def __init__(
        self, teacher: Any, *, at_once: int | None = None, longest: int = 512, seed: int = 0, team: Team = ALONE
    ) -> None:
        if at_once is not None and (type(at_once) is not int or at_once < 1):
            raise InputError(f"WrittenText.at_once: expected an integer >= 1 or None, got {at_once!r}.")
        self.seed, self._teacher, self._team = seed, writer_of(teacher), team
        self.at_once = texts_at_once(self._teacher, longest) if at_once is None else at_once
        self._graphs: Writer | None = None
        self.seconds_per_text: dict[int, float] = {}
        self._portions: dict[tuple[int, int], tuple[int, Tensor]] = {}

    def batch(self, stage: int, context: int, first: int, num_texts: int) -> Tensor:
        """Return texts of a stage by their numbers, [num_texts, context], on the CPU.

        Args:
            stage: number of the stage; each has texts of its own.
            context: tokens of a text.
            first: number of the first text within the stage.
            num_texts: how many.
        """
        rows = [self._text(stage, context, number) for number in range(first, first + num_texts)]
        return torch.stack(rows)

    def identity(self) -> str:
        """Return what the texts depend on, besides the teacher."""
        together = f", for {self._team.size} processes" if self._team.size > 1 else ""
        return f"written by the teacher, {self.at_once} at once, seed {self.seed}{together}"

    def _text(self, stage: int, context: int, number: int) -> Tensor:
        portion, row = divmod(number, self.at_once)
        portion = portion * self._team.size + self._team.rank
        kept = self._portions.get((stage, context))
        if kept is None or kept[0] != portion:
            kept = (portion, self._write(stage, context, portion))
            self._portions[stage, context] = kept
        return kept[1][row]

    def _write(self, stage: int, context: int, portion: int) -> Tensor:
        # Seeds of all stages and portions differ, and differ from those of nearby seeds.
        seed = ((self.seed * 1000 + stage) * 1_000_000 + portion) % 2**63
        if self._teacher.device.type == "cuda" and is_convertible(self._teacher):
            if self._graphs is None or self._graphs.text.shape[1] != context:
                self._graphs = None  # frees its memory first
                self._graphs = Writer(self._teacher, self.at_once, context, torch.bfloat16)
            start = time.perf_counter()
            tokens = self._graphs.write(seed)
        else:
            start = time.perf_counter()
            size = {"length": context, "batch_size": self.at_once}
            tokens = sample_from(self._teacher, self.at_once * context, **size, seed=seed).view(-1, context)
        self.seconds_per_text[context] = (time.perf_counter() - start) / self.at_once
        return tokens
