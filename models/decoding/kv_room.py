"""Spare rows in a transformers `DynamicCache`, so that a token writes its own key and value and copies no others."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

# Rows of a first memory beyond those that are filled; a full memory is replaced by one of twice the rows.
SPARE_ROWS = 256
_CPU = torch.device("cpu")


class KvRoom:
    """The keys and values of all layers in one tensor with spare rows; the cache's tensors are views of its first rows.

    The views are new after each token, and a cache that holds others (it was cropped, reordered, updated by the model
    itself) is copied anew. So nobody's tensors change but in rows that they do not have.

    Attributes:
        memory: [layers * 2, 1, key heads, rows, head_dim]; keys and values of a layer one after the other.
    """

    def __init__(self, layers: list[Any]) -> None:
        length = layers[0].keys.shape[2]
        self.memory = with_spare_rows([part for layer in layers for part in (layer.keys, layer.values)], length)
        self.show(layers, self.views(length))

    def holds(self, layers: list[Any]) -> bool:
        """Return whether the cache still has the tensors that it was given last."""
        views = self._views
        return len(views) == len(layers) and all(
            layer.keys is keys and layer.values is values for layer, (keys, values) in zip(layers, views, strict=True)
        )

    @property
    def num_rows(self) -> int:
        """Rows of the memory."""
        return self.memory.shape[3]

    def grow(self, length: int) -> None:
        """Move to a memory of twice the rows, of which `length` are filled."""
        self.memory = with_spare_rows(list(self.memory.unbind(0)), length)

    def views(self, length: int) -> list[tuple[Tensor, Tensor]]:
        """Return keys and values of each layer, the first `length` rows."""
        parts = self.memory.narrow(3, 0, length).unbind(0)
        return list(zip(parts[::2], parts[1::2], strict=True))

    def show(self, layers: list[Any], views: list[tuple[Tensor, Tensor]]) -> None:
        """Give the cache such views."""
        self._views = views
        for layer, (keys, values) in zip(layers, views, strict=True):
            layer.keys, layer.values = keys, values


def room_of(
    cache: Any,
    num_key_heads: int,
    head_dim: int,
    dtype: torch.dtype = torch.float32,
    device: torch.device = _CPU,
) -> KvRoom | None:
    """Return the room of a cache, made if need be; None if the cache is of another kind or does not fit.

    Args:
        cache: what a model got.
        num_key_heads: heads of keys and values.
        head_dim: channels of a head.
        dtype: of keys and values.
        device: where they must be.
    """
    layers = getattr(cache, "layers", None)
    if not layers or any(type(layer) is not DynamicLayer for layer in layers):
        return None
    room = getattr(cache, "_kv_room", None)
    if isinstance(room, KvRoom) and room.holds(layers) and room.memory.shape[2::2] == (num_key_heads, head_dim):
        return room
    first = layers[0].keys
    if first is None or first.ndim != 4:
        return None
    expected = (1, num_key_heads, first.shape[2], head_dim)
    for layer in layers:
        for part in (layer.keys, layer.values):
            if part is None or part.shape != expected or part.dtype != dtype or part.device != device:
                return None
    cache._kv_room = KvRoom(layers)
    return cache._kv_room


def with_spare_rows(parts: list[Tensor], length: int, most: int | None = None) -> Tensor:
    """Return the parts in one tensor with spare rows, [parts, batch, heads, rows, .].

    Args:
        parts: each [batch, heads, rows, .].
        length: rows of each that are copied.
        most: rows that are ever needed.
    """
    batch, heads, _, dim = parts[0].shape
    num_rows = 2 * length + SPARE_ROWS
    with torch.inference_mode(False):  # so that changes are counted, and may be made in any mode
        size = (len(parts), batch, heads, num_rows if most is None else min(most, num_rows), dim)
        memory = torch.empty(size, dtype=parts[0].dtype, device=parts[0].device)
    if memory.dtype == torch.bool:
        memory.fill_(True)  # the flag of a column: it is text. All else takes no memory before it is written.
    for target, part in zip(memory, parts, strict=True):
        target[:, :, :length] = part[:, :, :length]
    return memory
