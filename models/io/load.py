"""Find and read a model: a file or folder from `save`, a GGUF file, a Hugging Face folder or hub id, or `smollm2`."""

from __future__ import annotations

import logging
import os
import re
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from ...errors import CheckpointError
from . import smollm2
from .folders import is_spikingbrain, read_folder
from .shards import find_shards
from .single_file import check_safetensors, read_file

_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


class Loaded(NamedTuple):
    """A model ready to run, in evaluation mode, and where it came from.

    Attributes:
        model: the model.
        tokenizer: its transformers tokenizer; None if the source has none. Typed as Any, since nearly every source has
            one.
        source: the file, folder or hub id that was read.
    """

    model: nn.Module
    tokenizer: Any
    source: str


def load(
    name_or_path: str | os.PathLike = "smollm2",
    *,
    dtype: torch.dtype = torch.float32,
    architecture: nn.Module | None = None,
    console: Console | None = None,
) -> Loaded:
    """Load a causal language model. Pickles are never opened, and code that comes with a model is never run.

    Args:
        name_or_path: `smollm2` (fetched into the user's cache once); a `.gguf` file, which is dequantised; a
            `.safetensors` file that `save` wrote; a Hugging Face folder with safetensors; or a hub id `owner/name`.
        dtype: dtype of the float weights; the file of a spiking model keeps its own.
        architecture: only for a file that `save` wrote for a model that is not from transformers; see `read_file`.
        console: where download progress is shown; None for standard error.
    Raises:
        CheckpointError: there is no such model, the file is damaged or a pickle, or the hub cannot be reached.
    """
    name = os.fspath(name_or_path)
    path = smollm2.download(console) if name == "smollm2" else Path(name)
    if path.is_dir():
        return _load_folder(path, dtype)
    if path.is_file():
        if path.suffix == ".gguf":
            return _load_gguf(path, dtype)
        if path.suffix in _PICKLES:
            raise CheckpointError(f"{path}: a pickle can run any code, so it is never opened. {_CONVERT_IT}")
        if path.suffix != ".safetensors":
            raise CheckpointError(f"{path}: expected a .gguf or .safetensors file or a model folder.")
        model, tokenizer = read_file(path, architecture)
        return Loaded(model.eval(), tokenizer, str(path))
    if _HUB_ID.fullmatch(name) and path.suffix != ".gguf":
        return _load_hub(name, dtype)
    raise CheckpointError(
        f"{name}: no such file or folder. Expected smollm2, a .gguf file, a model folder with safetensors, a file "
        "that spikebrain.save wrote, or a hub id such as owner/name."
    )


_CONVERT_IT = "Convert it to safetensors first (model.save_pretrained of transformers writes them)."


def _load_gguf(path: Path, dtype: torch.dtype) -> Loaded:
    with path.open("rb") as file:
        magic = file.read(4)
    if magic != b"GGUF":
        raise CheckpointError(f"{path}: expected a GGUF file, got one that starts with {magic!r}.")
    try:
        # Alone in a folder, since transformers would use any tokenizer files next to it.
        with tempfile.TemporaryDirectory() as alone, _quiet():
            (Path(alone) / path.name).symlink_to(path.resolve())
            options = {"gguf_file": path.name, "local_files_only": True}
            model, info = _read_weights(alone, dtype=dtype, **options)
            tokenizer = AutoTokenizer.from_pretrained(alone, **options)
    except Exception as error:  # a damaged file can cause any error in the readers
        raise CheckpointError(
            f"{path} ({path.stat().st_size:,} bytes): cannot be read as a GGUF model, so it is truncated, damaged or "
            f"of an architecture that transformers does not know. Fetch it again. ({type(error).__name__}: {error})"
        ) from error
    _check_complete(str(path), info)
    model.config.name_or_path = str(path)
    # The weights are plain floats now. Remove all signs of quantisation, so that copies and saves treat them as floats.
    for holder in (model, model.config):
        for attribute in (
            "hf_quantizer",
            "quantization_config",
            "quantization_method",
            "_is_quantized",
            "is_quantized",
        ):
            vars(holder).pop(attribute, None)
    return Loaded(model.eval(), tokenizer, str(path))


def _load_folder(path: Path, dtype: torch.dtype) -> Loaded:
    if not (path / "config.json").is_file():
        raise CheckpointError(f"{path}: expected a Hugging Face model folder, but it has no config.json.")
    shards = find_shards(path)
    if not shards:
        pickles = sorted(p.name for p in path.iterdir() if p.suffix in _PICKLES)
        found = f"only pickles ({', '.join(pickles)}), which are never opened" if pickles else "none"
        raise CheckpointError(f"{path}: expected safetensors weights, found {found}. {_CONVERT_IT}")
    for shard in shards:
        check_safetensors(shard)
    if is_spikingbrain(path):
        return Loaded(read_folder(path, dtype=dtype), _tokenizer_beside(path), str(path))
    return _from_pretrained(str(path), dtype, local=True)


def _load_hub(name: str, dtype: torch.dtype) -> Loaded:
    try:
        return _from_pretrained(name, dtype, local=False)
    except CheckpointError as error:
        raise CheckpointError(
            f"{name}: no such file or folder here, and as a hub id it could not be loaded: {error} "
            "Check the name and the network, or name a local folder."
        ) from error


def _from_pretrained(name: str, dtype: torch.dtype, *, local: bool) -> Loaded:
    try:
        with _quiet():
            options = {"local_files_only": local, "use_safetensors": True, "trust_remote_code": False}
            model, info = _read_weights(name, dtype=dtype, **options)
            tokenizer = _tokenizer(name, local)
    except Exception as error:  # of many kinds: files, network, tensors, Rust's tokenizers
        raise CheckpointError(f"{name}: transformers cannot load it. ({type(error).__name__}: {error})") from error
    _check_complete(name, info)
    return Loaded(model.eval(), tokenizer, name)


def _read_weights(name: str, **options: Any) -> tuple[Any, dict[str, Any]]:
    """Return the model, and which of its tensors were missing, unexpected or of another shape."""
    read: Any = AutoModelForCausalLM.from_pretrained
    # Mismatched tensors are listed too; otherwise an error is raised that does not name them.
    return read(name, output_loading_info=True, ignore_mismatched_sizes=True, **options)


def _check_complete(name: str, info: dict[str, Any]) -> None:
    """Raise a CheckpointError unless the file and the model have the same tensors.

    transformers fills missing tensors with random numbers, and ignores unknown ones.
    """
    wrong = {what: sorted(map(str, info.get(f"{what}_keys") or ())) for what in ("missing", "unexpected", "mismatched")}
    listed = [
        f"{what}: {', '.join(keys[:8])}{', ...' if len(keys) > 8 else ''}" for what, keys in wrong.items() if keys
    ]
    if listed:
        raise CheckpointError(f"{name}: its tensors do not match the model. {'; '.join(listed)}. Fetch it again.")


def _tokenizer(name: str, local: bool) -> PreTrainedTokenizerBase | None:
    if local and not list(Path(name).glob("*token*")):
        return None
    return AutoTokenizer.from_pretrained(name, local_files_only=local, trust_remote_code=False)


def _tokenizer_beside(path: Path) -> PreTrainedTokenizerBase | None:
    try:
        with _quiet():
            return _tokenizer(str(path), local=True)
    except Exception as error:  # of many kinds, as in _from_pretrained
        raise CheckpointError(f"{path}: its tokenizer cannot be read. ({type(error).__name__}: {error})") from error


@contextmanager
def _quiet() -> Iterator[None]:
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
