"""Parts of distill_smollm2.py: teacher, texts, samples, and perplexity in batches."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import spikebrain as sb
from spikebrain.models.training import WrittenText, sample_from, writer_of


@torch.no_grad()
def perplexity(model: Any, ids: Tensor, window: int, batch_tokens: int) -> float:
    """Return exp of the mean negative log-likelihood over windows without overlap; the last needs 2 tokens or more."""
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    whole = len(ids) // window * window
    batches = [*ids[:whole].view(-1, window).split(max(batch_tokens // window, 1)), ids[None, whole:]]
    total, count = torch.zeros((), dtype=torch.float64, device=device), 0
    for batch in batches:
        if batch.shape[0] == 0 or batch.shape[1] < 2:
            continue
        rows = batch.to(device)
        logits = model(input_ids=rows, use_cache=False).logits[:, :-1]
        for row, targets in zip(logits, rows[:, 1:], strict=True):
            total += nn.functional.cross_entropy(row.float(), targets, reduction="sum").double()
            count += len(targets)
    model.train(was_training)
    return float((total / count).exp())


class LongText(WrittenText):
    """Texts longer than a model writes well: every other one is a part of a book, from a place drawn at random.

    The others are pieces that the teacher wrote, one after the other, where a part of the first half comes again in the
    second half.

    Args:
        teacher: as of `WrittenText`.
        books: token ids.
        piece: tokens of what the teacher writes at a time.
    """

    def __init__(self, teacher: Any, books: Tensor, piece: int, **options: Any) -> None:
        super().__init__(teacher, **options)
        self._books, self._piece = books, piece

    def batch(self, stage: int, context: int, first: int, num_texts: int) -> Tensor:
        return torch.stack([self._long_text(stage, context, number) for number in range(first, first + num_texts)])

    def _long_text(self, stage: int, context: int, number: int) -> Tensor:
        chance = torch.Generator().manual_seed(self.seed * 1_000_000 + number)

        def drawn(most: int) -> int:
            return int(torch.randint(most, (1,), generator=chance))

        if number % 2:
            place = drawn(len(self._books) - context)
            return self._books[place : place + context]
        num_pieces = context // self._piece
        text = super().batch(stage, self._piece, number // 2 * num_pieces, num_pieces).flatten()
        self.seconds_per_text[context] = num_pieces * self.seconds_per_text[self._piece] / 2  # a book's takes none
        size = 1 + drawn(context // 8)
        source, target = drawn(context // 2 - size), context // 2 + drawn(context // 2 - size)
        text[target : target + size] = text[source : source + size].clone()
        return text

    def identity(self) -> str:
        return f"{super().identity()}, joined to long texts, every other one from books"


def written_by(teacher: Any, options: argparse.Namespace) -> Tensor:
    """Return tokens sampled from the teacher, which runs in bfloat16 on a GPU."""
    if options.samples == 0:
        return torch.zeros(0, dtype=torch.int64)
    sizes = {"length": options.sample_length, "batch_size": options.sample_batch}
    return sample_from(writer_of(teacher), options.samples, **sizes)


def calibration_rows(tokens: Tensor, options: argparse.Namespace) -> Tensor:
    """Return texts of up to 512 tokens from the beginning (samples) and the end (books)."""
    size, half = min(512, options.window), options.calibrate // 2
    both = torch.cat([tokens[:half], tokens[-half:]])
    return both[: len(both) // size * size].view(-1, size)


def load_teacher(options: argparse.Namespace) -> tuple[Any, Callable[[str], Tensor], Any]:
    """Return the Transformer, a function from text to ids, and the tokenizer."""
    if options.smoke:
        torch.manual_seed(0)
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.2}
        model = LlamaForCausalLM(LlamaConfig(vocab_size=256, tie_word_embeddings=True, **sizes, **heads)).eval()
        return model, lambda text: torch.tensor(list(text.encode())), None
    model, tokenizer, _ = sb.load(options.model)
    assert tokenizer is not None
    return model, lambda text: torch.tensor(tokenizer.encode(text, verbose=False)), tokenizer


def texts_of(options: argparse.Namespace) -> list[str]:
    if options.smoke:
        return [Path(__file__).read_text()]
    return [path.read_text(encoding="utf-8") for path in options.text]


def test_of(options: argparse.Namespace) -> str:
    return (Path(__file__).parent / "timing.py").read_text() if options.smoke else options.test.read_text("utf-8")
