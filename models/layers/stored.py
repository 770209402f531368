"""Integer weights that a model's file holds: noted on a layer when it is read, taken when it becomes a spiking one.

A note is a place in the file, not a copy, and says nothing about the layer as it is now. So the integers are read when
they are asked for, and taken only if they give the layer's float weight, number for number: a weight that was trained,
resized or replaced in between does not equal them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from .quantize import QuantizedWeight, dequantize

_NOTE = "stored_weight"


class StoredWeight(ABC):
    """Where a file holds the weight of a linear layer."""

    @abstractmethod
    def read(self) -> QuantizedWeight | str:
        """Return the integers, or why there are none, as the end of a sentence on the layer."""


def note_stored(layer: nn.Module, stored: StoredWeight) -> None:
    """Note on a layer where its weight is stored."""
    vars(layer)[_NOTE] = stored


def noted(layer: nn.Module) -> StoredWeight | None:
    """Return what was noted on a layer; copies of the layer have it, too."""
    return vars(layer).get(_NOTE)


def stored_weight_of(layer: nn.Module, weight: Tensor) -> QuantizedWeight | str:
    """Return the integers that a layer's file holds, or why they are not the layer's.

    Args:
        layer: a linear layer of a model.
        weight: its float weight, [out_features, in_features].
    """
    note = noted(layer)
    if note is None:
        return "was not read from a GGUF file"
    found = note.read()
    if isinstance(found, str):
        return found
    found = found.to(weight.device)
    floats = dequantize(found.weight, found.scale, found.minimum, found.group_size)
    if not torch.equal(floats.to(weight.dtype), weight):
        return "its float weight is not the one in the file any more"
    return found
