"""What a spiking layer computes step by step, and how to watch it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

from torch import Tensor, nn

from ...coding import SpikeTrain
from .graphs import uncompiled


@dataclass(frozen=True)
class Step:
    """Intermediate results of a `SpikeLinear` for some tokens of one call, flattened to [tokens, ...].

    Attributes:
        count: spike counts, int32, [tokens, in_features].
        train: the counts unrolled, [T, tokens, in_features]; T is the same for all steps of one call.
        accumulation: exact sums, int32, [tokens, groups, out_features].
        first_token: position of the first of these tokens within the call.
        num_tokens: tokens in the whole call, which may take several steps.
        x: activations of the whole call, as passed to the layer, [*tokens, in_features].
        threshold: with which the sums are rescaled, float32 or float64, [tokens, 1].
    """

    count: Tensor
    train: SpikeTrain
    accumulation: Tensor
    first_token: int
    num_tokens: int
    x: Tensor
    threshold: Tensor


# Called with the layer, a `SpikeLinear`, and each of its steps.
Observer: TypeAlias = Callable[[Any, Step], None]


@runtime_checkable
class Observed(Protocol):
    """What can be watched: a `SpikeLinear`."""

    observers: list[Observer]


@contextmanager
def observing(layers: Iterable[Observed], observer: Observer) -> Iterator[None]:
    """Call a function with every step of some layers inside a `with` block, in which nothing runs compiled."""
    watched = list(layers)
    for layer in watched:
        layer.observers.append(observer)
    try:
        with uncompiled():
            yield
    finally:
        for layer in watched:
            layer.observers.remove(observer)


# Called with the spike counts of the queries of a call of attention, integers [B, H, L, D], and how many columns each
# query sees, int64 [B or 1, L].
QueryObserver: TypeAlias = Callable[[Tensor, Tensor], None]
_QUERIES = "query_observers"


def query_observers(module: nn.Module) -> list[QueryObserver]:
    """Return those who watch the queries of a module of attention."""
    return vars(module).get(_QUERIES, [])


@contextmanager
def observing_queries(observers: Iterable[tuple[nn.Module, QueryObserver]]) -> Iterator[None]:
    """Call functions with the queries of modules of attention that run on counts, inside a `with` block."""
    watched = list(observers)
    for module, observer in watched:
        vars(module).setdefault(_QUERIES, []).append(observer)
    try:
        yield
    finally:
        for module, observer in watched:
            query_observers(module).remove(observer)
            if not query_observers(module):
                del vars(module)[_QUERIES]
