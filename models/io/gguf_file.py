"""GGUF files: read through transformers, with every setting and tensor either honoured or named in an error.

transformers skips what it does not know, so a model with scaled rotary embeddings would load with plain ones. This
reader takes stock of the file first, gives the rotary embedding its scaling, and compares the rest with the model.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import gguf
import numpy as np
import torch
from transformers import AutoConfig, AutoTokenizer, modeling_gguf_pytorch_utils
from transformers.integrations.ggml import GGUF_CONFIG_MAPPING
from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

from ...errors import CheckpointError
from .gguf_blocks import note_weights
from .gguf_once import Reader, shared_with_transformers
from .hub import check_complete, check_depth, fault, quiet, read_weights

Bar = Callable[[str, int, str], Callable[[int], None]]
MAGIC = b"GGUF"
# Per-channel factors of the rotary frequencies, as Llama 3.1 has them.
_FACTORS = "rope_freqs.weight"
# Settings that describe the file and do not change what the model computes.
_NO_EFFECT = ("general.", "tokenizer.", "split.", "quantize.", "imatrix.", "GGUF.")
# Settings that transformers does not read, and the field of the configuration that must already have the same value.
_MUST_EQUAL = {
    "attention.key_length": "head_dim",
    "attention.value_length": "head_dim",
    "rope.dimension_count": "head_dim",
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
# Settings for which only one value is plain, and what that is.
_PLAIN = {"attention.causal": True, "expert_count": 0, "expert_used_count": 0, "rope.scaling.finetuned": None}
_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.IGNORECASE)


def is_gguf(path: Path) -> bool:
    """Return whether a file starts as GGUF files do, whatever its name."""
    with path.open("rb") as file:
        return file.read(4) == MAGIC


@contextmanager
def _weights_told(bar: Bar | None) -> Iterator[None]:
    """Tell of the weights that transformers reads in a `with` block, in the place of its own bar on the screen."""

    def told(tensors: Sequence[Any], **options: Any) -> Iterator[Any]:
        done = bar("weights", len(tensors), "tensors") if bar is not None else lambda number: None
        for tensor in tensors:
            yield tensor
            done(1)

    with mock.patch.object(modeling_gguf_pytorch_utils, "tqdm", told):
        yield


def read_gguf(path: Path, dtype: torch.dtype, bar: Bar | None = None) -> tuple[Any, Any]:
    """Read a model and its tokenizer; weights are dequantised, and each layer notes where its integers are.

    Args:
        path: the file, or the first of several parts.
        dtype: of the weights.
        bar: as for `load`, told of the weights; None for nobody.
    Raises:
        CheckpointError: the file is damaged, big-endian or of an architecture that transformers does not know, a part
            is missing, or it has a setting or a tensor that this reader cannot honour: all of them are named.
    """
    try:
        name = "model.gguf"
        with _alone(path) as (folder, reader, places), quiet(), shared_with_transformers(reader, folder / name):
            settings, tensors = _inventory(reader, path)
            config = AutoConfig.from_pretrained(folder, gguf_file=name, local_files_only=True)
            check_depth(config.to_dict(), len(tensors), path)
            rope, unused = _rope_of(settings, tensors, folder / name, config)
            if rope is not None:
                config.rope_parameters = rope
            options = {"gguf_file": name, "local_files_only": True, "config": config}
            with _weights_told(bar):
                model, info = read_weights(str(folder), dtype=dtype, **options)
            names = _names_of_tensors(model)
            note_weights(model, settings[""], tensors, places, names)
            unused += _unused_settings(settings, model.config)
            unused += [f"the tensor {name}" for name in tensors if name not in names]
            tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name, local_files_only=True)
    except BaseException as error:
        told = "cannot be read as a GGUF model, so it is truncated, damaged or of an architecture that transformers "
        told += "does not know. Fetch it again."
        raise fault(error, f"{path} ({path.stat().st_size:,} bytes)", told) from error
    if unused:
        raise CheckpointError(
            f"{path}: its model has parts that cannot be honoured, so its outputs would be wrong: {'; '.join(unused)}. "
            "Use the model's safetensors folder instead."
        )
    check_complete(str(path), info)
    model.config.name_or_path = str(path)
    # The weights are plain floats now: forget that they were quantised, so that copies and saves treat them so.
    for holder in (model, model.config):
        for attribute in (
            "hf_quantizer",
            "quantization_config",
            "quantization_method",
            "_is_quantized",
            "is_quantized",
        ):
            vars(holder).pop(attribute, None)
    return model, tokenizer


@contextmanager
def _alone(path: Path) -> Iterator[tuple[Path, Reader, dict[str, tuple[Path, int]]]]:
    """Yield a folder with the model as model.gguf and nothing else, a reader of it, and where its tensors are.

    Transformers would read other files there. The places are paths and offsets of the files as the user has them.
    """
    reader = _reader(path)  # takes seconds for a vocabulary of 50,000 tokens: once
    parts = _parts(path, reader)
    try:
        folder = Path(tempfile.mkdtemp())
    except OSError as error:
        raise _no_room(path, error) from error
    try:
        try:
            if len(parts) > 1:
                places = _join(parts, folder / "model.gguf")
                reader = _reader(folder / "model.gguf")
            else:
                places = _places(path, reader)
                _link(path.resolve(), folder / "model.gguf")
        except OSError as error:
            raise _no_room(path, error) from error
        yield folder, reader, places
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _no_room(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(
        f"{path}: expected to link or copy it into {tempfile.gettempdir()}: {error}. Set TMPDIR to a folder with room."
    )


def _link(path: Path, target: Path) -> None:
    """Link the file, or copy it where links are not allowed (Windows without that right, other file systems)."""
    for make in (os.symlink, os.link, shutil.copyfile):
        try:
            make(path, target)
            return
        except OSError:
            if make is shutil.copyfile:
                raise


def _parts(path: Path, reader: gguf.GGUFReader) -> list[Path]:
    """Return all parts of a model, in order; a whole file is its only part."""
    match = _PART.fullmatch(path.name)
    field = reader.fields.get("split.count")
    count = 1 if field is None else int(field.contents())
    if count <= 1:
        return [path]
    if match is None or int(match[3]) != count:
        raise CheckpointError(
            f"{path}: is one of {count} parts, whose names should end in -00001-of-{count:05d}.gguf. Rename them."
        )
    parts = [path.with_name(f"{match[1]}-{i:05d}-of-{count:05d}{path.suffix}") for i in range(1, count + 1)]
    missing = [part.name for part in parts if not part.is_file()]
    if missing:
        raise CheckpointError(f"{path}: parts of the model are missing: {', '.join(missing)}. Fetch them, too.")
    return parts


def _reader(path: Path) -> Reader:
    with path.open("rb") as file:
        start = file.read(8)
    # The version is a small number; in the other byte order its low half is 0.
    if len(start) == 8 and start[:4] == MAGIC and start[4:6] == b"\0\0":
        raise CheckpointError(f"{path}: is big-endian. Convert it with gguf_convert_endian of the gguf package.")
    return Reader(path)


def _places(path: Path, reader: gguf.GGUFReader) -> dict[str, tuple[Path, int]]:
    """Return path and offset of each tensor of a file."""
    return {tensor.name: (path.resolve(), int(tensor.data_offset)) for tensor in reader.tensors}


def _join(parts: list[Path], target: Path) -> dict[str, tuple[Path, int]]:
    """Write the tensors of all parts, as they are, and the settings of the first into one file; return their places."""
    readers = [_reader(part) for part in parts]
    first = readers[0]
    writer = gguf.GGUFWriter(target, str(first.fields["general.architecture"].contents()))
    for name, field in first.fields.items():
        if name == "general.architecture" or name.startswith(("GGUF.", "split.")):
            continue
        kind = field.types[0]
        writer.add_key_value(
            name, field.contents(), kind, field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        )
    places: dict[str, tuple[Path, int]] = {}
    for reader, part in zip(readers, parts, strict=True):
        for tensor in reader.tensors:
            if tensor.name in places:
                raise CheckpointError(
                    f"{part}: the tensor {tensor.name} is in an earlier part as well. Fetch it again."
                )
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        places |= _places(part, reader)
    expected = first.fields.get("split.tensors.count")
    if expected is not None and int(expected.contents()) != len(places):
        raise CheckpointError(
            f"{parts[0]}: expected {int(expected.contents())} tensors in all parts, got {len(places)}. Fetch it again."
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return places


def _inventory(reader: gguf.GGUFReader, shown: Path) -> tuple[dict[str, Any], dict[str, gguf.ReaderTensor]]:
    """Return the settings of the architecture, without its name in front, and the tensors by name."""
    field = reader.fields.get("general.architecture")
    if field is None:
        raise CheckpointError(f"{shown}: expected general.architecture, it has none. Fetch it again.")
    prefix = f"{field.contents()}."
    others = [n for n in reader.fields if not n.startswith((prefix, *_NO_EFFECT))]
    if others:
        raise CheckpointError(f"{shown}: settings of another architecture than {prefix[:-1]!r}: {', '.join(others)}.")
    settings = {n.removeprefix(prefix): f.contents() for n, f in reader.fields.items() if n.startswith(prefix)}
    return {"": prefix[:-1], **settings}, {tensor.name: tensor for tensor in reader.tensors}


def _rope_of(
    settings: dict[str, Any], tensors: dict[str, gguf.ReaderTensor], path: Path, config: Any
) -> tuple[dict[str, Any] | None, list[str]]:
    """Return rope_parameters for the configuration (None: plain), and what about the scaling cannot be honoured.

    Takes the settings and tensors that it reads out of the inventories.
    """
    scaling = {
        n.removeprefix("rope.scaling."): settings.pop(n) for n in list(settings) if n.startswith("rope.scaling.")
    }
    scaling.pop("finetuned", None)
    factors = tensors.pop(_FACTORS, None)
    kind = str(scaling.pop("type", "none"))
    before = getattr(config, "rope_parameters", None) or {}
    theta = before.get("rope_theta") or getattr(config, "rope_theta", None) or settings.get("rope.freq_base")
    rope: dict[str, Any] = {} if theta is None else {"rope_theta": float(theta)}
    if factors is not None:
        if kind != "none":
            return None, [f"rope.scaling.type {kind!r} together with the tensor {_FACTORS}"]
        per_channel = np.asarray(factors.data, np.float32).reshape(-1).tolist()
        # Both lists are the same, so that the length at which they change has no effect.
        rope |= {"rope_type": "longrope", "short_factor": per_channel, "long_factor": per_channel}
        rope |= {"attention_factor": 1.0, "original_max_position_embeddings": config.max_position_embeddings}
        return rope, _named(scaling)
    if kind == "none":
        return None, _named({n: v for n, v in scaling.items() if not (n == "factor" and v == 1.0)})
    factor = float(scaling.pop("factor", 1.0))
    rope |= {"rope_type": kind, "factor": factor}
    if kind == "linear":
        return rope, _named(scaling)
    if kind == "yarn":
        original = scaling.pop("original_context_length", None)
        if original is not None:
            rope["original_max_position_embeddings"] = int(original)
        attention = float(scaling.pop("attn_factor", 1.0)) * float(scaling.pop("yarn_attn_factor", 1.0))
        if attention != 1.0:
            rope["attention_factor"] = attention * (0.1 * math.log(factor) + 1.0)
        for name in ("beta_fast", "beta_slow"):
            if f"yarn_{name}" in scaling:
                rope[name] = float(scaling.pop(f"yarn_{name}"))
        return rope, _named(scaling)
    return None, [f"rope.scaling.type = {kind!r}, which is not supported"]


def _named(left: dict[str, Any]) -> list[str]:
    return [f"the setting rope.scaling.{name} = {value!r}" for name, value in left.items()]


def _unused_settings(settings: dict[str, Any], config: Any) -> list[str]:
    """Return the settings that transformers did not read and that do not say what the configuration has anyway."""
    architecture = settings.pop("")
    mapping = GGUF_CONFIG_MAPPING.get(config.model_type) or GGUF_CONFIG_MAPPING.get(architecture) or {}
    unused = []
    for name, value in settings.items():
        if mapping.get(name) is not None and mapping[name] != -1:
            continue
        if name in _PLAIN and _PLAIN[name] in (None, value):
            continue
        if name in _MUST_EQUAL:
            field = _MUST_EQUAL[name]
            found = _head_dim(config) if field == "head_dim" else getattr(config, field, None)
            if found is not None and np.allclose(found, value):
                continue
            unused.append(f"the setting {name} = {value!r}, where the model has {field} = {found!r}")
            continue
        unused.append(f"the setting {name} = {value!r}")
    return unused


def _head_dim(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _names_of_tensors(model: Any) -> dict[str, str]:
    """Return the model's name of each tensor that a file may have for it."""
    processor = TENSOR_PROCESSORS.get(model.config.model_type, TensorProcessor)(config=model.config.to_dict())
    return get_gguf_hf_weights_map(model, processor)
