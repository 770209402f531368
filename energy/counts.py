"""What was computed, in exact integers."""

from __future__ import annotations

from dataclasses import dataclass, fields

from ..errors import InputError
from ..models import LayerRecord, Recording


@dataclass(frozen=True)
class OperationCounts:
    """Operations of one or more layers; add them with `+`.

    Attributes:
        num_activations: channels encoded, over all tokens.
        num_spikes: spikes of either sign that left the encoder.
        num_synops: spikes times the synapses they reach, zero weights included: one accumulate (AC) each.
        num_macs: multiply-accumulates of the dense layers on the same tokens.
    """

    num_activations: int = 0
    num_spikes: int = 0
    num_synops: int = 0
    num_macs: int = 0

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if not isinstance(value, int) or value < 0:
                raise InputError(f"OperationCounts.{f.name}: expected an integer >= 0, got {value!r}.")

    def __add__(self, other: OperationCounts) -> OperationCounts:
        return OperationCounts(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


def count_operations(recording: Recording) -> dict[str, OperationCounts]:
    """Return the operations of each recorded layer, by name. `sum(counts.values(), OperationCounts())` adds them."""
    return {name: _count_layer(layer) for name, layer in recording.layers.items()}


def _count_layer(layer: LayerRecord) -> OperationCounts:
    num_activations = layer.num_tokens * layer.in_features
    return OperationCounts(
        num_activations=num_activations,
        num_spikes=layer.num_spikes,
        num_synops=layer.num_spikes * layer.out_features,
        num_macs=num_activations * layer.out_features,
    )
