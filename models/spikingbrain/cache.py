"""A model's state from token to token: states of linear attention, keys and values of softmax attention."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...errors import InputError
from .config import SpikingBrainConfig

if TYPE_CHECKING:
    from .sequence import SequencePart


class Columns:
    """Keys and values of one layer: tensors [B, Hk, N, .] that grow along N, up to a limit if there is one.

    At the limit, the newest column overwrites the oldest in place, so the columns are then out of order.

    Args:
        limit: maximum number of columns kept, not counting pinned ones; None to keep all.
    """

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self.num_pinned = 0
        self.tensors: tuple[Tensor, ...] = ()
        self._oldest = 0

    def pin(self) -> None:
        """Keep the current columns (sink tokens) permanently, in front of all others."""
        self.num_pinned = self.tensors[0].shape[2] if self.tensors else 0

    def is_full(self) -> bool:
        """Return whether the limit is reached."""
        return self.limit is not None and self.tensors[0].shape[2] - self.num_pinned == self.limit

    def next_row(self) -> int:
        """Return where the next column goes: to the row after the last, or to that of the oldest one at the limit."""
        return self.num_pinned + self._oldest if self.is_full() else self.tensors[0].shape[2]

    def turn(self) -> None:
        """Take note that the next column overwrote the oldest one."""
        assert self.limit is not None
        self._oldest = (self._oldest + 1) % self.limit

    def append(self, new: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Add columns and return all columns that the new tokens may see.

        Args:
            new: tensors [B, Hk, L, .], one for each cached tensor.
        Returns:
            Pinned columns, then the others: for L > 1 in order, including those that this call drops; for L = 1 in
            any order. They are the cache's own tensors: do not modify them.
        """
        length = new[0].shape[2]
        if not self.tensors:
            self.tensors = tuple(x[:, :, :0] for x in new)
        if length == 1 and self.is_full() and not torch.is_grad_enabled():
            row = self.next_row()
            for kept, one in zip(self.tensors, new, strict=True):
                kept[:, :, row] = one[:, :, 0]
            self.turn()
            return self.tensors
        batch = new[0].shape[0]
        if len(new) != len(self.tensors):
            raise InputError(
                "SpikingBrainCache: expected the same gradient mode as in earlier calls: a spiking model caches floats "
                "while gradients are recorded and INT8 otherwise. Use one cache under torch.no_grad()."
            )
        is_first = self.tensors[0].shape[2] == 0
        everything = new
        if not is_first:
            pairs = zip(self._in_order(), new, strict=True)
            everything = tuple(torch.cat([old.expand(batch, -1, -1, -1), one], 2) for old, one in pairs)
        self._oldest = 0
        num_kept = self.tensors[0].shape[2] - self.num_pinned
        surplus = 0 if self.limit is None else max(num_kept + length - self.limit, 0)
        # Copied when columns are dropped, so that their memory is freed.
        self.tensors = tuple(_without(x, self.num_pinned, surplus) for x in everything)
        if is_first and surplus == 0 and self.limit is not None:
            self.tensors = tuple(x.clone() for x in new)  # overwritten later, and the caller's as they are
        return self.tensors if length == 1 else everything

    def select(self, index: Tensor) -> None:
        """Select rows of the batch by index."""
        self.tensors = tuple(x.index_select(0, index.to(x.device)) for x in self.tensors)

    def copy(self) -> Columns:
        """Return a copy that shares the tensors; appending to it while gradients are recorded does not change them."""
        other = Columns(self.limit)
        other.num_pinned, other.tensors, other._oldest = self.num_pinned, self.tensors, self._oldest
        return other

    def _in_order(self) -> tuple[Tensor, ...]:
        if self._oldest == 0:
            return self.tensors
        first, middle = self.num_pinned, self.num_pinned + self._oldest
        return tuple(torch.cat([x[:, :, :first], x[:, :, middle:], x[:, :, first:middle]], 2) for x in self.tensors)


class LayerState:
    """The state of one layer.

    Attributes:
        linear: state of linear attention, float32 [B, Hk, D, D]; None before the first token or if there is none.
        columns: keys and values of softmax attention; None if there is none.
    """

    def __init__(self, columns: Columns | None) -> None:
        self.linear: Tensor | None = None
        self.columns = columns

    def copy(self) -> LayerState:
        """Return a copy that changes independently from now on; the tensors are shared until then."""
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
    """The state of a model during decoding: constant in size, except for layers of full attention.

    One cache belongs to one batch of texts. Every model call that gets it updates it in place.

    Args:
        config: the model's configuration.
    Attributes:
        layers: one state per layer.
        num_tokens: text positions seen so far, including padding.
        num_valid: tokens seen in each row, without padding, [B]; None before the first call.
        is_padded: whether any position in any row was padding.
        sequence: while several processes read a text, the part of this one; else None. See `sequence_prefill`.
    """

    # Read by `generate`: the cache may change size, and it keeps track of the tokens it has seen.
    is_compileable = False
    is_linear = (True,)

    def __init__(self, config: SpikingBrainConfig) -> None:
        limits = {"swa": config.max_window_keys, "full": None}
        self.layers = [LayerState(Columns(limits[p.softmax]) if p.softmax else None) for p in config.layers]
        self.num_tokens = 0
        self.num_valid: Tensor | None = None
        self.is_padded = False
        self.sequence: SequencePart | None = None

    @property
    def num_bytes(self) -> int:
        """Memory of all states, in bytes."""
        return sum(x.numel() * x.element_size() for layer in self.layers for x in layer.tensors())

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return how many text positions were seen; transformers calls this."""
        return self.num_tokens

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Select rows of the batch by index; transformers' beam search calls this."""
        for layer in self.layers:
            if layer.linear is not None:
                layer.linear = layer.linear.index_select(0, beam_idx.to(layer.linear.device))
            if layer.columns is not None:
                layer.columns.select(beam_idx)
        if self.num_valid is not None:
            self.num_valid = self.num_valid.index_select(0, beam_idx.to(self.num_valid.device))

    def crop(self, *args: object, **kwargs: object) -> None:
        """Raise an InputError: linear attention can't forget tokens."""
        raise InputError("SpikingBrainCache.crop: linear attention can't take tokens back. Start with a new cache.")


def check_cache(cache: object) -> None:
    """Raise an InputError if a cache is none of ours, such as a DynamicCache of transformers."""
    if cache is not None and not isinstance(cache, SpikingBrainCache):
        raise InputError(
            f"cache (past_key_values): expected a SpikingBrainCache, got {type(cache).__name__}, which cannot hold the "
            "state of linear attention. Leave it out: the model makes its own."
        )


def _without(x: Tensor, num_pinned: int, surplus: int) -> Tensor:
    if surplus == 0:
        return x
    return torch.cat([x[:, :, :num_pinned], x[:, :, num_pinned + surplus :]], 2)
