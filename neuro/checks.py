"""What plug-ins return, checked where it enters: what all kinds of plug-ins share, and neurons.

Every caller in this package asks neurons, encoders and backends through the functions of three modules of this name
(here, in `coding` and in `backends`). Classes of this package are held to their contracts by tests and are not checked
again while they run, except inside `checking_plugins()`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ..errors import InputError, SpikebrainError
from .base import Neuron
from .once import Once
from .spike_count import SpikeCount

_COUNT_DTYPES = (torch.int32, torch.int64)
# One entry for each open `checking_plugins()` block. No context variable: a block also holds for threads it starts.
_open_blocks: list[None] = []
_counted = Once()


@contextmanager
def checking_plugins() -> Iterator[None]:
    """Check all that plug-ins return inside a `with` block, of this package too: slow, and for every call.

    Otherwise what a plug-in of yours returns is checked for types, shapes, dtypes, devices and thresholds, and its
    values at a few tokens. Here every train is decoded and compared with its counts, and every sum with that of
    `Reference`; layers run in separate steps, since fused kernels make no trains.

    >>> from spikebrain.coding import Ternary, pack_activations
    >>> from spikebrain.neuro import AdaptiveThreshold
    >>> with checking_plugins():
    ...     train, _ = pack_activations(torch.tensor([[1.0, -1.0, 4.0, 0.0]]), AdaptiveThreshold(k=2.0), Ternary())
    """
    _open_blocks.append(None)
    try:
        yield
    finally:
        _open_blocks.pop()


def checks_all() -> bool:
    """Return whether a `checking_plugins()` block is open."""
    return bool(_open_blocks)


@functools.lru_cache(maxsize=256)
def _is_foreign(cls: type) -> bool:
    return cls.__module__.split(".")[0] != __name__.split(".", 1)[0]


def needs_check(plugin: object) -> bool:
    """Return whether what a plug-in returns has to be checked: its class is not of this package, or all are checked."""
    return bool(_open_blocks) or _is_foreign(type(plugin))


def refuse(plugin: object, method: str, expected: str, got: str) -> InputError:
    """Return the error that says what a method of a plug-in should have returned."""
    cls = type(plugin)
    remedy = f"Correct the class {cls.__name__} of {cls.__module__}."
    return InputError(f"{cls.__name__}.{method}: expected {expected}, got {got}. {remedy}")


@contextmanager
def asking(plugin: object, method: str) -> Iterator[None]:
    """Name a plug-in in what it raises inside a `with` block, unless it is an error of this package or full memory."""
    try:
        yield
    except (SpikebrainError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise refuse(plugin, method, "a result", f"{type(error).__name__}: {error}".rstrip(".")) from error


def describe_tensor(value: object) -> str:
    """Return dtype and shape of a tensor, or the kind of another value."""
    if isinstance(value, Tensor):
        return f"{value.dtype} of shape {tuple(value.shape)} on {value.device}"
    return "None" if value is None else f"a {type(value).__name__}"


class Untouched:
    """Remembers a tensor that a plug-in is given, to find out whether it was changed in place.

    PyTorch counts the changes of a tensor, which costs nothing. Where it does not (in inference mode), or where all is
    checked, the values are compared.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor
        counted = not (checks_all() or tensor.is_inference())
        self._before = tensor._version if counted else tensor.detach().clone()

    def was_changed(self) -> bool:
        """Return whether the tensor has other values now; NaN may stay NaN."""
        if not isinstance(self._before, Tensor):
            return self._tensor._version != self._before
        now, before = self._tensor.detach(), self._before
        return not bool(((now == before) | torch.isnan(before)).all())


def promise_spikes(neuron: Neuron, x: Tensor, make: Callable[[], SpikeCount | None]) -> None:
    """Let `spikes_of` use counts that are known already, such as some rows of other counts; see `Once.promise`."""
    _counted.promise(x, neuron, make)


def spikes_of(neuron: Neuron, x: Tensor) -> SpikeCount:
    """Return `neuron(x)`, checked if the neuron is not of this package.

    Layers that get the same tensor, such as q, k and v, have their spikes counted once, unless gradients are recorded.

    Args:
        neuron: the neuron.
        x: activations, [*tokens, N].
    Returns:
        Counts int32 or int64 of the shape of x, with one finite threshold > 0 for each token, [*tokens, 1].
    Raises:
        InputError: the neuron returned something else, or changed x in place.
    """
    if not needs_check(neuron):
        if x.requires_grad and torch.is_grad_enabled():
            return neuron(x)
        return _counted.get(x, neuron, lambda: neuron(x))
    untouched = Untouched(x)
    with asking(neuron, "step"):
        spikes = neuron(x)
    if not isinstance(spikes, SpikeCount):
        raise refuse(neuron, "step", "a SpikeCount and the next state", describe_tensor(spikes))
    count, threshold, source = spikes.count, spikes.threshold, spikes.source
    fits = isinstance(count, Tensor) and count.dtype in _COUNT_DTYPES and count.shape == x.shape
    if not fits or count.device != x.device:
        expected = f"counts of int32 (or int64), of the shape {tuple(x.shape)} of x, on {x.device}"
        raise refuse(neuron, "step", expected, describe_tensor(count))
    one_each = (*x.shape[:-1], 1)
    fits = isinstance(threshold, Tensor) and threshold.is_floating_point() and threshold.shape == one_each
    if not fits or threshold.device != x.device:
        expected = f"one threshold a token, floats of shape {one_each} on {x.device}"
        raise refuse(neuron, "step", expected, describe_tensor(threshold))
    good = (threshold > 0) & (threshold < torch.inf)
    if not bool(good.all()):
        index = tuple((~good).nonzero()[0].tolist())
        raise refuse(neuron, "step", "finite thresholds > 0", f"{threshold[index].item()} at index {index}")
    if source is not None and not (isinstance(source, Tensor) and source.shape == x.shape):
        raise refuse(neuron, "step", "x itself or None as `source`", describe_tensor(source))
    if untouched.was_changed():
        raise refuse(neuron, "step", "x as it was given", "x changed in place")
    return spikes
