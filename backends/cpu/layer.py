"""A whole spiking layer on the CPU in one call: threshold, counts, events and rescaling, without PyTorch operators.

The float operations are those of the neuron and of `SpikeLinear`, in the same order and precision, so results are equal
bit for bit. A layer takes 50 microseconds, where each PyTorch operator would matter: hence plain addresses.
"""

# Type checkers do not know that numba passes an intrinsic its first argument.
# pyright: reportCallIssue=false

from __future__ import annotations

import ctypes
import functools
import threading
from ctypes import c_int64

import numba
import numpy as np
import torch
from numba import types
from numba.np.numpy_support import carray
from torch import Tensor

from ...compiled import compiled, compiled_callback
from ...neuro import KernelRule
from . import team
from .events import LARGEST_DIGIT, add_events
from .memory import at, record_of, take
from .rule import RULE, count_by, fields_of, threshold_by

NUM_BUCKETS = LARGEST_DIGIT * 5  # MAX_LOSSLESS_COUNT has five hexadecimal digits

# What the threads of a call receive: addresses of float32 and INT8 arrays, and numbers.
_FIELDS = {
    "x": c_int64,  # [tokens, inputs]
    "weight": c_int64,  # [inputs, outputs]
    "scale": c_int64,  # [outputs]
    "bias": c_int64,  # [outputs], or 0
    "y": c_int64,  # [tokens, outputs]
    "buckets": c_int64,  # int16 [threads, buckets, pass_outputs], zero before and after
    "totals": c_int64,  # int32 [threads, outputs]
    "done": c_int64,  # int64: finished parts of the only token; zero before and after
    "num_tokens": c_int64,
    "num_inputs": c_int64,
    "num_outputs": c_int64,
    "num_threads": c_int64,
    "splits": c_int64,  # parts that the channels of a token are divided into
    "pass_outputs": c_int64,
    **RULE,
    "next_thread": c_int64,  # counts threads as they come
    "next_part": c_int64,  # counts parts as they are taken
    "refused": c_int64,  # set if the input needs the separate steps
}
_RECORD, _Task = record_of(_FIELDS)


class _Scratch(threading.local):
    """Memory that the calls of one thread share: buckets, totals and done. It grows with the largest layer."""

    sizes: tuple[int, ...] = (0, 0, 0)
    addresses: tuple[int, ...] = (0, 0, 0)

    def fit(self, num_buckets: int, num_totals: int, num_done: int) -> tuple[int, ...]:
        has_buckets, has_totals, has_done = self.sizes
        if has_buckets < num_buckets or has_totals < num_totals or has_done < num_done:
            self.sizes = (max(has_buckets, num_buckets), max(has_totals, num_totals), max(has_done, num_done))
            kinds = (torch.int16, torch.int32, torch.int64)
            self.memory = [torch.zeros(size, dtype=kind) for size, kind in zip(self.sizes, kinds, strict=True)]
            self.addresses = tuple(part.data_ptr() for part in self.memory)
        return self.addresses


_scratch = _Scratch()


def run_layer(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    rule: KernelRule,
    num_threads: int,
    pass_outputs: int,
) -> Tensor | None:
    """Return (W count) * scale * threshold + bias, float32 [*tokens, out], or None if the separate steps must run.

    Args:
        x: float32, contiguous, [*tokens, in], not empty.
        weight: INT8, [out, in], of which weight.t() is contiguous.
        scale: float32, [out, 1], contiguous.
        bias: float32, [out], contiguous, or None.
        rule: of the neuron.
        num_threads: at most.
        pass_outputs: outputs visited together.
    """
    num_outputs, num_inputs = weight.shape
    num_tokens = x.numel() // num_inputs
    splits = 1 if num_tokens >= num_threads else num_threads
    pass_outputs = min(pass_outputs, num_outputs)
    # Where channels are divided, there is one token at a time: as many totals as threads are enough.
    scratch = _scratch.fit(num_threads * NUM_BUCKETS * pass_outputs, num_threads * num_outputs, 1)
    y = torch.empty((*x.shape[:-1], num_outputs), dtype=torch.float32)
    task = _Task(
        x.data_ptr(),
        weight.data_ptr(),
        scale.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        y.data_ptr(),
        *scratch,
        num_tokens if splits == 1 else 1,
        num_inputs,
        num_outputs,
        num_threads,
        splits,
        pass_outputs,
        *fields_of(rule).values(),
    )
    for token in range(1 if splits == 1 else num_tokens):
        if token > 0:
            task.x += 4 * num_inputs
            task.y += 4 * num_outputs
            task.next_thread = task.next_part = 0
        team.run(_kernel(), ctypes.addressof(task), num_threads)
        if task.refused:
            return None
    return y


@functools.cache
def _kernel() -> int:
    """Return the address of the compiled kernel; it is compiled by the first call, not by the first import."""
    return compiled_callback(_work_through_parts, types.void(types.int64))


_NEXT_THREAD, _NEXT_PART = (8 * list(_FIELDS).index(name) for name in ("next_thread", "next_part"))


def _work_through_parts(address):  # pragma: no cover - compiled
    """Take parts until there are none: a token each, or a share of the channels of the only token."""
    task = carray(at(address, _RECORD), 1)[0]
    x = carray(at(task.x, numba.float32), (task.num_tokens, task.num_inputs))
    rows = carray(at(task.weight, numba.int8), (task.num_inputs, task.num_outputs))
    y = carray(at(task.y, numba.float32), (task.num_tokens, task.num_outputs))
    scale = carray(at(task.scale, numba.float32), task.num_outputs)
    bias = carray(at(task.bias, numba.float32), task.num_outputs if task.bias else 0)
    totals = carray(at(task.totals, numba.int32), (task.num_threads, task.num_outputs))
    buckets = carray(at(task.buckets, numba.int16), (task.num_threads, NUM_BUCKETS, task.pass_outputs))
    thread = take(address + _NEXT_THREAD)
    count = np.empty(task.num_inputs, np.int32)
    while True:
        part = take(address + _NEXT_PART)
        if part >= task.num_tokens * task.splits:
            return
        token, split = part // task.splits, part % task.splits
        first, last = task.num_inputs * split // task.splits, task.num_inputs * (split + 1) // task.splits
        total = totals[thread if task.splits == 1 else split]
        total[:] = 0
        threshold, charge = threshold_by(task, x[token])
        if count_by(task, x[token, first:last], threshold, charge, count[first:last]):
            add_events(count[first:last], rows[first:last], task.pass_outputs, buckets[thread], total)
        else:
            task.refused = 1
        if task.splits > 1:
            # The last thread adds up the totals of all.
            if take(task.done) < task.splits - 1:
                continue
            carray(at(task.done, numba.int64), 1)[0] = 0
            total = totals[0]
            for other in range(1, task.splits):
                total += totals[other]
        rescale(total, scale, threshold, bias, y[token])


@compiled
def rescale(total, scale, threshold, bias, y):  # pragma: no cover - compiled
    """Fill y with (total * scale) * threshold + bias, every step rounded to float32."""
    for output in range(total.shape[0]):
        y[output] = (np.float32(total[output]) * scale[output]) * threshold
    for output in range(bias.shape[0]):
        y[output] += bias[output]
