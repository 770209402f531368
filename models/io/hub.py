"""Reading through transformers: folders, hub ids and GGUF files share what is checked afterwards."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.utils import logging as transformers_logging

from ...errors import CheckpointError, SpikebrainError

_LOG = logging.getLogger(__name__)
# Tensors that old checkpoints hold and no model reads: masks, and frequencies that are computed from the configuration.
DERIVED = re.compile(r"(^|\.)(masked_bias|rotary_emb\.inv_freq|attn\.bias|attention\.bias|attn\.attention\.bias)$")
# What configurations call their number of layers.
_DEPTHS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers")
GENERATION = "generation_config.json"
# Files of a tokenizer. A folder has at least one of the first six if it has a tokenizer.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)


def from_pretrained(name: str, dtype: torch.dtype, *, local: bool) -> tuple[Any, Any]:
    """Return model and tokenizer of a Hugging Face folder or hub id.

    Raises:
        CheckpointError: transformers cannot load it, or its tensors are not those of the model.
    """
    try:
        with quiet():
            options = {"local_files_only": local, "use_safetensors": True, "trust_remote_code": False}
            model, info = read_weights(name, dtype=dtype, **options)
            tokenizer = _tokenizer(name, local)
            if local:
                generation_config_of(Path(name))
    except BaseException as error:
        raise fault(error, name, "transformers cannot load it.") from error
    check_complete(name, info)
    return model, tokenizer


def read_weights(name: str, **options: Any) -> tuple[Any, dict[str, Any]]:
    """Return the model, and which of its tensors were missing, unexpected or of another shape."""
    read: Any = AutoModelForCausalLM.from_pretrained
    # Mismatched ones are listed, too, instead of raising an error that says nothing of them.
    return read(name, output_loading_info=True, ignore_mismatched_sizes=True, **options)


def check_complete(name: str, info: dict[str, Any]) -> None:
    """Raise unless every weight of the model was in the file and the other way round.

    transformers fills what is missing with random numbers, and leaves out what it does not know. Buffers that old
    checkpoints hold, and that follow from the configuration, are no fault.
    """
    wrong = {what: sorted(map(str, info.get(f"{what}_keys") or ())) for what in ("missing", "unexpected", "mismatched")}
    derived = [key for key in wrong["unexpected"] if DERIVED.search(key)]
    if derived:
        some = f"{', '.join(derived[:4])}{', ...' if len(derived) > 4 else ''}"
        _LOG.info("%s: %d buffers are not used, as they follow from the configuration: %s", name, len(derived), some)
    wrong["unexpected"] = [key for key in wrong["unexpected"] if key not in derived]
    listed = [
        f"{what}: {', '.join(keys[:8])}{', ...' if len(keys) > 8 else ''}" for what, keys in wrong.items() if keys
    ]
    if listed:
        raise CheckpointError(f"{name}: its tensors are not those of the model. {'; '.join(listed)}. Fetch it again.")


def check_depth(fields: Mapping[str, Any], num_tensors: int, where: Any) -> None:
    """Raise a CheckpointError if a configuration claims more layers than its files have tensors; before any is built.

    Args:
        fields: of the configuration; those of its text model below `text_config` count, too.
        num_tensors: in the files.
        where: the file that the configuration is of.
    """
    text = fields.get("text_config")
    for part in (fields, text if isinstance(text, Mapping) else {}):
        for name in _DEPTHS:
            depth = part.get(name)
            if isinstance(depth, int) and depth > num_tensors:
                raise CheckpointError(
                    f"{where}: expected {name} of at most {num_tensors:,}, the tensors of the model's files; got "
                    f"{depth:,}. Fetch it again."
                )


def check_finite(model: torch.nn.Module, name: str) -> None:
    """Raise a CheckpointError that names the first weight with NaN or infinity, if there is one."""
    for key, tensor in model.named_parameters():
        if tensor.is_floating_point() and not tensor.is_meta and not _all_finite(tensor):
            index = tuple((~torch.isfinite(tensor)).nonzero()[0].tolist())
            raise CheckpointError(
                f"{name}: expected finite weights, got {tensor[index].item()} at {index} of {key}. It is damaged. "
                "Fetch it again."
            )


def _all_finite(tensor: torch.Tensor) -> bool:
    """Return whether no element is NaN or infinite, in one pass: `isfinite` would write several masks of its size."""
    return tensor.numel() == 0 or all(bool(torch.isfinite(end)) for end in torch.aminmax(tensor))


def tokenizer_beside(path: Path) -> Any:
    """Return the tokenizer in a model folder, or None if it has none.

    Raises:
        CheckpointError: its files cannot be read.
    """
    try:
        with quiet():
            return _tokenizer(str(path), local=True)
    except BaseException as error:
        raise fault(error, path, "its tokenizer cannot be read. Fetch it again.") from error


def generation_config_of(path: Path) -> GenerationConfig | None:
    """Return the generation settings of a model folder, None if it has none.

    Raises:
        CheckpointError: they cannot be read; transformers would go on without them.
    """
    if not (path / GENERATION).is_file():
        return None
    try:
        return GenerationConfig.from_pretrained(path)
    except BaseException as error:
        raise fault(error, path / GENERATION, "is no generation configuration. Fetch it again.") from error


def check_vocabulary(model: torch.nn.Module, tokenizer: Any, where: str) -> None:
    """Compare a tokenizer with the embedding of its model.

    Raises:
        CheckpointError: ids of the tokenizer's own vocabulary have no row. For added tokens, which texts may never
            hold, a warning says so.
    """
    read: Any = getattr(model, "get_input_embeddings", lambda: None)
    try:
        rows = getattr(read(), "num_embeddings", None)
    except NotImplementedError:  # by transformers, for a model without an embedding
        return
    if rows is None or tokenizer is None:
        return
    ids = tokenizer.get_vocab()
    beyond = {word: i for word, i in ids.items() if i >= rows}
    if not beyond:
        return
    word = min(beyond, key=beyond.__getitem__)
    told = f"{where}: the model's embedding has {rows:,} rows, but its tokenizer has {len(ids):,} tokens, such as "
    told += f"{word!r} with id {beyond[word]:,}."
    if beyond.keys() <= tokenizer.get_added_vocab().keys():
        warnings.warn(f"{told} A text with it cannot run; resize_token_embeddings makes room.", stacklevel=3)
        return
    raise CheckpointError(f"{told} They do not belong together: use the model's own tokenizer.")


def fault(error: BaseException, where: Any, told: str) -> CheckpointError:
    """Return the error for whatever other people's readers raise over a damaged file, Rust's panics included.

    Args:
        error: what was raised. Our own errors, lack of memory, Ctrl-C and the like are raised again.
        where: the file, folder or hub id.
        told: what is wrong with it, and what to do.
    """
    is_panic = type(error).__name__ == "PanicException"
    if isinstance(error, SpikebrainError | MemoryError) or not (isinstance(error, Exception) or is_panic):
        raise error
    if isinstance(error, RuntimeError) and "memory" in str(error).lower():
        return CheckpointError(f"{where}: there is not enough memory for its weights. ({error})")
    return CheckpointError(f"{where}: {told} ({type(error).__name__}: {error})")


def _tokenizer(name: str, local: bool) -> Any:
    if local and not any((Path(name) / file).is_file() for file in TOKENIZER_FILES[:6]):
        return None
    return AutoTokenizer.from_pretrained(name, local_files_only=local, trust_remote_code=False)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' own progress bars and notes off the screen; errors still come through."""
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
