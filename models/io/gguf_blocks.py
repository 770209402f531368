"""Blocks of GGUF tensors as integers: of each type, integer * scale + minimum is what the file means, exactly.

Scales and minima are products of numbers of 16 bits and small integers, exact in float32; integer * scale + minimum
rounds as the dequantisation of the gguf package does, operation by operation.

Source:
    ggml's ggml-quants.c, and gguf/quants.py of the gguf package.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias

import gguf
import numpy as np
import torch
from torch import nn
from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor
from transformers.pytorch_utils import Conv1D

from ...errors import InputError
from ..layers.quantize import QuantizedWeight
from ..layers.stored import StoredWeight, note_stored

# Integers [blocks, block], scales [blocks, groups], and minima or None.
Unpacked: TypeAlias = tuple[np.ndarray, np.ndarray, np.ndarray | None]


class BlockType(NamedTuple):
    """A type of block whose weights are integer * scale + minimum.

    Attributes:
        unpack: from bytes [blocks, bytes].
        group_size: weights that share a scale.
        weight_bits: width in which the integers are kept: 4 if they fit.
    """

    unpack: Callable[[np.ndarray], Unpacked]
    group_size: int
    weight_bits: int


def _halves(columns: np.ndarray) -> np.ndarray:
    """Return float16 numbers as float32, [blocks, numbers]."""
    return np.ascontiguousarray(columns).view(np.float16).astype(np.float32)


def _fields(packed: np.ndarray, bits: int, run: int) -> np.ndarray:
    """Return small integers: a run of bytes holds the first integers in its lowest bits, the next `run` above them."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    runs = packed.reshape(len(packed), -1, 1, run) >> shifts
    return (runs & np.uint8(2**bits - 1)).reshape(len(packed), -1)


def _legacy(has_minimum: bool, has_fifth: bool) -> Callable[[np.ndarray], Unpacked]:
    """Q4_0, Q4_1, Q5_0, Q5_1: scale, minimum, a fifth bit of each of 32 integers, four bits of each."""

    def unpack(blocks: np.ndarray) -> Unpacked:
        numbers = _halves(blocks[:, : 4 if has_minimum else 2])
        q = _fields(blocks[:, -16:], 4, 16)
        if has_fifth:
            q |= np.unpackbits(blocks[:, -20:-16], axis=1, bitorder="little") << 4
        signed = q.astype(np.int8)
        if has_minimum:
            return signed, numbers[:, :1], numbers[:, 1:]
        return signed - np.int8(16 if has_fifth else 8), numbers, None

    return unpack


def _q8_0(blocks: np.ndarray) -> Unpacked:
    """A scale and 32 integers."""
    return blocks[:, 2:].view(np.int8), _halves(blocks[:, :2]), None


def _q2_k(blocks: np.ndarray) -> Unpacked:
    """16 bytes of a scale and a minimum of 4 bits each, integers of 2 bits, and what they are multiplied with."""
    d, dmin = np.split(_halves(blocks[:, 80:84]), 2, axis=1)
    return _fields(blocks[:, 16:80], 2, 32).astype(np.int8), d * (blocks[:, :16] & 15), -(dmin * (blocks[:, :16] >> 4))


def _q3_k(blocks: np.ndarray) -> Unpacked:
    """A third bit of each integer: without it 4 is taken off; two bits of each; 16 scales of 6 bits; a factor."""
    low, third = _fields(blocks[:, 32:96], 2, 32), _fields(blocks[:, :32], 1, 32)
    q = low.astype(np.int8) - np.int8(4) * (third == 0).astype(np.int8)
    scales = _fields(blocks[:, 96:104], 4, 8) | _fields(blocks[:, 104:108], 2, 4) << 4
    return q, _halves(blocks[:, 108:110]) * (scales.astype(np.int8) - np.int8(32)), None


def _q45_k(has_fifth: bool) -> Callable[[np.ndarray], Unpacked]:
    """Q4_K, Q5_K: two factors, 8 scales and 8 minima of 6 bits, a fifth bit of each integer, four bits of each."""

    def unpack(blocks: np.ndarray) -> Unpacked:
        d, dmin = np.split(_halves(blocks[:, :4]), 2, axis=1)
        a, b, c = np.split(blocks[:, 4:16], 3, axis=1)  # 6 bits of four scales, of four minima; low halves of the rest
        scales = np.concatenate([a & 63, c & 15 | a >> 2 & 48], 1)
        minima = np.concatenate([b & 63, c >> 4 | b >> 2 & 48], 1)
        q = _fields(blocks[:, -128:], 4, 32)
        if has_fifth:
            q |= _fields(blocks[:, 16:48], 1, 32) << 4
        return q.astype(np.int8), d * scales, -(dmin * minima)

    return unpack


def _q6_k(blocks: np.ndarray) -> Unpacked:
    """Four bits of each integer, two bits of each, 16 scales of 8 bits, and their factor."""
    q = _fields(blocks[:, :128], 4, 64) | _fields(blocks[:, 128:192], 2, 32) << 4
    return q.astype(np.int8) - np.int8(32), _halves(blocks[:, 208:210]) * blocks[:, 192:208].view(np.int8), None


BLOCK_TYPES = {
    "Q4_0": BlockType(_legacy(has_minimum=False, has_fifth=False), 32, 4),
    "Q4_1": BlockType(_legacy(has_minimum=True, has_fifth=False), 32, 4),
    "Q5_0": BlockType(_legacy(has_minimum=False, has_fifth=True), 32, 8),
    "Q5_1": BlockType(_legacy(has_minimum=True, has_fifth=True), 32, 8),
    "Q8_0": BlockType(_q8_0, 32, 8),
    "Q2_K": BlockType(_q2_k, 16, 4),
    "Q3_K": BlockType(_q3_k, 16, 4),
    "Q4_K": BlockType(_q45_k(has_fifth=False), 32, 4),
    "Q5_K": BlockType(_q45_k(has_fifth=True), 32, 8),
    "Q6_K": BlockType(_q6_k, 16, 8),
}


def unpack_rows(rows: np.ndarray, kind: str) -> QuantizedWeight:
    """Return the integers of a tensor.

    Args:
        rows: its bytes, uint8 [out_features, bytes of a row].
        kind: one of `BLOCK_TYPES`.
    """
    block = BLOCK_TYPES[kind]
    _, num_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    q, scale, minimum = block.unpack(np.ascontiguousarray(rows).reshape(-1, num_bytes))
    scale, minimum = (
        None if part is None else torch.from_numpy(np.ascontiguousarray(part.reshape(len(rows), -1), np.float32))
        for part in (scale, minimum)
    )
    assert scale is not None
    weight = torch.from_numpy(np.ascontiguousarray(q.reshape(len(rows), -1)))
    return QuantizedWeight(weight, scale, minimum, block.group_size, block.weight_bits)


@dataclass(frozen=True, eq=False)
class GgufWeight(StoredWeight):
    """Where a GGUF file holds a weight.

    Attributes:
        path: the file.
        offset: of the tensor in it, in bytes.
        shape: out_features, in_features.
        kind: the name of the tensor's type.
        order: row of the file that each row of the layer is, int64 [out_features]; None for the same.
    """

    path: Path
    offset: int
    shape: tuple[int, int]
    kind: str
    order: np.ndarray | None = None

    @property
    def why_none(self) -> str | None:
        """Why there are no integers of this type."""
        if self.kind in BLOCK_TYPES:
            return None
        return f"is of type {self.kind} in the GGUF file, which is not one of {', '.join(BLOCK_TYPES)}"

    def read(self) -> QuantizedWeight | str:
        """Return the integers, or why there are none."""
        size, num_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[self.kind]]
        row_bytes = self.shape[1] // size * num_bytes
        try:
            rows = np.fromfile(self.path, np.uint8, self.shape[0] * row_bytes, offset=self.offset)
        except OSError as error:
            raise InputError(
                f'to_spiking: expected the GGUF file that the model was read from, for weights="stored": {error}. Put '
                "it back, or load the model from where it is now."
            ) from error
        if len(rows) < self.shape[0] * row_bytes:
            return "the GGUF file is not the one that was read any more"
        rows = rows.reshape(self.shape[0], row_bytes)
        return unpack_rows(rows if self.order is None else rows[self.order], self.kind)


def note_weights(
    model: nn.Module,
    architecture: str,
    tensors: Mapping[str, gguf.ReaderTensor],
    places: Mapping[str, tuple[Path, int]],
    names: Mapping[str, str],
) -> None:
    """Note on each linear layer of a model where its GGUF file holds the weight, whatever its type.

    Args:
        model: as transformers read it.
        architecture: as the file calls it, by which transformers orders rows.
        tensors: of the file, by name.
        places: path and offset of each of them.
        names: the model's name of each.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    stored = {id(parameters[ours]): name for name, ours in names.items() if name in tensors and ours in parameters}
    config = model.config.to_dict()  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
    processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=config)
    for layer in model.modules():
        name = stored.get(id(layer._parameters.get("weight")))
        if name is None or not isinstance(layer, nn.Linear | Conv1D) or len(tensors[name].shape) != 2:
            continue
        num_in, num_out = (int(size) for size in tensors[name].shape)
        # What transformers does with the rows, done with their numbers.
        rows = np.broadcast_to(np.arange(num_out, dtype=np.int32)[:, None], (num_out, num_in))
        result = processor.process(rows, name, parsed_parameters={"tensors": {}}).weights
        order = (result.T if isinstance(layer, Conv1D) else result)[:, 0].astype(np.int64)
        if not np.array_equal(np.sort(order), np.arange(num_out)):
            continue  # a weight that is put together in another way
        is_same = np.array_equal(order, np.arange(num_out))
        kind = tensors[name].tensor_type.name
        note_stored(layer, GgufWeight(*places[name], (num_out, num_in), kind, None if is_same else order))
