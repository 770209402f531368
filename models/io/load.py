"""Find and read a model: a file or folder from `save`, a GGUF file, a Hugging Face folder or hub id, or `smollm2`."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from ...errors import CheckpointError
from ...results import about_result
from ..decoding import attach_decoder
from ..layers import guard
from . import smollm2
from .folder_config import config_json, is_spiking
from .folders import is_spikingbrain, names_quantization, read_folder
from .gguf_file import Bar, is_gguf, read_gguf
from .hub import check_depth, check_finite, check_vocabulary, from_pretrained, tokenizer_beside
from .replace_folder import CONFIG, interrupted
from .shards import Shards
from .single_file import read_file

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
    dtype: torch.dtype | None = None,
    architecture: nn.Module | None = None,
    say: Callable[[str], None] | None = None,
    bar: Bar | None = None,
) -> Loaded:
    """Load a causal language model. Pickles are never opened, and code that comes with a model is never run.

    Args:
        name_or_path: `smollm2` (fetched into the user's cache once); a `.gguf` file, which is dequantised; a
            `.safetensors` file that `save` wrote; a folder that `save` wrote, or another Hugging Face folder with
            safetensors; or a hub id `owner/name`.
        dtype: dtype of the float weights. None for the one that a spiking model was saved in, and for float32 if it
            is a SpikingBrain model or does not spike; a `.safetensors` file of `save` always keeps its own.
        architecture: only for a file that `save` wrote for a model that is not from transformers; see `read_file`.
        say: called with a sentence that says what is downloaded; None for a line on standard error.
        bar: called with title, total and unit of each part of a download, and of the reading of a GGUF file; returns a
            function that is told of progress.
    Raises:
        CheckpointError: there is no such model, the file is damaged or a pickle, or the hub cannot be reached.
    """
    name = os.fspath(name_or_path)
    if name == "smollm2" and not Path(name).exists():
        path = smollm2.download(say, bar)
    elif name == "smollm2" and isinstance(name_or_path, str):
        raise CheckpointError(
            "smollm2: names the built-in model, but there is a file or folder of that name here. Write ./smollm2 for "
            "that one, or run from another folder."
        )
    else:
        path = Path(name)
    if path.is_dir():
        loaded = _load_folder(path, dtype, may_be_hub=bool(_HUB_ID.fullmatch(name)))
    elif path.is_file():
        loaded = _load_file(path, dtype or torch.float32, architecture, bar)
    elif _HUB_ID.fullmatch(name) and path.suffix.lower() != ".gguf":
        loaded = _load_hub(name, dtype or torch.float32)
    else:
        raise CheckpointError(
            f"{name}: no such file or folder. Expected smollm2, a .gguf file, a model folder with safetensors, a file "
            "that spikebrain.save wrote, or a hub id such as owner/name."
        )
    check_finite(loaded.model, loaded.source)
    guard(loaded.model)
    check_vocabulary(loaded.model, loaded.tokenizer, loaded.source)
    attach_decoder(loaded.model)
    return loaded


def _load_file(path: Path, dtype: torch.dtype, architecture: nn.Module | None, bar: Bar | None) -> Loaded:
    if is_gguf(path):
        model, tokenizer = read_gguf(path, dtype, bar)
        return Loaded(model.eval(), tokenizer, str(path))
    if path.suffix.lower() == ".gguf":
        with path.open("rb") as file:
            raise CheckpointError(f"{path}: expected a GGUF file, got one that starts with {file.read(4)!r}.")
    if path.suffix.lower() in _PICKLES:
        raise CheckpointError(f"{path}: a pickle can run any code, so it is never opened. {_CONVERT_IT}")
    if path.suffix.lower() != ".safetensors":
        got = f"a {path.suffix} file" if path.suffix else "a file without an ending"
        raise CheckpointError(
            f"{path}: expected a .gguf or .safetensors file or a model folder, got {got}.{about_result(path)}"
        )
    model, tokenizer = read_file(path, architecture)
    return Loaded(model.eval(), tokenizer, str(path))


_CONVERT_IT = "Convert it to safetensors first (model.save_pretrained of transformers writes them)."


def _load_folder(path: Path, dtype: torch.dtype | None, *, may_be_hub: bool) -> Loaded:
    if not (path / "config.json").is_file():
        ggufs = sorted(p.name for p in path.iterdir() if p.suffix.lower() == ".gguf")
        hint = f" It holds GGUF files: name one of them, such as {ggufs[0]}." if ggufs else interrupted(path)
        hint += about_result(path)
        hint += " To load the hub id of that name, run from another folder." if may_be_hub else ""
        raise CheckpointError(f"{path}: expected a Hugging Face model folder, but it has no config.json.{hint}")
    pickles = sorted(p.name for p in path.iterdir() if p.suffix in _PICKLES)
    if pickles and not any(path.glob("*.safetensors*")):
        found = f"only pickles ({', '.join(pickles)}), which are never opened"
        raise CheckpointError(f"{path}: expected safetensors weights, found {found}. {_CONVERT_IT}")
    shards = Shards(path)  # raises if files are missing, damaged or of several models
    if is_spiking(config_json(path)) and not is_spikingbrain(path):
        return Loaded(read_folder(path, dtype=dtype), tokenizer_beside(path), str(path))
    dtype = torch.float32 if dtype is None else dtype
    if is_spikingbrain(path):
        return Loaded(read_folder(path, dtype=dtype), tokenizer_beside(path), str(path))
    if not names_quantization(path):
        shards.check_floats()
    check_depth(config_json(path), len(shards.shapes), path / CONFIG)
    model, tokenizer = from_pretrained(str(path), dtype, local=True)
    return Loaded(model.eval(), tokenizer, str(path))


def _load_hub(name: str, dtype: torch.dtype) -> Loaded:
    try:
        model, tokenizer = from_pretrained(name, dtype, local=False)
    except CheckpointError as error:
        raise CheckpointError(
            f"{name}: no such file or folder here, and as a hub id it could not be loaded: {error} "
            "Check the name and the network, or name a local folder."
        ) from error
    return Loaded(model.eval(), tokenizer, name)
