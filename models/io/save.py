"""Write a model: one verb for files and folders."""

from __future__ import annotations

import os
from pathlib import Path

from torch import nn
from transformers import PreTrainedTokenizerBase

from ...errors import CheckpointError, InputError
from ..spikingbrain.causal_lm import SpikingBrainForCausalLM
from .folders import write_folder
from .hub import check_vocabulary
from .single_file import write_file


def save(
    model: nn.Module,
    path: str | os.PathLike,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    released: bool = False,
    max_shard_bytes: int = 4 * 2**30,
) -> None:
    """Write a model so that `load` returns it with identical logits and all its settings.

    A path that ends in .safetensors becomes one file, for any spiking model. Any other path becomes a folder, for
    SpikingBrain models, spiking or not.

    Args:
        model: the model to write.
        path: the file or folder to write to.
        tokenizer: stored with the model, so that `load` returns it too.
        released: write a folder with the released config.json (model_type "gla_swa"), which cannot say how a spiking
            model runs.
        max_shard_bytes: maximum size of the tensors in one file of a folder; a larger tensor gets a file of its own.
    Raises:
        InputError: the model cannot be written to such a path, or it uses a class or a setting that a file cannot hold.
        CheckpointError: the path cannot be written.
    """
    path = Path(path)
    try:
        check_vocabulary(model, tokenizer, "save")
    except CheckpointError as error:
        raise InputError(str(error)) from error
    if path.suffix == ".safetensors":
        if released:
            raise InputError("save.released: expected a folder, the released layout has no single files.")
        write_file(model, path, tokenizer)
    elif isinstance(model, SpikingBrainForCausalLM):
        write_folder(model, path, tokenizer, released=released, max_shard_bytes=max_shard_bytes)
    else:
        raise InputError(
            f"save: expected a path that ends in .safetensors for a {type(model).__name__}, got {str(path)!r}. Only "
            "SpikingBrain models are written as folders."
        )
