"""Experts of a model: which of their layers run at the same time, and which tokens each of them sees."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn

from ..models.layers.experts import Experts
from ..models.layers.shared_input import rows_of
from ..models.spikingbrain.moe import MixtureOfExperts

# The projection of an expert that reads what its others have computed.
_LAST = "down_proj"


@dataclass(frozen=True)
class Place:
    """Where a layer stands among experts.

    Attributes:
        mixture: name of the module that holds the experts.
        expert: name of the layer's expert.
        is_last: whether it reads what the other projections of its expert have computed.
    """

    mixture: str
    expert: str
    is_last: bool


class Routing:
    """What a run tells of experts.

    Args:
        model: any model.
        layers: names of its spiking layers.

    Attributes:
        places: where layers stand that belong to experts, by name.
    """

    def __init__(self, model: nn.Module, layers: Iterable[str]) -> None:
        mixtures = [name for name, part in model.named_modules() if isinstance(part, (MixtureOfExperts, Experts))]
        self.places: dict[str, Place] = {}
        self._rows: dict[str, Tensor] = {}
        for layer in layers:
            expert, _, own = layer.rpartition(".")
            mixture = next((name for name in mixtures if _holds(name, expert)), None)
            if mixture is not None:
                self.places[layer] = Place(mixture, expert, own == _LAST)

    def tokens_of(self, layer: str, x: Tensor, num_tokens: int) -> Tensor | None:
        """Return which tokens of a text a call of a layer has, int64 [tokens of the call]; None if all or unknown.

        Args:
            layer: its name.
            x: what it was handed.
            num_tokens: of the text.
        """
        place = self.places.get(layer)
        if place is None:
            return None
        if place.is_last:
            return self._rows.get(place.expert)
        rows = rows_of(x)
        if rows is not None:  # where tokens come in blocks, one for each expert, they are counted through
            self._rows[place.expert] = rows.remainder(num_tokens)
        return self._rows.get(place.expert)


def _holds(mixture: str, expert: str) -> bool:
    return mixture == "" or expert.startswith(f"{mixture}.")
