"""Kernels that list the active channels of packed trains on the CPU (numba), a word of 32 channels at a time."""

# pyright: reportCallIssue=false
# Compiled code calls an intrinsic without its first parameter.

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from torch import Tensor

from ...compiled import compiled
from .threads import on_threads
from .vectors import in_all_lanes, vector, vector_pointer


def count_active(fired: Tensor, num_active: Tensor) -> None:
    """Fill num_active, int64 [tokens], with the channels of each token that fired at all; fired: [T, tokens, words]."""
    planes, found = fired.numpy(), num_active.numpy()
    on_threads(lambda a, b: _count_active(planes[:, a:b], found[a:b]), fired.shape[1], 32 * fired.shape[2])


def list_active(
    fired: Tensor, negative: Tensor, timestep_weight: Tensor, first: Tensor, channel: Tensor, count: Tensor
) -> None:
    """Fill the columns of `ChannelEvents`; first: where each token's events start, int64 [tokens]."""
    plus, minus, weight, start = fired.numpy(), negative.numpy(), timestep_weight.to(count.dtype).numpy(), first.numpy()
    columns = channel.numpy(), count.numpy()

    def work(a: int, b: int) -> None:
        _list_active(plus[:, a:b], minus[:, a:b], weight, start[a:b], *columns)

    on_threads(work, fired.shape[1], 32 * fired.shape[2])


@compiled
def _active(fired, token, word):  # pragma: no cover - compiled
    """Return the union of a word over time, as uint32."""
    union = np.uint32(0)
    for t in range(fired.shape[0]):
        union |= np.uint32(fired[t, token, word])
    return union


def _bit_counter(name: str, *flags: int):
    """Return a numba intrinsic that counts bits of a uint32 with an intrinsic of LLVM."""

    @intrinsic
    def count(typingctx, word):  # pragma: no cover - compiled
        def generate(context, builder, signature, arguments):
            kind, bit = ir.IntType(32), ir.IntType(1)
            shape = ir.FunctionType(kind, [kind, *(bit for _ in flags)])
            function = builder.module.declare_intrinsic(f"llvm.{name}.i32", (), shape)
            found = builder.call(function, [*arguments, *(bit(flag) for flag in flags)])
            return builder.zext(found, ir.IntType(64))

        return types.int64(types.uint32), generate

    return count


_num_ones = _bit_counter("ctpop")
_num_trailing_zeros = _bit_counter("cttz", 1)  # of a word that is not 0


@intrinsic
def _add_spikes(typingctx, plus, minus, weight, counts):  # pragma: no cover - compiled
    """Add a plane's spikes to 32 counts: weight for each bit of plus, -weight where it is in minus too."""

    def generate(context, builder, signature, arguments):
        fired, negative = (builder.bitcast(word, vector(ir.IntType(1))) for word in arguments[:2])
        weights = in_all_lanes(builder, arguments[2])
        place = vector_pointer(context, builder, counts, arguments[3], weights.type)
        so_far, nothing = builder.load(place), ir.Constant(weights.type, [0] * 32)
        so_far.align = counts.dtype.bitwidth // 8
        spike = builder.select(negative, builder.sub(nothing, weights), weights)
        total = builder.add(so_far, builder.select(fired, spike, nothing))
        builder.store(total, place).align = so_far.align

    return types.void(types.int32, types.int32, counts.dtype, counts), generate


@compiled
def _count_active(fired, num_active):  # pragma: no cover - compiled
    for token in range(fired.shape[1]):
        total = 0
        for word in range(fired.shape[2]):
            total += _num_ones(_active(fired, token, word))
        num_active[token] = total


@compiled
def _list_active(fired, negative, weight, first, channel, count):  # pragma: no cover - compiled
    """List channels and counts; weight: [T], of the dtype of count."""
    counts = np.zeros(32, count.dtype)
    for token in range(fired.shape[1]):
        event = first[token]
        for word in range(fired.shape[2]):
            active = _active(fired, token, word)
            if active == 0:
                continue
            counts[:] = 0
            for t in range(fired.shape[0]):
                minus = np.int32(0)
                if negative.shape[0] > 0:
                    minus = negative[t if negative.shape[0] > 1 else 0, token, word]
                _add_spikes(fired[t, token, word], minus, weight[t], counts)
            while active:
                j = _num_trailing_zeros(active)
                channel[event] = 32 * word + j
                count[event] = counts[j]
                event += 1
                active &= active - np.uint32(1)  # clears the lowest one
