"""One token through a whole decoder in one call, without Python between its layers.

A token passes stages: projections of the attention's input, attention, its output projection, gate and up projections,
down projection, and at the end the head; a mixture of experts has one that chooses them. A stage is divided into parts.
Threads take parts in order, and wait before a part until all parts of the stage before are done; so any number of
threads gets through. A stage's input becomes counts and a list of events once a thread, however many projections read
it. Sums of spiking projections are those of `tiles.py`, exact; what is between them is in `decoder_parts.py` and
`hybrid.py`.
"""

# Type checkers do not know that numba passes an intrinsic its first argument.
# pyright: reportCallIssue=false

from __future__ import annotations

import functools
from ctypes import c_double, c_int64
from enum import IntEnum

import numba
import numpy as np
from numba import types
from numba.np.numpy_support import carray

from ...compiled import compiled, compiled_callback
from . import tiles
from .attention import attend
from .decoder_parts import exp_all, rms_norm, rotate, silu_product
from .digits import room_for_digits
from .hybrid import MIXER, count_queries, mix, write_codes
from .memory import at, look, record_of, take, wait_for
from .projection import LISTED, PROJECTION, count_input, project
from .rule import RULE


class Kind(IntEnum):
    """What a part of a stage does with the outputs of projections, or that it does something else."""

    STORE = 0
    ADD = 1  # to the residual stream, times the weight of a chosen expert
    PRODUCT = 2  # of silu(gate) and up, from two projections
    LOGITS = 3
    ATTENTION = 4  # a key head of a Llama-type model, with its query heads
    MIX = 5  # a key head of a SpikingBrain model, with its query heads; see `hybrid.py`
    ROUTE = 6  # chooses the experts of the token


# Attention of a Llama-type model, by layer. SpikingBrain models have `hybrid.MIXER`.
LAYER, _ = record_of(
    {
        "query_norm": c_int64,  # float32 [head_dim], or 0
        "key_norm": c_int64,
        "keys": c_int64,  # float32 [key heads, capacity, head_dim]
        "values": c_int64,
        "capacity": c_int64,
        # Attention on counts: codes of keys and values, int8 [key heads, capacity, head_dim], and their scales, float32
        # [key heads, capacity]; or 0. The rule counts queries.
        "key_codes": c_int64,
        "key_scales": c_int64,
        "value_codes": c_int64,
        "value_scales": c_int64,
        **RULE,
    }
)
# The input of a stage's projections: `source` float32 [inputs], normalised if there is `norm` float32 [inputs]; the
# projection whose neuron makes counts of it, or -1 where none spikes; and the number of parts.
STAGE, _ = record_of(dict.fromkeys(("source", "norm", "num_inputs", "encoder", "size"), c_int64))
# A part of a stage: pieces `first` to before `last`, or head `first` of the layer.
PART, _ = record_of(dict.fromkeys(("stage", "kind", "layer", "first", "last"), c_int64))
# Outputs `start` to before `stop` of a projection (for PRODUCT, of it and the one after it), and the address that the
# first of them goes to. With the address of a CHOICE the projection is that of the chosen expert. For ROUTE, `target`
# is the address of the first CHOICE to fill.
PIECE, _ = record_of(dict.fromkeys(("projection", "start", "stop", "target", "choice"), c_int64))
# A chosen expert: how many projections it lies behind the first expert's, and its weight, a float32.
CHOICE, _ = record_of({"offset": c_int64, "weight": c_double})
# Projections of an expert: gate, up, down.
PER_EXPERT = 3

_FIELDS = {
    "parts": c_int64,
    "stages": c_int64,
    "pieces": c_int64,
    "layers": c_int64,
    "projections": c_int64,
    "done": c_int64,  # int64 [stages]: finished parts; zero before
    "projected": c_int64,  # float32: queries, keys, values and gates of the token, by head
    "attended": c_int64,  # float32 [heads * head_dim]
    "logits": c_int64,  # float32 [vocabulary]
    "cos": c_int64,  # float32 [head_dim]: of the token's position
    "sin": c_int64,
    "num_parts": c_int64,
    "num_stages": c_int64,
    "num_pieces": c_int64,
    "num_layers": c_int64,
    "num_projections": c_int64,
    "num_heads": c_int64,
    "num_key_heads": c_int64,
    "head_dim": c_int64,
    "num_choices": c_int64,  # routed experts of a token
    "widest": c_int64,  # outputs of the widest piece
    "most_inputs": c_int64,
    "smallest_block": c_int64,
    "num_cached": c_int64,  # tokens in the cache of a Llama-type model
    "scaling": c_double,  # of queries
    "eps": c_double,  # of the norms
    "give_way": c_int64,  # address of a function that lets other threads run, or 0
    "next_part": c_int64,  # counts parts as they are taken
    "refused": c_int64,  # set if a layer's input needs the separate steps
}
RECORD, Task = record_of(_FIELDS)
_NEXT_PART, _REFUSED = (8 * list(_FIELDS).index(name) for name in ("next_part", "refused"))
_, _ADD, _PRODUCT, _LOGITS, _ATTENTION, _MIX, _ROUTE = (int(kind) for kind in Kind)


@functools.cache
def kernel() -> int:
    """Return the address of the compiled decoder, a `void function(Task *)`; it is compiled by the first call."""
    return compiled_callback(_work_through_parts, types.void(types.int64))


def _work_through_parts(address):  # pragma: no cover - compiled
    """Take parts until there are none."""
    task = carray(at(address, RECORD), 1)[0]
    parts = carray(at(task.parts, PART), task.num_parts)
    stages = carray(at(task.stages, STAGE), task.num_stages)
    projections = carray(at(task.projections, PROJECTION), task.num_projections)
    x, count = np.empty(task.most_inputs, np.float32), np.empty(task.most_inputs, np.int32)
    digits = room_for_digits(task.most_inputs, task.smallest_block)
    sums, totals = np.empty(tiles.MOST_OUTPUTS, np.int32), np.empty(task.widest + tiles.NARROW_TILE, np.int32)
    y = np.empty((2, task.widest + tiles.NARROW_TILE), np.float32)
    listed = np.zeros(LISTED, np.int64)  # for which rows the input is listed; 0 if it is not yet
    threshold, prepared = np.float32(0), -1
    while True:
        ticket = take(address + _NEXT_PART)
        if ticket >= task.num_parts:
            return
        part = parts[ticket]
        if part.stage > 0:
            wait_for(task.done + 8 * (part.stage - 1), stages[part.stage - 1].size, task.give_way)
        if look(address + _REFUSED) == 0:
            if part.kind in (_ATTENTION, _MIX):
                if not _run_head(task, part):
                    take(address + _REFUSED)
            else:
                stage = stages[part.stage]
                if prepared != part.stage:
                    prepared = part.stage
                    _gather(task, stage, x)
                    listed[:] = 0
                    if stage.encoder >= 0:
                        threshold = count_input(projections[stage.encoder], x, count)
                if stage.encoder < 0 or threshold > 0:
                    _run_part(task, projections, part, x, threshold, count, digits, listed, sums, totals, y)
                else:
                    take(address + _REFUSED)
        take(task.done + 8 * part.stage)


@compiled
def _run_head(task, part):  # pragma: no cover - compiled
    """Let the query heads of a key head attend; return whether all counts fit."""
    if part.kind == _ATTENTION:
        return _attend(task, carray(at(task.layers, LAYER), task.num_layers)[part.layer], part.first)
    return mix(task, carray(at(task.layers, MIXER), task.num_layers)[part.layer], part.first)


@compiled
def _gather(task, stage, x):  # pragma: no cover - compiled
    """Fill x with the input of a stage's projections."""
    source = carray(at(stage.source, numba.float32), stage.num_inputs)
    if stage.norm == 0:
        x[: stage.num_inputs] = source
    else:
        weight = carray(at(stage.norm, numba.float32), stage.num_inputs)
        rms_norm(source, weight, np.float32(task.eps), x[: stage.num_inputs])


@compiled
def _run_part(
    task, projections, part, x, threshold, count, digits, listed, sums, totals, y
):  # pragma: no cover - compiled
    """Run the pieces of a part, and hand on what they give."""
    pieces = carray(at(task.pieces, PIECE), task.num_pieces)
    for index in range(part.first, part.last):
        piece = pieces[index]
        number, factor = piece.projection, np.float32(1)
        if piece.choice != 0:
            choice = carray(at(piece.choice, CHOICE), 1)[0]
            number += choice.offset
            factor = np.float32(choice.weight)
        first, last, width = piece.start, piece.stop, piece.stop - piece.start
        project(projections[number], x, threshold, count, digits, listed, first, last, sums, totals, y[0])
        if part.kind == _ROUTE:
            _choose(y[0, :width], carray(at(piece.target, CHOICE), task.num_choices))
            continue
        target = task.logits + 4 * first if part.kind == _LOGITS else piece.target
        out = carray(at(target, numba.float32), width)
        if part.kind == _PRODUCT:
            project(projections[number + 1], x, threshold, count, digits, listed, first, last, sums, totals, y[1])
            silu_product(y[0, :width], y[1, :width], out)
        elif part.kind == _ADD:
            for i in range(width):
                out[i] += factor * y[0, i]
        else:
            out[:] = y[0, :width]


@compiled(error_model="numpy")
def _choose(score, choices):  # pragma: no cover - compiled
    """Choose the experts of the highest softmax(score), float32 [experts], which is overwritten."""
    total = exp_all(score, score.max())
    for place in range(choices.shape[0]):
        best = score.argmax()
        choices[place].offset = PER_EXPERT * best
        choices[place].weight = np.float32(score[best] / total)
        score[best] = -1


@compiled
def _attend(task, layer, key_head):  # pragma: no cover - compiled
    """Write the token's key and value into the cache, and let the query heads of a key head read it.

    Returns:
        Whether all counts of queries fit.
    """
    dim, heads, key_heads, eps = task.head_dim, task.num_heads, task.num_key_heads, np.float32(task.eps)
    group = heads // key_heads
    projected = carray(at(task.projected, numba.float32), (heads + 2 * key_heads, dim))
    cos, sin = carray(at(task.cos, numba.float32), dim), carray(at(task.sin, numba.float32), dim)
    turned = np.empty((group + 1, dim), np.float32)
    turned[:group], turned[group] = projected[group * key_head : group * (key_head + 1)], projected[heads + key_head]
    for head in range(group + 1):
        norm = layer.key_norm if head == group else layer.query_norm
        if norm != 0:
            rms_norm(turned[head], carray(at(norm, numba.float32), dim), eps, turned[head])
        rotate(turned[head], cos, sin)
    first, row = 4 * key_head * layer.capacity * dim, 4 * task.num_cached * dim
    carray(at(layer.keys + first + row, numba.float32), dim)[:] = turned[group]
    carray(at(layer.values + first + row, numba.float32), dim)[:] = projected[heads + key_heads + key_head]
    attended = carray(at(task.attended, numba.float32), (heads, dim))[group * key_head : group * (key_head + 1)]
    factor = np.full(group, np.float32(task.scaling))
    keys, values, key_scales, value_scales = layer.keys + first, layer.values + first, 0, 0
    if layer.key_codes != 0:
        rows = key_head * layer.capacity
        keys, values = layer.key_codes + rows * dim, layer.value_codes + rows * dim
        key_scales, value_scales = layer.key_scales + 4 * rows, layer.value_scales + 4 * rows
        write_codes(turned[group], keys, key_scales, task.num_cached)
        write_codes(projected[heads + key_heads + key_head], values, value_scales, task.num_cached)
        if not count_queries(layer, turned[:group], factor):
            return False
    attend(turned[:group], factor, keys, key_scales, values, value_scales, task.num_cached + 1, dim, attended)
    return True
