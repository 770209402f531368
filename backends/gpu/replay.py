"""One token of one layer as a CUDA graph, for models that run layer by layer.

A small layer takes microseconds on the GPU, and Python took a third of a millisecond to prepare and launch its kernels.
So what a layer launches for one token is recorded at its second call, and replayed after that. A recording has memory
of its own for the input, the output and what is between them; it serves the thread and the stream that it was made for,
whose calls run one after the other.
"""

from __future__ import annotations

import threading
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from ...coding import Encoder
from ...neuro import CountBounds, KernelRule, Neuron
from .groups import tuned_groups
from .job import Matrix, Reads
from .one_pass import any_failed, current_pass
from .spike import plan_for, tuned
from .stage import Stage
from .weights import version_of


class _Key(NamedTuple):
    """What a recording depends on besides the weights' memory; compared at each call."""

    neuron: Neuron
    encoder: Encoder
    dtype: torch.dtype
    device: torch.device
    stream: int
    thread: int
    group_size: int | None
    upper: Reads
    tensors: tuple[tuple[int, int | None] | None, ...]


_TENSORS = ("weight", "scale", "bias", "minimum")
# By weight: the key of its last call, and the recording, if there is one.
_kept: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def replayed(x: Tensor, matrix: Matrix, neuron: Neuron, encoder: Encoder) -> tuple[bool, Tensor | None]:
    """Run a layer by its recording, if there is one.

    Args:
        x: activations of one token on a GPU, [..., inputs].
        matrix: weights of the layer.
        neuron: of the layer.
        encoder: of the layer.
    Returns:
        Whether it ran, and the outputs, [1, outputs]; None if the token's counts may not fit.
    """
    known = _kept.get(matrix.weight)
    if known is None or known[1] is None or torch.cuda.is_current_stream_capturing():
        return False, None
    if known[0] != _key_of(x, matrix, neuron, encoder):
        return False, None
    with torch.cuda.device_of(x):
        return True, known[1].run(x)


def keep(x: Tensor, matrix: Matrix, neuron: Neuron, encoder: Encoder, rule: KernelRule, bounds: CountBounds) -> None:
    """Note a call with one token that ran without a recording; record the layer at the second call alike."""
    if torch.cuda.is_current_stream_capturing():
        return
    key, known = _key_of(x, matrix, neuron, encoder), _kept.get(matrix.weight)
    if known is None or known[0] != key:
        _kept[matrix.weight] = key, None
    elif known[1] is None:
        with torch.cuda.device_of(x):
            _kept[matrix.weight] = key, _Recording(x, matrix, rule, bounds)


def _key_of(x: Tensor, matrix: Matrix, neuron: Neuron, encoder: Encoder) -> _Key:
    given = (getattr(matrix, name) for name in _TENSORS)
    tensors = tuple(None if tensor is None else (tensor.data_ptr(), version_of(tensor)) for tensor in given)
    stream = torch.cuda.current_stream(x.device).cuda_stream
    place = x.device, stream, threading.get_ident()
    return _Key(neuron, encoder, x.dtype, *place, matrix.group_size, matrix.upper, tensors)


def _same_memory(tensor: Tensor | None) -> Tensor | None:
    """Return a tensor of the same memory that keeps neither the given one alive nor what that is a view of."""
    if tensor is None:
        return None
    alias = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return alias.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride())


class _Recording:
    """What a layer launches for one token.

    It holds the memory of the weights and not their tensors, so it goes with the layer.

    Args:
        x: an input as those that will come.
        matrix: weights.
        rule: of the neuron.
        bounds: of its counts.
    """

    def __init__(self, x: Tensor, matrix: Matrix, rule: KernelRule, bounds: CountBounds) -> None:
        num_outputs, num_inputs = matrix.weight.shape
        self._x = x.detach().reshape(1, num_inputs).clone()
        self._y = torch.empty(1, num_outputs, dtype=x.dtype, device=x.device)
        self._failed = torch.empty(1, dtype=torch.int32, device=x.device)
        self._failed_on_host = torch.zeros(1, dtype=torch.int32, pin_memory=True)
        matrix = matrix._replace(**{name: _same_memory(getattr(matrix, name)) for name in _TENSORS})
        stage = Stage(self._x, (matrix,), self._y, rule, bounds, self._failed)
        self._plan: Any = tuned_groups(stage) if matrix.has_groups else plan_for(tuned(stage), stage)
        self._plan.run()  # compiles what was not compiled yet
        self._graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream(x.device)
        side.wait_stream(torch.cuda.current_stream(x.device))
        with torch.cuda.stream(side):
            self._graph.capture_begin(capture_error_mode="thread_local")
            self._plan.run()
            self._failed_on_host.copy_(self._failed, non_blocking=True)
            self._graph.capture_end()
        torch.cuda.current_stream(x.device).wait_stream(side)

    def run(self, x: Tensor) -> Tensor | None:
        """Return the outputs of a token, [1, outputs]; None if its counts may not fit."""
        self._x.copy_(x.detach().reshape(1, -1))
        self._graph.replay()
        y = self._y.clone()
        if current_pass() is not None:
            any_failed(self._failed.clone())  # noted
            return y
        torch.cuda.current_stream(x.device).synchronize()
        return None if int(self._failed_on_host[0]) else y
