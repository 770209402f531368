"""A neuron that passes on only the counts of some magnitudes: what a level of a graded layer listens to."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError
from .adaptive_threshold import AdaptiveThreshold
from .base import NEURONS, CountBounds, Neuron
from .spike_count import SpikeCount


@NEURONS.register("band")
@dataclass(frozen=True)
class Band(Neuron[Any]):
    """The counts of another neuron, where above < |count| <= up_to; all other channels are silent.

    Bands that follow one another give each spiking channel to exactly one of them, so their activations add up to that
    of the neuron. No gradient passes channels that the band makes silent.

    Attributes:
        neuron: whose counts these are, an object or a registered name; its threshold is kept.
        above: |count| that is too small, at least 0.
        up_to: largest |count| that passes; None for any.

    >>> Band(AdaptiveThreshold(k=2.0), above=0, up_to=2)(torch.tensor([[1.0, -1.0, 4.0, 0.0]])).count.tolist()
    [[1, -1, 0, 0]]
    """

    neuron: Neuron | str = field(default_factory=AdaptiveThreshold)
    above: int = 0
    up_to: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "neuron", NEURONS.resolve(self.neuron, "Band.neuron"))
        if type(self.above) is not int or self.above < 0:
            raise InputError(f"Band.above: expected an integer >= 0, got {self.above!r}.")
        if self.up_to is not None and (type(self.up_to) is not int or self.up_to <= self.above):
            raise InputError(f"Band.up_to: expected an integer above {self.above}, or None, got {self.up_to!r}.")

    def initial_state(self, x: Float[Tensor, "*shape"]) -> Any:
        """Return the state of the neuron."""
        return self._inner.initial_state(x)

    def step(self, x: Float[Tensor, "*shape"], state: Any) -> tuple[SpikeCount, Any]:
        """Advance the neuron by one step; see `Neuron.step`."""
        spikes, state = self._inner.step(x, state)
        magnitude = spikes.count.abs()
        heard = magnitude > self.above
        if self.up_to is not None:
            heard &= magnitude <= self.up_to
        count = torch.where(heard, spikes.count, torch.zeros_like(spikes.count))
        source = spikes.source
        if source is not None:
            source = torch.where(heard, source, torch.zeros_like(source))
        return replace(spikes, count=count, source=source), state

    def count_bounds(self, num_channels: int) -> CountBounds | None:
        """Return the bounds of the neuron's counts, or of the band where it is narrower."""
        bounds = self._inner.count_bounds(num_channels)
        if self.up_to is None:
            return bounds
        limit = float(self.up_to)
        return (
            CountBounds(limit, limit) if bounds is None else CountBounds(min(bounds[0], limit), min(bounds[1], limit))
        )

    def compares_per_channel(self) -> int:
        """Return those of the neuron, and one more with the lower edge of the band."""
        return self._inner.compares_per_channel() + (self.above > 0)

    @property
    def _inner(self) -> Neuron:
        assert isinstance(self.neuron, Neuron)
        return self.neuron


def without_band(neuron: Neuron) -> Neuron:
    """Return the neuron inside a `Band`, or the neuron itself."""
    return neuron._inner if type(neuron) is Band else neuron
