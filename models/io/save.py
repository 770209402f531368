"""Write a model: one verb for files and folders, and the same by the name that transformers has for it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate.utils import convert_file_size_to_int
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ...errors import CheckpointError, InputError
from ...module_check import check_module
from ..layers.spike_linear import spiking_layers
from ..spikingbrain.causal_lm import SpikingBrainForCausalLM
from .folder_writer import FORMATS, write_folder
from .hub import check_vocabulary
from .single_file import write_file


def save(
    model: nn.Module,
    path: str | os.PathLike,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    released: bool = False,
    format: str = "spikebrain",
    max_shard_bytes: int = 4 * 2**30,
) -> None:
    """Write a model so that `load` returns it with identical logits and all its settings.

    A path that ends in .safetensors becomes one file, for any spiking model. Any other path becomes a folder, for
    spiking models of transformers, and for SpikingBrain models, spiking or not. transformers opens such a folder, too:
    after `import spikebrain`, or with trust_remote_code=True, `AutoModelForCausalLM.from_pretrained` returns the same.

    Args:
        model: the model to write.
        path: the file or folder to write to.
        tokenizer: stored with the model, so that `load` returns it too.
        released: write a folder with the released config.json (model_type "gla_swa"), which cannot say how a spiking
            model runs.
        format: "spikebrain"; or "compressed-tensors", a folder with the same INT8 weights for tools that know only the
            library of that name. It cannot say how a spiking model runs: `load` returns a float model.
        max_shard_bytes: maximum size of the tensors in one file of a folder; a larger tensor gets a file of its own.
    Raises:
        InputError: the model cannot be written to such a path, or it uses a class or a setting that a file cannot hold.
        CheckpointError: the path cannot be written.
    """
    check_module("save", model)
    path = Path(path)
    try:
        check_vocabulary(model, tokenizer, "save")
    except CheckpointError as error:
        raise InputError(str(error)) from error
    names = [name for name in FORMATS if name != "released"]
    if format not in names:
        raise InputError(f"save.format: expected one of {', '.join(names)}; got {format!r}.")
    if released and format != names[0]:
        raise InputError(f"save.released: expected it alone, got format={format!r} as well. Leave one of them out.")
    layout = "released" if released else format
    if path.suffix == ".safetensors":
        if layout != names[0]:
            what = "released" if released else "format"
            raise InputError(f"save.{what}: expected a folder, the layout {layout} has no single files.")
        write_file(model, path, tokenizer)
        return
    is_ours = isinstance(model, SpikingBrainForCausalLM)
    if not (is_ours or (isinstance(model, PreTrainedModel) and spiking_layers(model))) or (released and not is_ours):
        what = "a SpikingBrain model" if released else "a transformers model that spikes, or a SpikingBrain model,"
        raise InputError(
            f"save: expected {what} for the folder {str(path)!r}, got a {type(model).__name__}. Call to_spiking first; "
            "other spiking models go into a file: a path that ends in .safetensors."
        )
    write_folder(model, path, tokenizer, layout=layout, max_shard_bytes=max_shard_bytes)


def save_pretrained(
    model: PreTrainedModel,
    save_directory: str | os.PathLike,
    is_main_process: bool = True,
    state_dict: Mapping[str, Tensor] | None = None,
    push_to_hub: bool = False,
    max_shard_size: int | str = "4GB",
    token: str | bool | None = None,
    repo_id: str | None = None,
    **others: Any,
) -> None:
    """Write a model as `save` does, by the name and with the arguments that transformers has; its models call this.

    Args:
        model: a model that spikes, or a SpikingBrain model.
        save_directory: the folder to write to.
        is_main_process: False to write nothing, in all but one of several processes.
        state_dict: tensors to write instead of the model's own, by the names of its state dict.
        push_to_hub: upload the model afterwards.
        max_shard_size: maximum size of a file, in bytes or as "5GB".
        token: for the upload.
        repo_id: where to upload to; None for the name of the folder.
        others: of the upload; and options of transformers that have no effect here, if they are as transformers has
            them without being asked.
    Raises:
        InputError: an option that cannot be followed.
        CheckpointError: the folder cannot be written.
    """
    usual = {"variant": None, "save_peft_format": True, "save_original_format": True, "safe_serialization": True}
    for name, value in usual.items():
        if others.pop(name, value) not in (value, None):
            raise InputError(
                f"save_pretrained.{name}: expected {value}, the only one for a spiking model. Leave it out."
            )
    others.pop("save_function", None)
    if others and not push_to_hub:
        raise InputError(f"save_pretrained: unknown options {sorted(others)}. Leave them out.")
    if not is_main_process:
        return
    try:
        num_bytes = convert_file_size_to_int(max_shard_size)
    except (ValueError, TypeError) as error:
        raise InputError(
            f"save_pretrained.max_shard_size: expected a size such as '5GB', got {max_shard_size!r}."
        ) from error
    write_folder(model, save_directory, max_shard_bytes=num_bytes, tensors=state_dict)
    if push_to_hub:
        name = repo_id or Path(save_directory).absolute().name
        model.push_to_hub(name, token=token, max_shard_size=max_shard_size, **others)  # pyright: ignore
