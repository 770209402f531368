"""A projection on the CPU: from its input to rescaled sums of some of its outputs; and a whole layer.

The decoder runs many projections in one call; `run_tiles` runs a layer by itself that has weight groups, or whose small
counts read upper bits.
"""

# Type checkers do not know that numba passes an intrinsic its first argument.
# pyright: reportCallIssue=false

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from ctypes import c_int64

import numba
import numpy as np
import torch
from numba import types
from numba.np.numpy_support import carray
from torch import Tensor

from ...compiled import compiled, compiled_callback
from ...neuro import KernelRule
from . import team, tiles
from .decoder_parts import dot, dot_integers
from .digits import room_for_digits
from .layer import rescale
from .memory import at, record_of, take
from .rule import RULE, count_all, fields_of

# A matrix. Where `rule` is 0 it does not spike: its rows are float32 [outputs, inputs], or int8 if it has a scale,
# float32 [outputs, inputs / block]. Else they are what `tiles.py` says.
PROJECTION, Projection = record_of(
    {
        **tiles.FIELDS,
        "bias": c_int64,  # float32 [outputs], or 0
        **RULE,
        "seen_input": c_int64,  # float32 [inputs] to fill with what the projection gets, or 0; for checks
    }
)
_FIELDS = {
    "projection": c_int64,
    "x": c_int64,  # float32 [tokens, inputs]
    "y": c_int64,  # float32 [tokens, outputs]
    "num_tokens": c_int64,
    "shares": c_int64,  # parts that the outputs are divided into
    "next_part": c_int64,  # counts parts as they are taken
    "refused": c_int64,  # set if an input needs the separate steps
}
_RECORD, _Task = record_of(_FIELDS)
_NEXT_PART = 8 * list(_FIELDS).index("next_part")


def run_tiles(
    x: Tensor,
    rows: tiles.Rows,
    bias: Tensor | None,
    rule: KernelRule,
    num_threads: int,
    upper: Sequence[tuple[int, int]] = (),
) -> Tensor | None:
    """Return threshold * sum over groups of (scale * W count + minimum * sum of count) + bias, float32 [*tokens, out].

    Args:
        x: float32, contiguous, [*tokens, in], not empty.
        rows: weights.
        bias: float32, [out], contiguous, or None.
        rule: of the neuron.
        num_threads: at most.
        upper: see `tiles.reading`.
    Returns:
        Outputs, in the operations and the order of the separate steps; None if those must run.
    """
    num_inputs, num_outputs = rows.fields["num_inputs"], rows.fields["num_outputs"]
    num_tokens = x.numel() // num_inputs
    tiles_of_outputs = -(-num_outputs // tiles.SHARE)
    y = torch.empty((*x.shape[:-1], num_outputs), dtype=torch.float32)
    projection = Projection(
        **rows.fields,
        bias=0 if bias is None else bias.data_ptr(),
        **fields_of(rule) | {"most_charge": rows.most_charge},
        **tiles.reading(upper),
    )
    task = _Task(
        projection=ctypes.addressof(projection),
        x=x.data_ptr(),
        y=y.data_ptr(),
        num_tokens=num_tokens,
        shares=1 if num_tokens >= num_threads else min(num_threads, tiles_of_outputs),
    )
    team.run(_kernel(), ctypes.addressof(task), num_threads)
    return None if task.refused else y


@functools.cache
def _kernel() -> int:
    """Return the address of the compiled kernel; it is compiled by the first call, not by the first import."""
    return compiled_callback(_work_through_parts, types.void(types.int64))


def _work_through_parts(address):  # pragma: no cover - compiled
    """Take parts until there are none: the outputs of a token, or a share of them."""
    task = carray(at(address, _RECORD), 1)[0]
    projection = carray(at(task.projection, PROJECTION), 1)[0]
    num_inputs, num_outputs = projection.num_inputs, projection.num_outputs
    x = carray(at(task.x, numba.float32), (task.num_tokens, num_inputs))
    y = carray(at(task.y, numba.float32), (task.num_tokens, num_outputs))
    count, listed = np.empty(num_inputs, np.int32), np.zeros(LISTED, np.int64)
    digits = room_for_digits(num_inputs, projection.block)
    sums, totals = np.empty(tiles.MOST_OUTPUTS, np.int32), np.empty(num_outputs + tiles.SHARE, np.int32)
    mine = np.empty(num_outputs + tiles.SHARE, np.float32)
    num_tiles = (num_outputs + tiles.SHARE - 1) // tiles.SHARE
    while True:
        part = take(address + _NEXT_PART)
        if part >= task.num_tokens * task.shares:
            return
        token, share = part // task.shares, part % task.shares
        start = num_tiles * share // task.shares * tiles.SHARE
        stop = min(num_tiles * (share + 1) // task.shares * tiles.SHARE, num_outputs)
        threshold = count_input(projection, x[token], count)
        if threshold > 0:
            listed[:] = 0
            project(projection, x[token], threshold, count, digits, listed, start, stop, sums, totals, mine)
            y[token, start:stop] = mine[: stop - start]
        else:
            task.refused = 1


# What `project` remembers of the events that are listed.
LISTED = 6


@compiled
def count_input(projection, x, count):  # pragma: no cover - compiled
    """Fill count with the spike counts of a projection's input x; see `count_all`."""
    num_inputs = projection.num_inputs
    return count_all(projection, x[:num_inputs], count[:num_inputs])


@compiled
def project(
    projection, x, threshold, count, digits, listed, start, stop, sums, totals, y
):  # pragma: no cover - compiled
    """Fill y with outputs of a projection, by additions of the listed rows, or by products if it does not spike.

    Args:
        projection: a record.
        x: its input, float32 [inputs].
        threshold: from `count_input`.
        count: from `count_input`.
        digits: memory for the events, or the events.
        listed: int64 [LISTED]: block, bits, edges and what counts up to these drop, for which `digits` has the events;
            0 if it has none of this input.
        start: first output; see `tiles.add_tiles`, and so for the rest.
        stop: see start.
        sums: see start.
        totals: see start.
        y: see start.
    """
    x = x[: projection.num_inputs]
    bias = carray(at(projection.bias, numba.float32), projection.num_outputs if projection.bias else 0)[start:stop]
    if projection.rule == 0 and projection.scale != 0:
        groups = projection.num_inputs // projection.block
        for output in range(start, stop):
            row, scale = projection.rows + output * projection.num_inputs, projection.scale + 4 * output * groups
            y[output - start] = dot_integers(row, scale, projection.block, x)
    elif projection.rule == 0:
        weight = carray(at(projection.rows, numba.float32), (projection.num_outputs, projection.num_inputs))
        for output in range(start, stop):
            y[output - start] = dot(weight[output], x)
    else:
        edges, dropped = (projection.edge_0, projection.edge_1), (projection.dropped_0, projection.dropped_1)
        wanted = projection.block, projection.bits, edges[0], dropped[0], edges[1], dropped[1]
        if (listed[0], listed[1], listed[2], listed[3], listed[4], listed[5]) != wanted:
            listed[0], listed[1], listed[2], listed[3], listed[4], listed[5] = wanted
            tiles.list_for(projection, count[: projection.num_inputs], digits)
        tiles.add_tiles(projection, digits, start, stop, sums, totals, y)
        if projection.grouped:
            for i in range(stop - start):
                y[i] *= threshold
        else:
            scale = carray(at(projection.scale, numba.float32), projection.num_outputs)[start:stop]
            if projection.edge_0 > 0:
                scale = scale * np.float32(0.5)
            rescale(totals[: stop - start], scale, threshold, bias[:0], y)
        if projection.seen_input != 0:
            carray(at(projection.seen_input, numba.float32), projection.num_inputs)[:] = x
    for i in range(bias.shape[0]):
        y[i] += bias[i]
