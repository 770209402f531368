"""What a model carries from token to token: states of linear attention, keys and values of softmax attention."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ...errors import InputError
from .config import SpikingBrainConfig


class Columns:
    """Keys and values of one layer: tensors [B, Hk, N, .] that grow along N, to a limit if there is one.

    At the limit the oldest column makes room for the newest, in its place: then the columns are not in order.

    Args:
        limit: most columns kept, pinned ones not counted; None for all.
    """

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self.num_pinned = 0
        self.tensors: tuple[Tensor, ...] = ()
        self._oldest = 0

    def pin(self) -> None:
        """Keep the columns there are for good (sink tokens), before any others."""
        self.num_pinned = self.tensors[0].shape[2] if self.tensors else 0

    def append(self, new: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Add columns and return all that the new tokens may see.

        Args:
            new: tensors [B, Hk, L, .], one for each kept.
        Returns:
            Pinned columns, then the others: for L > 1 in order, with those that are dropped now; for L = 1 in any
            order. They are the cache's own: read only.
        """
        length = new[0].shape[2]
        if not self.tensors:
            self.tensors = tuple(x[:, :, :0] for x in new)
        num_kept = self.tensors[0].shape[2] - self.num_pinned
        if length == 1 and self.limit is not None and num_kept == self.limit and not torch.is_grad_enabled():
            for kept, one in zip(self.tensors, new, strict=True):
                kept[:, :, self.num_pinned + self._oldest] = one[:, :, 0]
            self._oldest = (self._oldest + 1) % self.limit
            return self.tensors
        batch = new[0].shape[0]
        if len(new) != len(self.tensors):
            raise InputError(
                "SpikingBrainCache: it was filled while gradients were recorded and goes on without, or the other way "
                "round, which in a spiking model are floats here and INT8 there. Use one cache under torch.no_grad()."
            )
        everything = tuple(
            torch.cat([old.expand(batch, -1, -1, -1), one], 2) for old, one in zip(self._in_order(), new, strict=True)
        )
        self._oldest = 0
        surplus = 0 if self.limit is None else max(num_kept + length - self.limit, 0)
        # Copies where something is dropped, so that its memory is given back.
        self.tensors = tuple(_without(x, self.num_pinned, surplus) for x in everything)
        return self.tensors if length == 1 else everything

    def select(self, index: Tensor) -> None:
        """Take rows of the batch by index."""
        self.tensors = tuple(x.index_select(0, index.to(x.device)) for x in self.tensors)

    def copy(self) -> Columns:
        """Return the same columns, for a caller that only ever appends with gradients recorded, which changes none."""
        other = Columns(self.limit)
        other.num_pinned, other.tensors, other._oldest = self.num_pinned, self.tensors, self._oldest
        return other

    def _in_order(self) -> tuple[Tensor, ...]:
        if self._oldest == 0:
            return self.tensors
        first, middle = self.num_pinned, self.num_pinned + self._oldest
        return tuple(torch.cat([x[:, :, :first], x[:, :, middle:], x[:, :, first:middle]], 2) for x in self.tensors)


class LayerState:
    """What one layer carries.

    Attributes:
        linear: state of linear attention, float32 [B, Hk, D, D]; None before the first token or without it.
        columns: keys and values of softmax attention; None without it.
    """

    def __init__(self, columns: Columns | None) -> None:
        self.linear: Tensor | None = None
        self.columns = columns

    def copy(self) -> LayerState:
        """Return a state that goes its own way from here; tensors are shared until then."""
        other = LayerState(None if self.columns is None else self.columns.copy())
        other.linear = self.linear
        return other

    def tensors(self) -> Iterator[Tensor]:
        """Yield all tensors."""
        if self.linear is not None:
            yield self.linear
        if self.columns is not None:
            yield from self.columns.tensors


class SpikingBrainCache:
    """The state of a model while it decodes: constant in size, but for layers of full attention.

    One object serves one batch of texts. The model changes it with every call that is given it.

    Args:
        config: of the model.
    Attributes:
        layers: a state for each layer.
        num_tokens: columns of text seen, padding included.
        num_valid: tokens seen in each row, padding not counted, [B]; None before the first call.
        is_padded: whether any column of any row was padding.
    """

    # What `generate` asks of a cache: its size may change, and it knows itself which tokens it has seen.
    is_compileable = False
    is_linear = (True,)

    def __init__(self, config: SpikingBrainConfig) -> None:
        limits = {"swa": config.max_window_keys, "full": None}
        self.layers = [LayerState(Columns(limits[p.softmax]) if p.softmax else None) for p in config.layers]
        self.num_tokens = 0
        self.num_valid: Tensor | None = None
        self.is_padded = False

    @property
    def num_bytes(self) -> int:
        """Memory of all states, in bytes."""
        return sum(x.numel() * x.element_size() for layer in self.layers for x in layer.tensors())

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return how many columns of text were seen, as transformers asks for it."""
        return self.num_tokens

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Take rows of the batch by index, as beam search of transformers asks for it."""
        for layer in self.layers:
            if layer.linear is not None:
                layer.linear = layer.linear.index_select(0, beam_idx.to(layer.linear.device))
            if layer.columns is not None:
                layer.columns.select(beam_idx)
        if self.num_valid is not None:
            self.num_valid = self.num_valid.index_select(0, beam_idx.to(self.num_valid.device))

    def crop(self, *args: object, **kwargs: object) -> None:
        """Raise: a state of linear attention can't forget tokens."""
        raise InputError("SpikingBrainCache.crop: linear attention can't take tokens back. Start with a new cache.")


def _without(x: Tensor, num_pinned: int, surplus: int) -> Tensor:
    if surplus == 0:
        return x
    return torch.cat([x[:, :, :num_pinned], x[:, :, num_pinned + surplus :]], 2)
