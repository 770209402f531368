"""One token through a whole decoder in one call, without Python between its layers.

A token passes stages: projections of the attention's input, attention, its output projection, gate and up projections,
down projection, and at the end the head. A stage is divided into parts. Threads take parts in order, and wait before a
part until all parts of the stage before are done; so any number of threads gets through. A stage's input becomes counts
and a list of events once a thread, however many projections read it. Sums of spiking projections are those of
`tiles.py`, exact; what is between is in `decoder_parts.py`.
"""

# Type checkers do not know that numba passes an intrinsic its first argument.
# pyright: reportCallIssue=false

from __future__ import annotations

import ctypes
import functools
from ctypes import c_double, c_int64
from enum import IntEnum

import numba
import numpy as np
from numba import types
from numba.np.numpy_support import carray

from ...compiled import compiled, compiled_callback
from . import tiles
from .decoder_parts import attend, rms_norm, rotate, silu_product
from .digits import room_for_digits
from .memory import at, call, look, record_of, take
from .projection import PROJECTION, count_input, project


class Stage(IntEnum):
    """What a stage of the decoder does; the order within a layer."""

    QUERY_KEY_VALUE = 0
    ATTENTION = 1
    ATTENTION_OUTPUT = 2
    GATE_AND_UP = 3
    DOWN = 4
    HEAD = 5


# Numbered within a layer: query, key, value, attention output, gate, up, down. The head is the last of all.
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_DOWN = PROJECTIONS.index("down_proj")

LAYER, _ = record_of(
    {
        "attention_norm": c_int64,  # float32 [hidden]
        "mlp_norm": c_int64,
        "query_norm": c_int64,  # float32 [head_dim], or 0
        "key_norm": c_int64,
        "keys": c_int64,  # float32 [key heads, capacity, head_dim]
        "values": c_int64,
        "capacity": c_int64,
    }
)
# A part: the stage it belongs to, counted over all layers; what it does; the layer; its outputs, which are those of the
# pieces from `first` to before `last`, or the head `first` of the attention; and the projection whose neuron makes the
# counts of the stage, or -1 where none spikes.
PART, _ = record_of(dict.fromkeys(("stage", "kind", "layer", "first", "last", "encoder"), c_int64))
# Outputs `start` to before `stop` of a projection; for GATE_AND_UP, of the gate and of the one after it.
PIECE, _ = record_of(dict.fromkeys(("projection", "start", "stop"), c_int64))

_FIELDS = {
    "parts": c_int64,
    "pieces": c_int64,
    "layers": c_int64,
    "projections": c_int64,
    "stage_sizes": c_int64,  # int64 [stages]: parts of each
    "done": c_int64,  # int64 [stages]: finished parts; zero before
    "hidden": c_int64,  # float32 [hidden]: the embedded token before, the last layer's output after
    "projected": c_int64,  # float32: queries, keys and values of the token
    "attended": c_int64,  # float32 [heads * head_dim]
    "product": c_int64,  # float32 [intermediate]
    "logits": c_int64,  # float32 [vocabulary]
    "final_norm": c_int64,
    "cos": c_int64,  # float32 [head_dim]: of the token's position
    "sin": c_int64,
    "num_parts": c_int64,
    "num_pieces": c_int64,
    "num_layers": c_int64,
    "num_stages": c_int64,
    "num_hidden": c_int64,
    "num_heads": c_int64,
    "num_key_heads": c_int64,
    "head_dim": c_int64,
    "widest": c_int64,  # outputs of the widest piece
    "most_inputs": c_int64,
    "smallest_block": c_int64,
    "num_cached": c_int64,  # tokens in the cache
    "scaling": c_double,  # of queries
    "eps": c_double,  # of the norms
    "give_way": c_int64,  # address of a function that lets other threads run, or 0
    "next_part": c_int64,  # counts parts as they are taken
    "refused": c_int64,  # set if a layer's input needs the separate steps
}
RECORD, Task = record_of(_FIELDS)
_NEXT_PART, _REFUSED = (8 * list(_FIELDS).index(name) for name in ("next_part", "refused"))
_QUERY_KEY_VALUE, _ATTENTION, _ATTENTION_OUTPUT, _GATE_AND_UP, _DOWN_STAGE, _HEAD = (int(stage) for stage in Stage)
# Looks at a counter before other threads are let run, about ten microseconds.
_PATIENCE = 1000


@functools.cache
def kernel() -> int:
    """Return the address of the compiled decoder, a `void function(Task *)`; it is compiled by the first call."""
    return compiled_callback(_work_through_parts, types.void(types.int64))


@functools.cache
def give_way() -> int:
    """Return the address of the C function that lets other threads run, or 0 where there is none."""
    try:
        return ctypes.cast(ctypes.CDLL(None).sched_yield, ctypes.c_void_p).value or 0
    except (AttributeError, OSError, TypeError):
        return 0


def _work_through_parts(address):  # pragma: no cover - compiled
    """Take parts until there are none."""
    task = carray(at(address, RECORD), 1)[0]
    parts = carray(at(task.parts, PART), task.num_parts)
    layers = carray(at(task.layers, LAYER), task.num_layers)
    projections = carray(at(task.projections, PROJECTION), 7 * task.num_layers + 1)
    x, count = np.empty(task.most_inputs, np.float32), np.empty(task.most_inputs, np.int32)
    digits = room_for_digits(task.most_inputs, task.smallest_block)
    sums, totals = np.empty(tiles.MOST_OUTPUTS, np.int32), np.empty(task.widest + tiles.NARROW_TILE, np.int32)
    y = np.empty((2, task.widest + tiles.NARROW_TILE), np.float32)
    listed = np.zeros(2, np.int64)  # for which block and bits the input is listed; 0 if it is not yet
    score = np.empty(task.num_cached + 1, np.float32)
    threshold, prepared = np.float32(0), -1
    while True:
        ticket = take(address + _NEXT_PART)
        if ticket >= task.num_parts:
            return
        part = parts[ticket]
        _wait_for_stage_before(task, part.stage)
        if look(address + _REFUSED) == 0:
            if part.kind == _ATTENTION:
                _attend(task, layers[part.layer], part.first, score)
            else:
                if prepared != part.stage:
                    prepared = part.stage
                    _gather(task, layers, projections, part, x)
                    listed[:] = 0
                    if part.encoder >= 0:
                        threshold = count_input(projections[part.encoder], x, count)
                if part.encoder < 0 or threshold > 0:
                    _run_part(task, projections, part, x, threshold, count, digits, listed, sums, totals, y)
                else:
                    take(address + _REFUSED)
        take(task.done + 8 * part.stage)


@compiled
def _wait_for_stage_before(task, stage):  # pragma: no cover - compiled
    if stage == 0:
        return
    size = carray(at(task.stage_sizes, numba.int64), task.num_stages)[stage - 1]
    looks = 0
    while look(task.done + 8 * (stage - 1)) < size:
        looks += 1
        if looks % _PATIENCE == 0 and task.give_way != 0:
            call(task.give_way)


@compiled
def _run_part(
    task, projections, part, x, threshold, count, digits, listed, sums, totals, y
):  # pragma: no cover - compiled
    """Run the pieces of a part, and hand on what they give."""
    pieces = carray(at(task.pieces, PIECE), task.num_pieces)
    for index in range(part.first, part.last):
        piece = pieces[index]
        projection = projections[piece.projection]
        first, last, width = piece.start, piece.stop, piece.stop - piece.start
        project(projection, x, threshold, count, digits, listed, first, last, sums, totals, y[0])
        if part.kind == _GATE_AND_UP:
            up = projections[piece.projection + 1]
            project(up, x, threshold, count, digits, listed, first, last, sums, totals, y[1])
            product = carray(at(task.product, numba.float32), projection.num_outputs)
            silu_product(y[0, :width], y[1, :width], product[first:last])
        elif part.kind == _HEAD:
            carray(at(task.logits, numba.float32), projection.num_outputs)[first:last] = y[0, :width]
        elif part.kind == _QUERY_KEY_VALUE:
            # Queries, keys and values follow one another.
            before = 0
            for other in range(7 * part.layer, piece.projection):
                before += projections[other].num_outputs
            all_heads = (task.num_heads + 2 * task.num_key_heads) * task.head_dim
            projected = carray(at(task.projected, numba.float32), all_heads)
            projected[before + first : before + last] = y[0, :width]
        else:
            hidden = carray(at(task.hidden, numba.float32), task.num_hidden)
            for i in range(width):
                hidden[first + i] += y[0, i]


@compiled
def _gather(task, layers, projections, part, x):  # pragma: no cover - compiled
    """Fill x with the input of a stage's projections."""
    if part.kind == _ATTENTION_OUTPUT:
        attended = carray(at(task.attended, numba.float32), task.num_heads * task.head_dim)
        x[: attended.shape[0]] = attended
    elif part.kind == _DOWN_STAGE:
        product = carray(at(task.product, numba.float32), projections[7 * part.layer + _DOWN].num_inputs)
        x[: product.shape[0]] = product
    else:
        address = task.final_norm
        if part.kind == _QUERY_KEY_VALUE:
            address = layers[part.layer].attention_norm
        elif part.kind == _GATE_AND_UP:
            address = layers[part.layer].mlp_norm
        hidden = carray(at(task.hidden, numba.float32), task.num_hidden)
        weight = carray(at(address, numba.float32), task.num_hidden)
        rms_norm(hidden, weight, np.float32(task.eps), x[: task.num_hidden])


@compiled
def _attend(task, layer, head, score):  # pragma: no cover - compiled
    """Let a head read the cache; the first head of a group also writes the token's key and value into it."""
    dim, group = task.head_dim, task.num_heads // task.num_key_heads
    key_head = head // group
    projected = carray(at(task.projected, numba.float32), ((task.num_heads + 2 * task.num_key_heads), dim))
    cos = carray(at(task.cos, numba.float32), dim)
    sin = carray(at(task.sin, numba.float32), dim)
    q, key = np.empty(dim, np.float32), np.empty(dim, np.float32)
    q[:] = projected[head]
    key[:] = projected[task.num_heads + key_head]
    if layer.query_norm != 0:
        rms_norm(projected[head], carray(at(layer.query_norm, numba.float32), dim), np.float32(task.eps), q)
    if layer.key_norm != 0:
        weight = carray(at(layer.key_norm, numba.float32), dim)
        rms_norm(projected[task.num_heads + key_head], weight, np.float32(task.eps), key)
    rotate(q, cos, sin)
    rotate(key, cos, sin)
    for i in range(dim):
        q[i] *= np.float32(task.scaling)
    value = projected[task.num_heads + task.num_key_heads + key_head]
    keys = carray(at(layer.keys, numba.float32), (task.num_key_heads, layer.capacity, dim))[key_head]
    values = carray(at(layer.values, numba.float32), (task.num_key_heads, layer.capacity, dim))[key_head]
    attended = carray(at(task.attended, numba.float32), (task.num_heads, dim))
    attend(q, key, value, keys, values, task.num_cached, score, attended[head])
    if head % group == 0:
        keys[task.num_cached] = key
        values[task.num_cached] = value
