"""What jobs begin with: a text, its tokens, a device, a folder that can be written, a model on spikes."""

from __future__ import annotations

import functools
import platform
import pydoc_data.topics
import tempfile
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..backends import Backend, device_of
from ..errors import InputError
from ..files import only_writer
from ..models import Loaded, choose_layers, spiking_layers, to_spiking, unshare_experts
from ..models.io import Preview, load, preview
from ..models.spikingbrain import SpikingBrainForCausalLM
from .given import refuse_spikes
from .progress import SILENT, Progress

F = TypeVar("F", bound=Callable[..., Any])

# A text of so many characters a token of a window is not read by the tokenizer twice.
_LONG = 32
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


def require_new(
    out: Path,
    *,
    sources: Iterable[str | Path] = (),
    known: Collection[str] = (),
    force: bool,
    or_file: bool = False,
) -> None:
    """Make a folder for a model; raise an InputError if nothing can be written there, or something would be lost.

    Args:
        out: the folder, or a .safetensors file.
        sources: models that are read, none of which may be written over.
        known: files in the folder that the job goes on from, or writes again.
        force: write over anything but the sources.
        or_file: whether the job can write a .safetensors file.
    """
    if out.suffix == ".safetensors" and not or_file:
        raise InputError(f"out {out}: expected a folder, got the name of a file. Leave out .safetensors.")
    require_writable(out.parent if out.suffix == ".safetensors" else out)
    try:
        if out.exists() and any(Path(source).exists() and out.samefile(source) for source in sources):
            raise InputError(f"out {out}: is a model that is read, which would be lost. Name another folder.")
        found = sorted(path.name for path in out.iterdir()) if out.is_dir() else [out.name] if out.exists() else []
        lost = [name for name in found if name not in known and not name.endswith(".partial")]
        if lost and not force:
            listed = ", ".join(lost[:3]) + (", ..." if len(lost) > 3 else "")
            raise InputError(
                f"out {out}: holds {listed} already. Name a new folder, or pass force=True to write over what it holds."
            )
    except OSError as error:
        raise _cannot_write(out, error) from error


def alone(job: F) -> F:
    """Return a job that no other process of this package writes beside into the same folder `out`."""

    @functools.wraps(job)
    def run(settings: Any, out: Path | None = None, *args: Any, **kwargs: Any) -> Any:
        if out is None or out.suffix == ".safetensors" or (out.exists() and not out.is_dir()):
            return job(settings, out, *args, **kwargs)
        is_new = not out.exists()
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError:
            return job(settings, out, *args, **kwargs)  # which says why
        with only_writer(out):
            try:
                return job(settings, out, *args, **kwargs)
            finally:
                if is_new and not any(out.iterdir()):
                    out.rmdir()

    return cast(F, run)


def require_writable(out: Path) -> None:
    """Make a folder to write to; raise an InputError if nothing can be written there."""
    if out.exists() and not out.is_dir():
        raise InputError(f"out {out}: expected a folder, got a file. Name another.")
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise _cannot_write(out, error) from error


def _cannot_write(out: Path, error: OSError) -> InputError:
    return InputError(f"out {out}: cannot be written: {error.strerror or error}. Name another folder.")


def require_tokenizer(tokenizer: Any, source: str) -> Any:
    """Return the tokenizer of a model; raise an InputError if it has none."""
    if tokenizer is None:
        raise InputError(f"{source}: expected a model with a tokenizer. Put its tokenizer files beside it.")
    return tokenizer


def token_ids(text: str, tokenizer: Any, source: str) -> Tensor:
    """Return the ids of all tokens of a text, int64 [tokens]."""
    ids = require_tokenizer(tokenizer, source).encode(text, verbose=False)
    return torch.tensor(ids, dtype=torch.int64)


def check_length(text: str, num_tokens: int, context: int, size: str) -> None:
    """Raise an InputError unless a text fills a window.

    Args:
        text: where the text is from.
        num_tokens: its length.
        context: tokens of a window.
        size: the argument that sets the window's size.
    """
    if num_tokens < context:
        remedy = f", or at most `{size}` {num_tokens}" if num_tokens > 1 else ""
        raise InputError(
            f"text: expected at least {context:,} tokens for one window, got {num_tokens:,} ({text}). Give a longer "
            f"text{remedy}."
        )


def positions_of(model: Any) -> int | None:
    """Return how many tokens a model was made for at most, as its configuration says; None if it does not."""
    config = model.config.get_text_config()
    names = ("max_position_embeddings", "max_seq_len", "n_positions", "seq_length")
    found = next((value for name in names if isinstance(value := getattr(config, name, None), int)), None)
    return None if found is None or found < 1 else found  # XLNet's -1 stands for as many as there are


def check_positions(model: Any, context: int, size: str) -> None:
    """Raise an InputError if a window has more tokens than a model has positions; `size` says what sets the window."""
    longest = positions_of(model)
    if longest is not None and context > longest:
        raise InputError(
            f"A window of {context:,} tokens: expected at most the model's {longest:,} positions. Lower {size}."
        )


def check_room(model: Any, num_prompt: int, max_new_tokens: int) -> None:
    """Raise an InputError if a prompt and the tokens that follow are more than a model has positions."""
    longest = positions_of(model)
    if longest is not None and num_prompt + max_new_tokens > longest:
        remedy = f"Write at most {longest - num_prompt:,}, or give" if longest > num_prompt else "Give"
        raise InputError(
            f"max_new_tokens: expected a text that fits the {longest:,} positions of the {type(model).__name__}, got a "
            f"prompt of {num_prompt:,} tokens and {max_new_tokens:,} more. {remedy} a shorter prompt."
        )


def look_ahead(
    model: str | Path, texts: Sequence[str], text_source: str, context: int, size: str = "context"
) -> Preview | None:
    """Check texts against a model's tokenizer before the model is loaded, where it is a folder.

    Args:
        model: anything that `load` takes.
        texts: which are long enough together.
        text_source: where they are from.
        context: as for `check_length`.
        size: as for `check_length`.
    Returns:
        The model without weights; None if it is no folder.
    Raises:
        InputError: the texts are shorter than a window.
    """
    found = preview(model)
    if found is not None and found.tokenizer is not None and sum(map(len, texts)) < _LONG * context:
        num_tokens = sum(len(token_ids(text, found.tokenizer, str(model))) for text in texts)
        check_length(text_source, num_tokens, context, size)
    return found


def look_at_layers(found: Preview | None, settings: Any) -> dict[str, tuple[int, int]]:
    """Check which layers of a model that is not loaded yet will spike.

    Args:
        found: what `look_ahead` returned.
        settings: of a job, as for `load_spiking`.
    Returns:
        (in_features, out_features) of each, by name; empty where that is not known yet.
    Raises:
        InputError: no layer matches, or the model spikes already and it was said how it shall.
    """
    if found is None:
        return {}
    if found.spikes:
        refuse_spikes(settings, "this model")
        return {}
    linears, _ = choose_layers(found.model, settings.spike_settings(), without_weights=True)
    is_linear = {name: isinstance(layer, nn.Linear) for name, layer in linears.items()}
    shapes = {name: tuple(layer.weight.shape) for name, layer in linears.items()}
    return {name: (b, a) if is_linear[name] else (a, b) for name, (a, b) in shapes.items()}


def first_tokens(
    loaded: Loaded,
    text: str,
    num_tokens: int | None,
    context: int,
    progress: Progress = SILENT,
    *,
    size: str = "context",
) -> Tensor:
    """Return the ids of the first tokens of a text, checked against the model.

    Args:
        loaded: the model.
        text: the text.
        num_tokens: tokens to return; a shorter text gives all it has, as does None.
        context: tokens of one window, at most as many as the model has positions.
        progress: told if the text is shorter.
        size: the argument that sets the window's size.
    Raises:
        InputError: the model has no tokenizer or another model's, or fewer positions than context, or the text is
            shorter than a window.
    """
    ids = token_ids(text, loaded.tokenizer, loaded.source)
    check_length("all of it", len(ids), context, size)
    check_positions(loaded.model, context, "`context` (`num_tokens` where all tokens are one window)")
    vocabulary = cast(PreTrainedModel, loaded.model).get_input_embeddings()
    if isinstance(vocabulary, nn.Embedding) and len(ids) and int(ids.max()) >= vocabulary.num_embeddings:
        raise InputError(
            f"{loaded.source}: expected token ids below {vocabulary.num_embeddings}, got {int(ids.max())}: the "
            "tokenizer is not this model's. Use the files that belong together."
        )
    if num_tokens is not None and len(ids) < num_tokens:
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
        tokenizer: of the model.
    """

    model: nn.Module
    ids: Tensor
    source: str
    text_source: str
    tokenizer: Any


def load_spiking(
    model: str,
    text: Path | None,
    settings: Any,
    *,
    num_tokens: int | None,
    context: int,
    prompt: str | None = None,
    device: str = "auto",
    size: str = "num_tokens",
    fits: Callable[[dict[str, tuple[int, int]]], Any] = lambda shapes: None,
    prepare: Callable[[Any], object] = lambda model: None,
    progress: Progress = SILENT,
) -> SpikingText:
    """Load a model and a text, and put the model on spikes unless it is already.

    Args:
        model: anything that `load` takes.
        text: as for `read_text`.
        settings: of a job, with `spike_settings()`; must not say how a model spikes that spikes already.
        num_tokens: as for `first_tokens`.
        context: as for `first_tokens`.
        prompt: a text itself, in the place of `text`.
        device: "cpu", "cuda" or "auto".
        size: the argument that sets the window's size.
        fits: called with the shapes of the layers that will spike, if they are known before the model is loaded.
        prepare: changes a float model in place, before it is put on spikes.
        progress: told what happens.
    Raises:
        SpikebrainError: bad input; the message says which and what to do.
    """
    device_of(device)
    if num_tokens is not None:
        check_windows(num_tokens, context)
    chosen = settings.spike_settings()
    content, text_source = read_text(text) if prompt is None else (prompt, "the prompt")
    if shapes := look_at_layers(look_ahead(model, [content], text_source, context, size), settings):
        fits(shapes)
    loaded = load(model, say=progress.say, bar=progress.bar)
    if is_spiking(loaded.model):
        refuse_spikes(settings, loaded.source)
    else:
        prepare(loaded.model)
    move(loaded.model, device, chosen.backend, progress)
    ids = first_tokens(loaded, content, num_tokens, context, progress, size=size)
    spiking = loaded.model if is_spiking(loaded.model) else to_spiking(loaded.model, chosen, inplace=True)
    return SpikingText(spiking, ids, loaded.source, text_source, loaded.tokenizer)


def give_experts_cores(model: Any, progress: Progress) -> None:
    """Give each of equal experts, which are one set of weights, a copy of it: on a chip all have cores of their own."""
    if isinstance(model, SpikingBrainForCausalLM) and model.settings.equal_experts:
        progress.say("All experts of a layer are one set of weights: each gets a copy, on cores of its own.")
        unshare_experts(model)
