"""What jobs begin with: a text, its tokens, a device, a folder that can be written, a model on spikes."""

from __future__ import annotations

import platform
import pydoc_data.topics
import tempfile
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..backends import Backend, device_of
from ..errors import InputError
from ..models import Loaded, SpikeSettings, spiking_layers, to_spiking
from ..models.io import load
from ..models.spikingbrain import SpikingBrainForCausalLM
from .progress import SILENT, Progress

DEFAULT_TEXT = "pydoc_data.topics"


def read_text(path: Path | None, name: str = "text") -> tuple[str, str]:
    """Return a text and where it is from.

    Args:
        path: a UTF-8 file; None for the text of the standard library's pydoc_data.topics.
        name: name of the argument, for messages.
    Raises:
        InputError: the file cannot be read, or is not UTF-8.
    """
    if path is None:
        topics = pydoc_data.topics.topics
        text = "\n\n".join(topics[topic] for topic in sorted(topics))
        return text, f"{DEFAULT_TEXT} of Python {platform.python_version()}"
    try:
        # As bytes: Path.read_text would change line ends, and with them tokens and checksum.
        return path.read_bytes().decode("utf-8"), path.name
    except OSError as error:
        raise InputError(f"{name} {path}: cannot be read: {error.strerror}. Name a UTF-8 text file.") from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"{name} {path}: expected UTF-8 text, got {error.reason} at byte {error.start}. Save the file as UTF-8."
        ) from error


def require_writable(out: Path) -> None:
    """Make a folder to write to; raise an InputError if nothing can be written there."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise InputError(f"out {out}: cannot be written: {error.strerror or error}. Name another folder.") from error


def require_tokenizer(tokenizer: Any, source: str) -> Any:
    """Return the tokenizer of a model; raise an InputError if it has none."""
    if tokenizer is None:
        raise InputError(f"{source}: expected a model with a tokenizer. Put its tokenizer files beside it.")
    return tokenizer


def token_ids(text: str, tokenizer: Any, source: str) -> Tensor:
    """Return the ids of all tokens of a text, int64 [tokens]."""
    ids = require_tokenizer(tokenizer, source).encode(text, verbose=False)
    return torch.tensor(ids, dtype=torch.int64)


def first_tokens(loaded: Loaded, text: str, num_tokens: int, context: int, progress: Progress = SILENT) -> Tensor:
    """Return the ids of the first tokens of a text, checked against the model.

    Args:
        loaded: the model.
        text: the text.
        num_tokens: tokens to return; a shorter text gives all it has.
        context: tokens of one window, at most as many as the model has positions.
        progress: told if the text is shorter.
    Raises:
        InputError: the model has no tokenizer or another model's, or fewer positions than context.
    """
    ids = token_ids(text, loaded.tokenizer, loaded.source)
    config: Any = loaded.model.config
    config = config.get_text_config()
    names = ("max_position_embeddings", "max_seq_len", "n_positions", "seq_length")
    longest = next((value for name in names if isinstance(value := getattr(config, name, None), int)), None)
    if longest is not None and context > longest:
        raise InputError(
            f"A window of {context:,} tokens: expected at most the model's {longest:,} positions. Lower `context` "
            "(`num_tokens` where all tokens are one window)."
        )
    vocabulary = cast(PreTrainedModel, loaded.model).get_input_embeddings()
    if isinstance(vocabulary, nn.Embedding) and len(ids) and int(ids.max()) >= vocabulary.num_embeddings:
        raise InputError(
            f"{loaded.source}: expected token ids below {vocabulary.num_embeddings}, got {int(ids.max())}: the "
            "tokenizer is not this model's. Use the files that belong together."
        )
    if context <= len(ids) < num_tokens:
        progress.say(f"The text has only {len(ids):,} tokens, fewer than {num_tokens:,}: all are used.")
    return ids[:num_tokens]


def check_windows(num_tokens: int, context: int) -> None:
    """Raise an InputError unless the tokens fill at least one window."""
    if num_tokens < context:
        raise InputError(
            f"num_tokens: expected at least one window of {context} tokens, got {num_tokens}. Raise `num_tokens` or "
            "lower `context`."
        )


def check_seed(seed: int) -> None:
    """Raise an InputError unless the seed is one of NumPy's."""
    if seed < 0:
        raise InputError(f"seed: expected an integer >= 0, got {seed}.")


def is_spiking(model: nn.Module) -> bool:
    """Return whether a model has layers that run on spikes."""
    return bool(spiking_layers(model))


def move(model: nn.Module, device: str, backend: Backend | str = "auto", progress: Progress = SILENT) -> str:
    """Move a model to where it is to run.

    Args:
        model: moved in place.
        device: "cpu", "cuda" or "auto"; see `device_of`.
        backend: that the model will use, unless it spikes already and has its own.
        progress: told if the model runs on a GPU.
    Returns:
        "cpu" or "cuda".
    """
    backends = [layer.backend for layer in spiking_layers(model).values()]
    found = device_of(device, backends or [backend])
    model.to(found)
    if found == "cuda":
        progress.say(f"Running on {torch.cuda.get_device_name()}; the first run takes minutes to prepare its kernels.")
    return found


class SpikingText(NamedTuple):
    """A spiking model and the text that it is to read.

    Attributes:
        model: the model, on spikes.
        ids: token ids, [tokens].
        source: file, folder or hub id that the model is from.
        text_source: where the text is from.
    """

    model: nn.Module
    ids: Tensor
    source: str
    text_source: str


def load_spiking(
    model: str,
    text: Path | None,
    spike_settings: SpikeSettings,
    *,
    num_tokens: int,
    context: int,
    device: str = "auto",
    progress: Progress = SILENT,
) -> SpikingText:
    """Load a model and a text, and put the model on spikes unless it is already.

    Args:
        model: anything that `load` takes.
        text: as for `read_text`.
        spike_settings: which layers spike, and how; a model that spikes already keeps its own.
        num_tokens: as for `first_tokens`.
        context: as for `first_tokens`.
        device: "cpu", "cuda" or "auto".
        progress: told what happens.
    Raises:
        SpikebrainError: bad input; the message says which and what to do.
    """
    device_of(device)
    check_windows(num_tokens, context)
    content, text_source = read_text(text)
    loaded = load(model, say=progress.say, bar=progress.bar)
    move(loaded.model, device, spike_settings.backend, progress)
    ids = first_tokens(loaded, content, num_tokens, context, progress)
    spiking = loaded.model if is_spiking(loaded.model) else to_spiking(loaded.model, spike_settings, inplace=True)
    return SpikingText(spiking, ids, loaded.source, text_source)


class SpikingBrain(NamedTuple):
    """A SpikingBrain model, its tokenizer, and the folder that it is from."""

    model: SpikingBrainForCausalLM
    tokenizer: Any
    source: str


def load_spikingbrain(path: Path, progress: Progress = SILENT) -> SpikingBrain:
    """Load a SpikingBrain model; raise an InputError if it is another or has no tokenizer."""
    model, tokenizer, source = load(path, say=progress.say, bar=progress.bar)
    if not isinstance(model, SpikingBrainForCausalLM):
        raise InputError(
            f"{source}: expected a SpikingBrain model, got {type(model).__name__}. spikebrain convert makes one."
        )
    return SpikingBrain(model, require_tokenizer(tokenizer, source), source)
