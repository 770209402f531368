"""The text of a training: files, and what the teacher wrote beforehand, which an interrupted training finds again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..files import make_folder, read_json, write_json
from ..models.training import sample_from, texts_at_once, writer_of
from ..models.training.distill import fingerprint
from .inputs import check_length, token_ids
from .progress import SILENT, Progress

SAMPLES = "samples.json"


def text_of(
    texts: list[str],
    teacher: Any,
    tokenizer: Any,
    source: str,
    writing: tuple[int | None, int, int],
    out: Path,
    progress: Progress,
) -> Tensor:
    """Return the tokens to train on, int64 [N]: what the teacher wrote beforehand, then the texts.

    Args:
        texts: to train on.
        teacher: a Transformer.
        tokenizer: its tokenizer.
        source: its name, for messages.
        writing: tokens that the teacher writes, None for none; a random seed for them; and how many make a text.
        out: folder of samples.json.
        progress: told what happens.
    Raises:
        InputError: there are fewer tokens than one text has, or samples.json cannot be read or written.
    """
    num_samples, seed, context = writing
    parts = [token_ids(text, tokenizer, source) for text in texts]
    if num_samples is not None:
        parts.insert(0, samples(teacher, num_samples, context, seed, out, progress))
    tokens = torch.cat(parts)
    check_length("all of it", len(tokens), context, "context")
    return tokens


def samples(teacher: Any, num_tokens: int, context: int, seed: int, out: Path, progress: Progress = SILENT) -> Tensor:
    """Return tokens that the teacher writes: those of samples.json, if an earlier call of the same job wrote it.

    On a GPU the teacher writes in bfloat16.

    Args:
        teacher: a Transformer.
        num_tokens: tokens to write.
        context: tokens of one text.
        seed: random seed for the tokens that are drawn.
        out: folder of samples.json.
        progress: told what happens.
    Returns:
        Token ids, int64 [num_tokens], on the CPU.
    Raises:
        InputError: samples.json cannot be read or written.
    """
    path = out / SAMPLES
    job = {"num_tokens": num_tokens, "length": context, "seed": seed, "teacher": fingerprint(teacher)}
    if path.exists():
        try:
            kept = read_json(path)
            if kept["job"] == job:
                return torch.tensor(kept["tokens"], dtype=torch.int64)
        except (ValueError, KeyError, TypeError, RuntimeError) as error:
            raise InputError(f"{path}: holds no samples: {error} Delete it to sample again.") from error
    progress.say(f"Sampling {num_tokens:,} tokens")
    writer = writer_of(teacher)
    tokens = sample_from(writer, num_tokens, length=context, batch_size=texts_at_once(writer, context), seed=seed)
    write_job(path, {"job": job, "tokens": tokens.tolist()})
    return tokens


def write_job(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file in one step, and its folder if there is none."""
    make_folder(path.parent)
    write_json(path, content, indent=None)
