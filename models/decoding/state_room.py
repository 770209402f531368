"""Spare rows in a `SpikingBrainCache`, so that a token writes its own column and copies no others.

The tensors of layers with columns of one shape lie in one memory, one tensor for keys, one for values and so on. The
cache's tensors are views of its first rows, new ones after each token that adds a row; at the limit of a window the
newest column overwrites the oldest in place, as `Columns` does it anyway. States of linear attention are never written
in place: a token that cannot be finished leaves them as they were.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..spikingbrain.cache import Columns, SpikingBrainCache
from .kv_room import with_spare_rows


class Layout(NamedTuple):
    """What a decoder expects of the state of one text.

    Attributes:
        linear: layers of linear attention.
        columns: for each layer of softmax attention, shape (without rows) and dtype of each of its tensors.
        state: shape of a state of linear attention.
    """

    linear: list[int]
    columns: dict[int, list[tuple[int, int, torch.dtype]]]
    state: tuple[int, ...]


class Group:
    """Columns of layers that have as many, in tensors of the same shapes.

    Attributes:
        layers: their numbers.
        memory: for each tensor of the columns, [layers, 1, heads, rows, .].
    """

    def __init__(self, layers: list[int], columns: list[Columns]) -> None:
        self.layers, self._columns = np.array(layers), columns
        length = self.length
        self.memory = [
            with_spare_rows([one.tensors[part] for one in columns], length, self._most_rows())
            for part in range(len(columns[0].tensors))
        ]
        self._show(length)

    @property
    def length(self) -> int:
        """Columns of each layer."""
        return self._columns[0].tensors[0].shape[2]

    def holds(self) -> bool:
        """Return whether the layers still have the tensors that they were given last."""
        return all(one.tensors is shown for one, shown in zip(self._columns, self._shown, strict=True))

    def rows(self) -> list[int]:
        """Return for each layer the row of the next column; the memory has it."""
        length = self.length
        rows = [one.next_row() for one in self._columns]
        if max(rows) == self.memory[0].shape[3]:
            self.memory = [with_spare_rows(list(part.unbind(0)), length, self._most_rows()) for part in self.memory]
        return rows

    def addresses(self, part: int) -> np.ndarray:
        """Return the address of a tensor of each layer."""
        memory = self.memory[part]
        return memory.data_ptr() + memory.stride(0) * memory.element_size() * np.arange(len(self.layers))

    def advance(self) -> None:
        """Let the layers have the column that was written to the next row."""
        if all(one.is_full() for one in self._columns):
            for one in self._columns:
                one.turn()
        else:
            self._show(self.length + 1)

    def _show(self, length: int) -> None:
        views = [part.narrow(3, 0, length).unbind(0) for part in self.memory]
        self._shown = list(zip(*views, strict=True))
        for one, tensors in zip(self._columns, self._shown, strict=True):
            one.tensors = tensors

    def _most_rows(self) -> int | None:
        columns = self._columns[0]
        return None if columns.limit is None else columns.num_pinned + columns.limit


class StateRoom:
    """The groups of a cache's layers, and its states of linear attention.

    Attributes:
        layout: what it was made for.
        groups: columns by shape.
    """

    def __init__(self, cache: SpikingBrainCache, layout: Layout) -> None:
        self.layout, self._linear = layout, layout.linear
        self._states: list[Tensor] = []
        for number in layout.linear:
            state = cache.layers[number]
            assert state.linear is not None
            state.linear = state.linear.contiguous()
            self._states.append(state.linear)
        found: dict[tuple, list[int]] = {}
        for number in layout.columns:
            columns = cache.layers[number].columns
            assert columns is not None
            shapes = tuple((part.shape, part.dtype) for part in columns.tensors)
            found.setdefault((columns.limit, columns.num_pinned, columns.next_row(), shapes), []).append(number)
        self.groups = [
            Group(numbers, [columns for n in numbers if (columns := cache.layers[n].columns) is not None])
            for numbers in found.values()
        ]

    def holds(self, cache: SpikingBrainCache) -> bool:
        """Return whether the cache still has the tensors that it was given last."""
        states = (cache.layers[number].linear for number in self._linear)
        return all(one is shown for one, shown in zip(states, self._states, strict=True)) and all(
            group.holds() for group in self.groups
        )

    def states(self) -> list[int]:
        """Return the addresses of the states of linear attention."""
        return [state.data_ptr() for state in self._states]

    def advance(self, cache: SpikingBrainCache, states: Tensor) -> None:
        """Let the cache have what a token wrote: the columns, and states of linear attention, [layers, ...]."""
        self._states = list(states.unbind(0))
        for number, state in zip(self._linear, self._states, strict=True):
            cache.layers[number].linear = state
        for group in self.groups:
            group.advance()
        assert cache.num_valid is not None
        cache.num_tokens += 1
        cache.num_valid = cache.num_valid + 1


def state_room_of(cache: object, layout: Layout) -> StateRoom | None:
    """Return the room of a cache, made if need be; None if it is of another kind, padded or does not fit the layout."""
    if not isinstance(cache, SpikingBrainCache) or cache.num_valid is None or cache.is_padded:
        return None
    room = getattr(cache, "_room", None)
    if isinstance(room, StateRoom) and room.layout == layout and room.holds(cache):
        return room
    if len(cache.num_valid) != 1 or not _fits(cache, layout):
        return None
    room = StateRoom(cache, layout)
    setattr(cache, "_room", room)  # noqa: B010
    return room


def _fits(cache: SpikingBrainCache, layout: Layout) -> bool:
    for number, state in enumerate(cache.layers):
        linear, columns = state.linear, state.columns
        if (linear is not None) != (number in layout.linear) or (columns is not None) != (number in layout.columns):
            return False
        if linear is not None and not _is(linear, layout.state, torch.float32):
            return False
        if columns is not None:
            expected = layout.columns[number]
            if len(columns.tensors) != len(expected):
                return False
            length = columns.tensors[0].shape[2]
            for part, (heads, dim, dtype) in zip(columns.tensors, expected, strict=True):
                if not _is(part, (1, heads, length, dim), dtype):
                    return False
    return True


def _is(tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> bool:
    return tensor.shape == shape and tensor.dtype == dtype and tensor.device.type == "cpu"
