"""Integer weights that a model's file holds: noted on a layer when it is read, taken when it becomes a spiking one.

A note is a place in the file, not a copy, and says nothing about the layer as it is now. So the integers are read when
they are asked for, and taken only if they give the layer's float weight, number for number: a weight that was trained,
resized or replaced in between does not equal them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from ...errors import InputError
from .quantize import QuantizedWeight, dequantize, rounded_to

_NOTE = "stored_weight"
# Inputs that share a scale in Q8_0 files.
_GROUP = 32


class StoredWeight(ABC):
    """Where a file holds the weight of a linear layer."""

    @property
    @abstractmethod
    def why_none(self) -> str | None:
        """Why the file has no integers for this weight, as the end of a sentence on the layer; None if it has."""

    @abstractmethod
    def read(self) -> QuantizedWeight | str:
        """Return the integers, or why there are none, as the end of a sentence on the layer."""


def note_stored(layer: nn.Module, stored: StoredWeight) -> None:
    """Note on a layer where its weight is stored."""
    vars(layer)[_NOTE] = stored


def noted(layer: nn.Module) -> StoredWeight | None:
    """Return what was noted on a layer; copies of the layer have it, too."""
    return vars(layer).get(_NOTE)


def why_no_integers(layer: nn.Module) -> str | None:
    """Return why the file of a layer holds no integers for it, or None if it does."""
    note = noted(layer)
    return "was not read from a GGUF file" if note is None else note.why_none


def check_stored(layers: Mapping[str, nn.Module]) -> None:
    """Raise an InputError if the file of no layer holds integers for it."""
    reasons = {name: why_no_integers(layer) for name, layer in layers.items()}
    if reasons and None not in reasons.values():
        raise nothing_stored({name: reason for name, reason in reasons.items() if reason is not None})


def nothing_stored(reasons: Mapping[str, str]) -> InputError:
    """Return the error for a model without any stored integers."""
    return InputError(
        f"weights: expected layers with integers in their file, for stored ones; found none. {in_words(reasons)}. Load "
        "a GGUF file and convert it before anything changes its weights, or take int8 or int4."
    )


def in_words(reasons: Mapping[str, str]) -> str:
    """Return the reasons of layers by name, each once, with the first layer that it is for."""
    names: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        names.setdefault(reason, []).append(name)
    return "; ".join(
        f"{first!r}{f' and {len(more)} more' if more else ''}: {reason}" for reason, (first, *more) in names.items()
    )


def stored_weight_of(layer: nn.Module, weight: Tensor) -> QuantizedWeight | str:
    """Return the integers that a layer's file holds, or why they are not the layer's.

    Args:
        layer: a linear layer of a model.
        weight: its float weight, [out_features, in_features].
    """
    reason, note = why_no_integers(layer), noted(layer)
    if reason is not None or note is None:
        return reason or ""
    found = note.read()
    if isinstance(found, str):
        return found
    found = found.to(weight.device)
    floats = dequantize(found.weight, found.scale, found.minimum, found.group_size)
    if not torch.equal(floats.to(weight.dtype), weight):
        return "its float weight is not the one in the file any more"
    return found


def rounded_before(weight: Tensor) -> QuantizedWeight | None:
    """Return 8-bit integers that give a float weight, number for number, if it was rounded to such; else None.

    Only groups of 32 inputs are looked for, whose scale is their largest magnitude / 127: those of Q8_0 files, and of
    models that such a file became, whose own files have floats.

    Args:
        weight: float weight, [out_features, in_features].
    """
    for part in (weight[:16], weight):  # most weights were never rounded, which their first rows tell
        if part.shape[1] % _GROUP != 0 or not part.isfinite().all():
            return None
        found = rounded_to(8, part, _GROUP)
        if not torch.equal(dequantize(found.weight, found.scale, None, _GROUP).to(part.dtype), part):
            return None
    return replace(found, weight=found.weight.to(torch.int8))
