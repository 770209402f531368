"""Spike trains as address events (AER): one (timestep, address, value) per spike, without loss."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from ..errors import EncodingError
from ..lazy import optional
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
        position = self._checked_positions()
        num_timesteps, num_neurons = len(self.timestep_weight), torch.Size(self.shape).numel()
        spikes = torch.zeros(num_timesteps * num_neurons, dtype=torch.int8, device=self.value.device)
        spikes[position] = self.value.to(torch.int8)
        return SpikeTrain(spikes.reshape(num_timesteps, *self.shape), self.timestep_weight, self.zero_point)

    def to_numpy(self) -> np.ndarray:
        """Return the events as Tonic has them: a structured array of fields x, y, t and p, one element an event.

        x is the channel (the last axis of `shape`), y the index into the axes before it (tokens), t the timestep and p
        whether the spike is +1. As in Tonic, x and y are int16 and t is int64; where `shape` exceeds int16, x and y are
        int32 or int64. Tonic's `sensor_size` is (channels, tokens, 2). Weights, shape and zero point are no part of it:
        `from_numpy` asks for them.

        Raises:
            EncodingError: as for `to_train`.
        Source:
            Tonic 1.7.0, `tonic.io.events_struct`.

        >>> train = SpikeTrain(torch.tensor([[0, 1], [-1, 0]], dtype=torch.int8), torch.tensor([2, 1]))
        >>> AEREvents.from_train(train).to_numpy()["x"].tolist()
        [1, 0]
        """
        self._checked_positions()
        width, height = self._size()
        small = next(kind for kind in (np.int16, np.int32, np.int64) if max(width, height) - 1 <= np.iinfo(kind).max)
        found = np.empty(len(self), [("x", small), ("y", small), ("t", np.int64), ("p", np.bool_)])
        address = self.address.cpu().numpy()
        found["x"], found["y"] = address % max(width, 1), address // max(width, 1)
        found["t"], found["p"] = self.timestep.cpu().numpy(), self.value.cpu().numpy() > 0
        return found

    @classmethod
    def from_numpy(
        cls,
        events: np.ndarray,
        timestep_weight: Int[Tensor, " timesteps"],
        shape: tuple[int, ...],
        zero_point: int = 0,
    ) -> AEREvents:
        """Read events as Tonic has them; they are put in order.

        Args:
            events: structured array with the integer fields x, t and p (0 or False for a spike of -1), and y unless
                there is one row.
            timestep_weight: of the train, int64, [T].
            shape: of the train without its time axis, [..., channels].
            zero_point: of the train.
        Raises:
            EncodingError: a field is missing or not of integers, or a value is out of range.
        """
        fields = events.dtype.names or ()
        if events.ndim != 1 or not {"x", "t", "p"} <= set(fields):
            raise EncodingError(
                f"AEREvents.from_numpy: expected a structured array [E] with fields x, y, t and p, got {events.dtype} "
                f"of shape {events.shape}."
            )
        wrong = [name for name in fields if name in "xytp" and events.dtype[name].kind not in "iub"]
        if wrong:
            raise EncodingError(f"AEREvents.from_numpy: expected integers in {wrong[0]}, got {events.dtype[wrong[0]]}.")
        width = shape[-1] if shape else 1
        x, t, p = (torch.from_numpy(events[name].astype(np.int64)) for name in "xtp")
        y = torch.from_numpy(events["y"].astype(np.int64)) if "y" in fields else torch.zeros_like(x)
        _raise_at((x < 0) | (x >= width), f"0 <= x < {width}", x)
        _raise_at((p < 0) | (p > 1), "p 0 or 1", p)
        address = y * width + x
        order = np.lexsort((address.numpy(), t.numpy()))
        value = (2 * p - 1).to(torch.int8)
        found = cls(t[order], address[order], value[order], timestep_weight, tuple(shape), zero_point)
        found._checked_positions()
        return found

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Return what `to_numpy` gives, for `np.asarray(events)`."""
        if copy is False:
            raise ValueError("AEREvents: an array of its events is always a copy.")
        found = self.to_numpy()
        return found if dtype is None else found.astype(dtype)

    def to_pandas(self) -> Any:
        """Return the events as a pandas DataFrame with the columns timestep, token, channel and value (-1 or 1).

        The channel is an index into the last axis of `shape`, the token one into the axes before it.

        Raises:
            InputError: pandas is not installed.
            EncodingError: as for `to_train`.
        """
        events = self.to_numpy()
        value = np.where(events["p"], 1, -1).astype(np.int8)
        columns = {"timestep": events["t"], "token": events["y"], "channel": events["x"], "value": value}
        return optional("pandas", "exchange", "AEREvents.to_pandas").DataFrame(columns)

    def __repr__(self) -> str:
        size = " x ".join(map(str, self.shape))
        return f"AEREvents: {len(self):,} spikes in {len(self.timestep_weight):,} timesteps of {size or 1} neurons"

    def _size(self) -> tuple[int, int]:
        """Return width and height: channels, and places before the channel axis."""
        return (self.shape[-1], torch.Size(self.shape[:-1]).numel()) if self.shape else (1, 1)

    def _checked_positions(self) -> Int[Tensor, " events"]:
        """Return the index of each event into the flattened train; raise an EncodingError as `to_train` says."""
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
            _raise_at((column < 0) | (column >= end), f"0 <= {name} < {end}", column)
        _raise_at(self.value.abs() != 1, "value -1 or 1", self.value)
        position = self.timestep.to(torch.int64) * num_neurons + self.address
        order = position.sort(stable=True)
        repeated = torch.zeros_like(position, dtype=torch.bool)
        repeated[order.indices[1:]] = order.values[1:] == order.values[:-1]
        _raise_at(repeated, "at most one event per neuron and timestep", self.address)
        return position

    def __len__(self) -> int:
        return len(self.timestep)

    def __iter__(self) -> Iterator[AEREvent]:
        columns = (self.timestep.tolist(), self.address.tolist(), self.value.tolist())
        return (AEREvent(*row) for row in zip(*columns, strict=True))


def _raise_at(wrong: Tensor, expected: str, column: Tensor) -> None:
    if bool(wrong.any()):
        event = int(wrong.nonzero()[0])
        raise EncodingError(f"AEREvents: expected {expected}, got {int(column[event])} in event {event}.")
