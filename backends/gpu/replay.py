"""Few tokens of a layer as a CUDA graph, for models that run layer by layer.

A small layer takes microseconds on the GPU, and Python took a third of a millisecond to prepare and launch its kernels.
So what a layer launches is recorded at its second call with as many tokens, and replayed after that. Layers that got
the same input one after the other, such as the projections of queries, keys and values, are recorded together, and the
first of them runs all; see `one_pass` for where that may be.

A recording has memory of its own for the input, the outputs and what is between them; it serves the thread and the
stream that it was made for, whose calls run one after the other. It lends its outputs: a model that has used them when
the next token comes needs no copy. Where somebody still holds them then, copies are given from then on.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import TensorWeakRef

from ...coding import Encoder
from ...neuro import CountBounds, KernelRule, Neuron
from ..base import Memo, version_of
from . import count
from .groups import tuned_groups
from .job import Matrix, Reads, layer_job
from .one_pass import Pass, current_pass, one_pass
from .spike import plan_for, tuned
from .stage import Stage
from .tuning import fastest_of

# Numbers of tokens for which a layer keeps recordings, and most matrices of a stage.
_MOST_KINDS, _MOST_MATRICES = 4, 3
# Flags that recordings share.
_FLAGS = 4096
# Of `Pass.keep`: the layers that got an input.
_TOGETHER = "layers"

_keeping = threading.Lock()
_of_thread = threading.local()


@dataclass(eq=False)
class _Layer:
    """A layer that was called with some number of tokens.

    Attributes:
        key: of its last call.
        tensors: weight, scale, bias and minimum, which it does not keep alive.
        group_size: as of `Matrix`.
        upper: as of `Matrix`.
        mode: of the backend.
        rule: of its neuron.
        bounds: of its counts.
        together: itself and the layers that got the same input after one another, in order; each belongs to its memo.
        lends: whether outputs may be the recording's own memory.
        recording: of all of these; None before the second call.
        place: of its outputs in the recording.
    """

    key: tuple[Any, ...]
    tensors: tuple[TensorWeakRef | None, ...]
    group_size: int | None
    upper: Reads
    mode: str
    rule: KernelRule
    bounds: CountBounds
    together: list[weakref.ref[_Layer]] = field(default_factory=list)
    lends: bool = True
    recording: _Recording | None = None
    place: int = 0

    def group(self) -> list[_Layer]:
        """Return itself and the others that are still there, in order."""
        return [layer for ref in self.together if (layer := ref()) is not None]

    def leave(self) -> None:
        """Drop the recording, so that the others are recorded without this layer."""
        for layer in self.group():
            layer.recording = None
        self.together.remove(weakref.ref(self))

    def stop_lending(self) -> None:
        """Drop the recording, whose outputs somebody holds, so that one is made that gives copies."""
        for layer in self.group():
            layer.recording, layer.lends = None, False

    def matrix(self) -> Matrix | None:
        """Return the layer's weights, or None if they are gone."""
        tensors = [None if ref is None else ref() for ref in self.tensors]
        if [tensor is None for tensor in tensors] != [ref is None for ref in self.tensors]:
            return None
        weight, scale, bias, minimum = tensors
        assert weight is not None
        return Matrix(weight, scale, bias, minimum, self.group_size, self.upper)


class _Calls:
    """The calls of a layer, by their number of tokens."""

    def __init__(self) -> None:
        self.layers: dict[int, _Layer] = {}

    def __call__(self, *call: Any) -> Tensor | None:
        """Return the outputs of a layer by its recording; None if there is none, or counts may not fit; see `Memo`."""
        x = call[0]
        known = self.layers.get(x.numel() // x.shape[-1])
        if known is None or known.recording is None or torch.cuda.is_current_stream_capturing():
            return None
        if known.key != _key_of(*call):
            return None
        shared = current_pass()
        outputs = None if shared is None else shared.found_of(x, known.recording)
        if outputs is None or outputs[known.place] is None:
            if known.recording.is_held():
                known.stop_lending()
                return None
            if x.get_device() == torch.cuda.current_device():
                outputs = known.recording.run(x, shared)
            else:
                with torch.cuda.device_of(x):
                    outputs = known.recording.run(x, shared)
        if outputs is None:
            return None
        y, outputs[known.place] = outputs[known.place], None  # nobody else gets this memory
        return y if y.shape[:-1] == x.shape[:-1] else y.reshape(*x.shape[:-1], -1)


def keep(memo: Memo, call: tuple[Any, ...], mode: str, rule: KernelRule, bounds: CountBounds) -> None:
    """Note a call that ran without a recording; record the layer at the second call alike.

    Args:
        memo: of the layer.
        call: what `Memo.again` takes; x is on a GPU, has at most MOST_RECORDED tokens, and no graph is being captured.
        mode: of the backend.
        rule: of the layer's neuron.
        bounds: of its counts.
    """
    x, *tensors, _, _, group_size, upper = call
    num_tokens, key = x.numel() // x.shape[-1], _key_of(*call)
    with _keeping, torch.cuda.device_of(x):
        calls = memo.again if isinstance(memo.again, _Calls) else _Calls()
        memo.again = calls
        known = calls.layers.get(num_tokens)
        if known is not None and known.key == key and known.matrix() is not None:
            _record(x, known.group())
            return
        if known is None and len(calls.layers) == _MOST_KINDS:
            known = calls.layers.pop(next(iter(calls.layers)))
        if known is not None:
            known.leave()
        kept = tuple(None if tensor is None else TensorWeakRef(tensor) for tensor in tensors)
        made = _Layer(key, kept, group_size, upper, mode, rule, bounds)
        made.together = _together(x)
        made.together.append(weakref.ref(made))
        calls.layers[num_tokens] = made


def _together(x: Tensor) -> list[weakref.ref[_Layer]]:
    """Return the layers that got an input before in this pass."""
    shared = current_pass()
    if shared is None:
        return []
    found = shared.found_of(x, _TOGETHER)
    if found is None:
        shared.keep(x, _TOGETHER, found := [])
    return found


def _key_of(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    minimum: Tensor | None,
    neuron: Neuron,
    encoder: Encoder,
    group_size: int | None,
    upper: Reads,
) -> tuple[Any, ...]:
    """Return what a recording depends on besides what is in the weights' memory."""
    # As few calls as may be: a token of a small model comes here some hundred times.
    device = x.get_device()
    return (
        neuron,
        encoder,
        group_size,
        upper,
        x.dtype,
        device,
        _stream_on(device),
        threading.get_ident(),
        weight.data_ptr(),
        version_of(weight),
        scale.data_ptr(),
        version_of(scale),
        None if bias is None else (bias.data_ptr(), version_of(bias)),
        None if minimum is None else (minimum.data_ptr(), version_of(minimum)),
    )


def _stream_on(device: int) -> int:
    return torch._C._cuda_getCurrentRawStream(device)


def _record(x: Tensor, layers: list[_Layer]) -> None:
    """Record layers, those whose weights are still there."""
    found = [(layer, matrix) for layer in layers if (matrix := layer.matrix()) is not None]
    recording = _Recording(x, found)
    for place, (layer, _) in enumerate(found):
        layer.recording, layer.place = recording, place


class _Common:
    """What the recordings of a thread on one stream have in common; they run one after the other.

    Attributes:
        flags: of failed tokens, int32, one after the other in memory, so that one look shows all. They are 0 outside of
            passes, but where one ended early.
        taken: how many belong to recordings.
        pool: of the memory between the kernels of a recording.
    """

    def __init__(self, device: torch.device) -> None:
        self.flags = torch.zeros(_FLAGS, dtype=torch.int32, device=device)
        self.taken, self.pool, self._side = 0, torch.cuda.graph_pool_handle(), torch.cuda.Stream(device)
        # PyTorch takes no graph into a pool whose graphs are all gone, so one stays.
        self._first = self.recorded(self.flags.zero_)

    def recorded(self, launch: Callable[[], object]) -> Any:
        """Return what a function launches, as a CUDA graph."""
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self.flags.device)
        self._side.wait_stream(current)
        with torch.cuda.stream(self._side):
            graph.capture_begin(self.pool, capture_error_mode="thread_local")
            launch()
            graph.capture_end()
        current.wait_stream(self._side)
        return graph

    @classmethod
    def of_thread(cls, device: torch.device, number: int) -> _Common:
        """Return what this thread has for the current stream, where that many flags are not taken."""
        kept: dict[Any, _Common] = vars(_of_thread).setdefault("common", {})
        key = device, _stream_on(device.index)
        if key not in kept or kept[key].taken + number > _FLAGS:
            kept[key] = cls(device)
        return kept[key]

    def take(self, number: int) -> Tensor:
        """Return flags that nobody else has."""
        self.taken += number
        return self.flags[self.taken - number : self.taken]


class _Recording:
    """What layers that get the same input launch.

    It holds the memory of the weights and not their tensors, so it goes with the layers.

    Args:
        x: an input as those that will come.
        layers: with their weights; all lend or none does.
    """

    @torch.inference_mode(False)
    @torch.no_grad()
    def __init__(self, x: Tensor, layers: Sequence[tuple[_Layer, Matrix]]) -> None:
        widths = [len(matrix.weight) for _, matrix in layers]
        *lead, num_inputs = x.shape
        num_tokens = x.numel() // num_inputs
        self._x = torch.empty(x.shape, dtype=x.dtype, device=x.device).copy_(x)
        # Outputs of a layer lie together.
        shape = [*lead, sum(widths)] if num_tokens == 1 or len(layers) == 1 else [num_tokens * sum(widths)]
        self._y = torch.empty(shape, dtype=x.dtype, device=x.device)
        self._sizes = widths if num_tokens == 1 else [num_tokens * width for width in widths]
        self._shapes = [(*lead, width) for width in widths]
        rules = list(dict.fromkeys(layer.rule for layer, _ in layers))
        common = _Common.of_thread(x.device, len(rules) * num_tokens)
        self._flags, self._failed = common.flags, common.take(len(rules) * num_tokens)
        failed = dict(zip(rules, self._failed.view(len(rules), -1), strict=True))
        plans = list(self._plans(layers, failed, num_tokens))
        self._launch(plans)  # compiles what was not compiled yet
        self._graph = common.recorded(partial(self._launch, plans))
        self._memory = [_same_memory(tensor) for tensor in _tensors_in(plans)]
        self._lends, self._num_owners = all(layer.lends for layer, _ in layers), 0
        self._storage = self._y.untyped_storage()

    def _plans(
        self, layers: Sequence[tuple[_Layer, Matrix]], failed: dict[KernelRule, Tensor], num_tokens: int
    ) -> Iterator[Any]:
        first, x = 0, self._x.view(num_tokens, -1)
        outputs = self._y.view(-1).split([num_tokens * len(matrix.weight) for _, matrix in layers])
        while first < len(layers):
            last, (layer, _) = first + 1, layers[first]
            while last < len(layers) and num_tokens == 1 and _are_one_stage(layers[first : last + 1]):
                last += 1
            width = sum(len(matrix.weight) for _, matrix in layers[first:last])
            y = torch.as_strided(outputs[first], (num_tokens, width), (width, 1))
            matrices = tuple(matrix for _, matrix in layers[first:last])
            yield _plan(layer.mode, Stage(x, matrices, y, layer.rule, layer.bounds, failed[layer.rule]))
            first = last

    @staticmethod
    def _launch(plans: list[Any]) -> None:
        with one_pass():  # counts are shared
            for plan in plans:
                plan.run()

    def is_held(self) -> bool:
        """Return whether the outputs of the last run were lent and somebody still has them or a view of them."""
        if not self._lends:
            return False
        num_owners = torch._C._storage_Use_Count(self._storage._cdata)
        if not self._num_owners:  # nothing was lent yet
            self._num_owners = num_owners
        return num_owners > self._num_owners

    def run(self, x: Tensor, shared: Pass | None) -> list[Any] | None:
        """Return the outputs of all layers, [*tokens, outputs]; None if a token's counts may not fit.

        Args:
            x: input, [*tokens, inputs].
            shared: the pass that it runs in, or None.
        """
        if shared is not None:
            shared.before(self, self._failed, self._flags)
        self._x.copy_(x if x.shape == self._x.shape else x.reshape(self._x.shape))
        self._graph.replay()
        y = self._y.view(self._y.shape) if self._lends else self._y.clone()
        outputs = [y] if len(self._sizes) == 1 else list(y.split(self._sizes, -1))
        if y.ndim == 1:
            outputs = [part.view(shape) for part, shape in zip(outputs, self._shapes, strict=True)]
        if shared is not None:
            shared.keep(x, self, outputs)
        elif bool(self._failed.any()):
            self._failed.zero_()
            return None
        return outputs


def _are_one_stage(layers: Sequence[tuple[_Layer, Matrix]]) -> bool:
    """Return whether kernels for one token run all of these layers at a time."""
    kinds = {
        (
            layer.mode,
            layer.rule,
            layer.bounds,
            matrix.has_groups,
            matrix.group_size,
            matrix.upper,
            matrix.bias is None,
        )
        for layer, matrix in layers
    }
    return len(kinds) == 1 and len(layers) <= _MOST_MATRICES and layers[0][0].mode == "spike"


def _plan(mode: str, stage: Stage) -> Any:
    """Return the tuned plan of a stage; in mode `count` it has one matrix."""
    matrix = stage.matrices[0]
    if matrix.has_groups:
        return tuned_groups(stage)
    if mode == "spike":
        return plan_for(tuned(stage), stage)
    assert stage.bounds is not None
    assert stage.failed is not None
    job = layer_job(stage.x, matrix, stage.y, stage.rule, stage.bounds, stage.failed, stage.x)
    return count.plan_for(fastest_of(count, mode, job), job)


def _tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested tuples and lists."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _tensors_in(part)


def _same_memory(tensor: Tensor) -> Tensor:
    """Return a tensor of the same memory that keeps neither the given one alive nor what that is a view of."""
    alias = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return alias.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride())
