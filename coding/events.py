"""Spike trains as address events (AER): one (timestep, address, value) per spike, without loss."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from ..errors import EncodingError
from .train import SpikeTrain


class AEREvent(NamedTuple):
    """One spike, three integers."""

    timestep: int
    address: int
    value: int


@dataclass(frozen=True)
class AEREvents:
    """The spikes of a train as three columns, ordered by timestep, then address.

    Attributes:
        timestep: int64, [E], 0 <= timestep < T.
        address: neuron, as the index into the flattened shape; int64, [E].
        value: -1 or 1; int8, [E].
        timestep_weight: weights of the train, int64, [T]: they also say how long it is.
        shape: shape of the train without its time axis.
        zero_point: zero point of the train.

    >>> train = SpikeTrain(torch.tensor([[0, 1], [-1, 0]], dtype=torch.int8), torch.tensor([2, 1]))
    >>> list(AEREvents.from_train(train))
    [AEREvent(timestep=0, address=1, value=1), AEREvent(timestep=1, address=0, value=-1)]
    """

    timestep: Int[Tensor, " events"]
    address: Int[Tensor, " events"]
    value: Int[Tensor, " events"]
    timestep_weight: Int[Tensor, " timesteps"]
    shape: tuple[int, ...]
    zero_point: int = 0

    @classmethod
    def from_train(cls, train: SpikeTrain) -> AEREvents:
        """List the spikes of a train."""
        flat = train.spikes.reshape(train.num_timesteps, -1)
        timestep, address = flat.nonzero(as_tuple=True)
        value = flat[timestep, address]
        return cls(timestep, address, value, train.timestep_weight, tuple(train.spikes.shape[1:]), train.zero_point)

    def to_train(self) -> SpikeTrain:
        """Rebuild the train.

        Raises:
            EncodingError: columns of different length, a timestep or address out of range, a value that is not -1
                or 1, or two events of one neuron in one timestep.
        """
        num_timesteps, num_neurons = len(self.timestep_weight), torch.Size(self.shape).numel()
        if not len(self.timestep) == len(self.address) == len(self.value):
            raise EncodingError(
                f"AEREvents: expected columns of one length, got {len(self.timestep)} timesteps, {len(self.address)} "
                f"addresses and {len(self.value)} values."
            )
        for name in ("timestep", "address", "value"):
            dtype = getattr(self, name).dtype
            if dtype.is_floating_point or dtype.is_complex or dtype == torch.bool:
                raise EncodingError(f"AEREvents.{name}: expected integers, got {dtype}.")
        for name, column, end in (("timestep", self.timestep, num_timesteps), ("address", self.address, num_neurons)):
            self._raise_at((column < 0) | (column >= end), f"0 <= {name} < {end}", column)
        self._raise_at(self.value.abs() != 1, "value -1 or 1", self.value)
        position = self.timestep.to(torch.int64) * num_neurons + self.address
        order = position.sort(stable=True)
        repeated = torch.zeros_like(position, dtype=torch.bool)
        repeated[order.indices[1:]] = order.values[1:] == order.values[:-1]
        self._raise_at(repeated, "at most one event per neuron and timestep", self.address)
        spikes = torch.zeros(num_timesteps * num_neurons, dtype=torch.int8, device=self.value.device)
        spikes[position] = self.value.to(torch.int8)
        return SpikeTrain(spikes.reshape(num_timesteps, *self.shape), self.timestep_weight, self.zero_point)

    def _raise_at(self, wrong: Tensor, expected: str, column: Tensor) -> None:
        if bool(wrong.any()):
            event = int(wrong.nonzero()[0])
            raise EncodingError(f"AEREvents: expected {expected}, got {int(column[event])} in event {event}.")

    def __len__(self) -> int:
        return len(self.timestep)

    def __iter__(self) -> Iterator[AEREvent]:
        columns = (self.timestep.tolist(), self.address.tolist(), self.value.tolist())
        return (AEREvent(*row) for row in zip(*columns, strict=True))
