"""One input that goes to several experts, some tokens to each: it is counted and encoded once."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ...coding import Encoder, SpikeTrain
from ...coding.checks import fitted_to, promise_train
from ...neuro import SpikeCount
from ...neuro.checks import needs_check, promise_spikes
from .transforms import is_compiling, records_operators

# Bytes of a train that is kept for all experts.
_MOST_BYTES = 64 * 2**20
# Attribute of a tensor that holds some tokens of another: their numbers there.
_ROWS = "rows_of_shared_input"


class SharedInput:
    """The input of the experts of a layer.

    Every expert gets its own tokens of it, as a tensor. When the first layer asks for its counts, all tokens are
    counted, and encoded in a train that is long enough for all; the experts get their tokens of both. The results are
    those of experts that count for themselves, but for the length of the trains.

    Args:
        x: activations, [tokens, channels], which nobody changes while the experts run.
        layers: the layers of the experts that read it. Nothing is shared unless they have one neuron and one encoder.
    """

    def __init__(self, x: Tensor, layers: Iterable[nn.Module]) -> None:
        self._x = x
        plug_ins: list[Any] = [(layer.neuron, layer.encoder) for layer in layers if hasattr(layer, "encoder")]
        fits = x.numel() > 0 and len(plug_ins) > 0 and not (x.requires_grad and torch.is_grad_enabled())
        fits = fits and not (is_compiling() or records_operators(x))
        fits = fits and all(pair == plug_ins[0] for pair in plug_ins) and not any(map(needs_check, plug_ins[0]))
        self._neuron, self._encoder = plug_ins[0] if fits else (None, None)

    def tokens(self, rows: Tensor | None = None) -> Tensor:
        """Return some tokens, by number, or all of them: the input itself."""
        part = self._x if rows is None else self._x[rows]
        if rows is not None and not is_compiling():
            vars(part)[_ROWS] = rows
        if self._neuron is not None:
            promise_spikes(self._neuron, part, functools.partial(_if_alive, weakref.WeakMethod(self._some), rows))
        return part

    def _some(self, rows: Tensor | None) -> SpikeCount:
        whole = found = self._counted
        if rows is not None:
            found = SpikeCount(whole.count[rows], whole.threshold[rows], extent=self._extent)
        encoder, num_timesteps = self._fitted
        if num_timesteps * whole.count.numel() <= _MOST_BYTES:
            make = functools.partial(_if_alive, weakref.WeakMethod(self._some_of_train), rows)
            promise_train(encoder, found.by_token, num_timesteps, make)
        return found

    def _some_of_train(self, rows: Tensor | None) -> SpikeTrain:
        whole = self._train
        return whole if rows is None else SpikeTrain(whole.spikes[:, rows], whole.timestep_weight, whole.zero_point)

    @functools.cached_property
    def _counted(self) -> SpikeCount:
        assert self._neuron is not None
        return self._neuron(self._x)

    @functools.cached_property
    def _extent(self) -> tuple[int, int]:
        return extent_of(self._counted.count)

    @functools.cached_property
    def _fitted(self) -> tuple[Encoder, int]:
        assert self._encoder is not None
        return fitted_to(self._encoder, *self._extent)

    @functools.cached_property
    def _train(self) -> SpikeTrain:
        encoder, num_timesteps = self._fitted
        return encoder.encode(self._counted.by_token, num_timesteps)


def rows_of(x: Tensor) -> Tensor | None:
    """Return which tokens of the input of experts `SharedInput.tokens` gave as this tensor; None if it gave it not."""
    return vars(x).get(_ROWS)


def _if_alive(method: weakref.WeakMethod[Any], rows: Tensor | None) -> Any:
    """Call a method if its object still lives: a promise must not keep the tokens of a call in memory."""
    alive = method()
    return None if alive is None else alive(rows)


def extent_of(count: Tensor) -> tuple[int, int]:
    """Return the least and the largest of some counts."""
    low, high = count.aminmax()
    return int(low), int(high)
