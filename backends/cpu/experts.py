"""Experts on the CPU in one call: every token is counted once, and every route adds the rows of its active channels.

The plain rule is the loop of `Backend.experts`: each expert runs on its own tokens. A route is a token and one of its
experts. Threads first count tokens, then take the routes of an expert, some at a time. The sums are those of
`tiles.py`, exact; floats are rescaled as in `projection.py`, so all results equal those of the single layers.
"""

# Type checkers do not know that numba passes an intrinsic its first argument.
# pyright: reportCallIssue=false

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from ctypes import c_int64
from itertools import pairwise

import numba
import numpy as np
import torch
from numba import types
from numba.np.numpy_support import carray
from torch import Tensor

from ...compiled import compiled_callback
from ...neuro import KernelRule
from ..base import ExpertWeights
from . import team, tiles
from .digits import room_for_digits
from .memory import at, give_way, look, record_of, take, wait_for
from .projection import LISTED, PROJECTION, count_input, project
from .rule import fields_of

_FIELDS = {
    "projections": c_int64,  # `PROJECTION` records: those of an expert one after the other
    "parts": c_int64,  # `_PART` records
    "x": c_int64,  # float32 [tokens, inputs]
    "count": c_int64,  # int32 [tokens, inputs], filled with spike counts
    "threshold": c_int64,  # float32 [tokens], filled
    "row": c_int64,  # int64 [routes]: token of each route
    "y": c_int64,  # int64 [projections of an expert]: addresses of float32 [routes, outputs]
    "num_projections": c_int64,  # of all experts
    "num_matrices": c_int64,  # projections of an expert
    "num_parts": c_int64,
    "num_tokens": c_int64,
    "num_routes": c_int64,
    "num_inputs": c_int64,
    "most_outputs": c_int64,
    "smallest_block": c_int64,
    "give_way": c_int64,
    "done": c_int64,  # counts tokens that are counted
    "next": c_int64,  # counts tokens and parts as they are taken
    "refused": c_int64,  # set if an input needs the separate steps
}
_RECORD, _Task = record_of(_FIELDS)
_DONE, _NEXT, _REFUSED = (8 * list(_FIELDS).index(name) for name in ("done", "next", "refused"))
# Routes `first` to before `last` of an expert, and which of so many shares of its outputs.
_PART, _ = record_of(dict.fromkeys(("expert", "first", "last", "share", "shares"), c_int64))
# Routes that a thread takes at a time, where there are enough of them: the expert's rows stay in its caches.
_ROUTES = 16


def run_experts(
    x: Tensor,
    row: Tensor,
    starts: Sequence[int],
    experts: Sequence[Sequence[ExpertWeights]],
    rule: KernelRule,
    num_threads: int,
) -> list[Tensor] | None:
    """Return what each projection of an expert gives for each route, float32 [routes, outputs].

    Args:
        x: float32, contiguous, [tokens, inputs], not empty.
        row: int64, contiguous, [routes]: the token of each route; those of an expert follow one another.
        starts: first route of each expert, and the number of routes.
        experts: projections of each expert, which all read x; weight.t() and scale are contiguous, biases float32.
        rule: of the neuron.
        num_threads: at most.
    Returns:
        Outputs, in the operations and the order of the separate steps; None if those must run.
    """
    every = [one for expert in experts for one in expert]
    num_matrices, num_tokens, num_routes = len(experts[0]), len(x), len(row)
    # Integers of 4 bits are read as INT8: packing them would take longer than one call.
    rows = [
        tiles.Rows(one.weight, one.scale, one.minimum, one.group_size, weight_bits=8, units=one.units) for one in every
    ]
    records = np.zeros(len(rows), PROJECTION)
    for record, one, weights in zip(records, rows, every, strict=True):
        for name, value in (one.fields | fields_of(rule)).items():
            record[name] = value
        record["bias"] = 0 if weights.bias is None else weights.bias.data_ptr()
    records["most_charge"] = min(one.most_charge for one in rows)
    most_outputs = max(len(weights.weight) for weights in experts[0])
    parts = _divided(list(pairwise(starts)), num_threads)
    outputs = [torch.empty(num_routes, len(weights.weight)) for weights in experts[0]]
    addresses = np.array([y.data_ptr() for y in outputs])
    count, threshold = torch.empty(x.shape, dtype=torch.int32), torch.empty(num_tokens)
    task = _Task(
        projections=records.ctypes.data,
        parts=parts.ctypes.data,
        x=x.data_ptr(),
        count=count.data_ptr(),
        threshold=threshold.data_ptr(),
        row=row.data_ptr(),
        y=addresses.ctypes.data,
        num_projections=len(records),
        num_matrices=num_matrices,
        num_parts=len(parts),
        num_tokens=num_tokens,
        num_routes=num_routes,
        num_inputs=x.shape[1],
        most_outputs=most_outputs,
        smallest_block=int(records["block"].min()),
        give_way=give_way(),
    )
    team.run(_kernel(), ctypes.addressof(task), num_threads)
    return None if task.refused else outputs


def _divided(routes: list[tuple[int, int]], num_threads: int) -> np.ndarray:
    """Divide the routes of the experts, given by their first and their end, into parts."""
    total = sum(last - first for first, last in routes)
    shares = 1 if total >= 4 * num_threads else num_threads
    size = max(1, min(_ROUTES, total // (2 * num_threads)))
    found = [
        (e, at_, min(at_ + size, last), share, shares)
        for e, (first, last) in enumerate(routes)
        for at_ in range(first, last, size)
        for share in range(shares)
    ]
    return np.array(found, _PART)


@functools.cache
def _kernel() -> int:
    """Return the address of the compiled kernel; it is compiled by the first call, not by the first import."""
    return compiled_callback(_work_through, types.void(types.int64))


def _work_through(address):  # pragma: no cover - compiled
    """Count tokens until there are none, then take parts."""
    task = carray(at(address, _RECORD), 1)[0]
    projections = carray(at(task.projections, PROJECTION), task.num_projections)
    parts = carray(at(task.parts, _PART), task.num_parts)
    x = carray(at(task.x, numba.float32), (task.num_tokens, task.num_inputs))
    count = carray(at(task.count, numba.int32), (task.num_tokens, task.num_inputs))
    threshold = carray(at(task.threshold, numba.float32), task.num_tokens)
    row = carray(at(task.row, numba.int64), task.num_routes)
    targets = carray(at(task.y, numba.int64), task.num_matrices)
    digits, listed = room_for_digits(task.num_inputs, task.smallest_block), np.zeros(LISTED, np.int64)
    sums, totals = np.empty(tiles.MOST_OUTPUTS, np.int32), np.empty(task.most_outputs + tiles.SHARE, np.int32)
    mine = np.empty(task.most_outputs + tiles.SHARE, np.float32)
    while True:
        ticket = take(address + _NEXT)
        if ticket >= task.num_tokens + task.num_parts:
            return
        if ticket < task.num_tokens:
            threshold[ticket] = count_input(projections[0], x[ticket], count[ticket])
            if not threshold[ticket] > 0:
                take(address + _REFUSED)
            take(address + _DONE)
            continue
        wait_for(address + _DONE, task.num_tokens, task.give_way)
        if look(address + _REFUSED) != 0:
            return
        part = parts[ticket - task.num_tokens]
        for route in range(part.first, part.last):
            token = row[route]
            listed[:] = 0
            for matrix in range(task.num_matrices):
                projection = projections[part.expert * task.num_matrices + matrix]
                num_outputs = projection.num_outputs
                blocks = (num_outputs + tiles.SHARE - 1) // tiles.SHARE
                start = blocks * part.share // part.shares * tiles.SHARE
                stop = min(blocks * (part.share + 1) // part.shares * tiles.SHARE, num_outputs)
                if start < stop:
                    project(
                        projection, x[token], threshold[token], count[token], digits, listed, start, stop, sums,
                        totals, mine,
                    )  # fmt: skip
                    y = carray(at(targets[matrix], numba.float32), (task.num_routes, num_outputs))
                    y[route, start:stop] = mine[: stop - start]
