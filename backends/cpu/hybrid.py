"""How a SpikingBrain model mixes tokens, for one token and one key head: linear attention, softmax attention, or both.

The plain rules are in `models/spikingbrain`: `gla.recurrent_gla`, `swa.float_attention` and `swa.integer_attention`,
`int8.quantize_tokens`, and `attention.Attention` for their order. Softmax attention is on floats, or on spike counts of
the queries and INT8 keys and values, whose products are exact.
"""

# Type checkers do not know that numba passes an intrinsic its first argument.
# pyright: reportCallIssue=false

from __future__ import annotations

import math
from ctypes import c_double, c_int64

import numba
import numpy as np
from numba.np.numpy_support import carray

from ...compiled import compiled
from .attention import MOST_CHARGE, attend
from .decoder_parts import exp, rms_norm, rotate
from .memory import at, record_of
from .rule import RULE, count_all

# The mixer of a layer; addresses, or 0 for what it has not.
MIXER, _ = record_of(
    {
        # Linear attention: float32 [key heads, head_dim, head_dim] before the token, and memory for after it.
        "before": c_int64,
        "after": c_int64,
        "linear_norm": c_int64,  # float32 [head_dim]
        "sigmoid": c_int64,  # 1 if that is the feature map, 0 for relu
        "tied": c_int64,  # 1 if the decay is 1 - key
        "gate_divisor": c_double,
        "head_eps": c_double,
        # Softmax attention: [key heads, capacity, head_dim], INT8 with scales [key heads, capacity], or float32.
        "keys": c_int64,
        "values": c_int64,
        "key_scales": c_int64,
        "value_scales": c_int64,
        "capacity": c_int64,
        "row": c_int64,  # where the token's own key and value go
        "num_visible": c_int64,  # rows that the token sees, its own included
        **RULE,  # of the neuron that counts queries, with INT8 keys
        # Both: the norm of softmax attention, and float32 [2], their weights.
        "softmax_norm": c_int64,
        "branch_weight": c_int64,
    }
)
_LARGEST_CODE = np.float32(127)
_SMALLEST_SCALE, _LARGEST_SCALE = np.float32(1e-5), np.float32(1e4)


@compiled
def mix(task, mixer, key_head):  # pragma: no cover - compiled
    """Fill what the query heads of a key head attend to, and the token's part of state and columns.

    Args:
        task: a record of `decoder`, whose `projected` has queries, keys, values and gates, one head after the other.
        mixer: a `MIXER`.
        key_head: which.
    Returns:
        Whether all counts fit; if not, nothing that was there before has changed but the row of the token.
    """
    dim, heads, key_heads, eps = task.head_dim, task.num_heads, task.num_key_heads, np.float32(mixer.head_eps)
    group = heads // key_heads
    projected = carray(at(task.projected, numba.float32), (heads + 3 * key_heads, dim))
    query = projected[group * key_head : group * (key_head + 1)]
    key, value = projected[heads + key_head], projected[heads + key_heads + key_head]
    attended = carray(at(task.attended, numba.float32), (heads, dim))[group * key_head : group * (key_head + 1)]
    out, scaling = np.empty((group, dim), np.float32), np.float32(task.scaling)
    if mixer.after != 0:
        gate = projected[heads + 2 * key_heads + key_head]
        shape = (key_heads, dim, dim)
        before = carray(at(mixer.before, numba.float32), shape)[key_head]
        after = carray(at(mixer.after, numba.float32), shape)[key_head]
        divisor = np.float32(mixer.gate_divisor)
        linear_step(query, key, value, gate, mixer.tied, divisor, mixer.sigmoid, scaling, before, after, out)
        weight = carray(at(mixer.linear_norm, numba.float32), dim)
        for head in range(group):
            rms_norm(out[head], weight, eps, attended[head])
    if mixer.num_visible != 0:
        if not _attend(task, mixer, key_head, query, key, value, scaling, out):
            return False
        if mixer.after == 0:
            attended[:] = out
        else:
            weight = carray(at(mixer.softmax_norm, numba.float32), dim)
            share = carray(at(mixer.branch_weight, numba.float32), 2)
            for head in range(group):
                rms_norm(out[head], weight, eps, out[head])
                for i in range(dim):
                    attended[head, i] = share[0] * attended[head, i] + share[1] * out[head, i]
    return True


@compiled(error_model="numpy")
def sigmoid(x):  # pragma: no cover - compiled
    """Return 1 / (1 + e^-x), float32."""
    return np.float32(np.float32(1) / (np.float32(1) + exp(-x)))


@compiled
def log_sigmoid(x):  # pragma: no cover - compiled
    """Return log(sigmoid(x)), float32, without cancellation."""
    return np.float32(min(x, np.float32(0)) - np.float32(math.log1p(exp(-abs(x)))))


@compiled
def linear_step(
    query, key, value, gate, tied, divisor, is_sigmoid, scaling, before, after, out
):  # pragma: no cover - compiled
    """Do one step of gated linear attention for a key head.

    Args:
        query: float32 [query heads, dim], before the feature map.
        key: [dim], before the feature map.
        value: [dim].
        gate: [dim]; not read if tied.
        tied: whether the decay is 1 - sigmoid(key), else sigmoid(gate)^(1 / divisor).
        divisor: of the logarithm of the decay.
        is_sigmoid: whether the feature map is sigmoid, else relu.
        scaling: of queries.
        before: state before the token, [dim, dim].
        after: state after it, filled.
        out: [query heads, dim], filled.
    """
    out[:] = 0
    for d in range(key.shape[0]):
        decay = exp(log_sigmoid(-key[d])) if tied else exp(np.float32(log_sigmoid(gate[d]) / divisor))
        mapped = _feature(key[d], is_sigmoid)
        for j in range(value.shape[0]):
            after[d, j] = decay * before[d, j] + mapped * value[j]
        for head in range(query.shape[0]):
            factor = _feature(query[head, d], is_sigmoid) * scaling
            for j in range(value.shape[0]):
                out[head, j] += factor * after[d, j]


@compiled
def _feature(x, is_sigmoid):  # pragma: no cover - compiled
    if is_sigmoid:
        return sigmoid(x)
    return np.float32(0) if x < 0 else x


@compiled
def _attend(task, mixer, key_head, query, key, value, scaling, out):  # pragma: no cover - compiled
    """Write the token's column, and fill out with softmax attention; return whether all counts fit."""
    dim, row = task.head_dim, mixer.row
    cos, sin = carray(at(task.cos, numba.float32), dim), carray(at(task.sin, numba.float32), dim)
    rows = key_head * mixer.capacity
    turned, factor = np.empty((query.shape[0] + 1, dim), np.float32), np.full(query.shape[0], scaling)
    turned[:-1], turned[-1] = query, key
    for head in range(turned.shape[0]):
        rotate(turned[head], cos, sin)
    if mixer.key_scales == 0:
        keys, values = mixer.keys + 4 * rows * dim, mixer.values + 4 * rows * dim
        key_scales, value_scales = 0, 0
        carray(at(keys + 4 * row * dim, numba.float32), dim)[:] = turned[-1]
        carray(at(values + 4 * row * dim, numba.float32), dim)[:] = value
    else:
        keys, values = mixer.keys + rows * dim, mixer.values + rows * dim
        key_scales, value_scales = mixer.key_scales + 4 * rows, mixer.value_scales + 4 * rows
        write_codes(turned[-1], keys, key_scales, row)
        write_codes(value, values, value_scales, row)
        if not count_queries(mixer, turned[:-1], factor):
            return False
    attend(turned[:-1], factor, keys, key_scales, values, value_scales, mixer.num_visible, dim, out)
    return True


@compiled
def count_queries(record, query, factor):  # pragma: no cover - compiled
    """Replace queries by their counts, multiply factors by the thresholds, and return whether all counts fit.

    Args:
        record: has the fields `RULE`.
        query: float32 [heads, dim].
        factor: float32 [heads].
    """
    count = np.empty(query.shape[1], np.int32)
    for head in range(query.shape[0]):
        threshold = count_all(record, query[head], count)
        if not threshold > 0 or np.abs(count).sum() > MOST_CHARGE:
            return False
        factor[head] *= threshold
        query[head] = count
    return True


@compiled
def write_codes(x, codes, scales, row):  # pragma: no cover - compiled
    """Write the codes of a key or value to a row of a head's codes, and their scale; both are addresses."""
    dim = x.shape[0]
    scale = quantize(x, carray(at(codes + row * dim, numba.int8), dim))
    carray(at(scales, numba.float32), row + 1)[row] = scale


@compiled(error_model="numpy")
def quantize(x, codes):  # pragma: no cover - compiled
    """Fill codes, int8 [N], with round(x / scale), half to even; return scale = max|x| / 127, from 1e-5 to 1e4."""
    largest = np.float32(0)
    for i in range(x.shape[0]):
        largest = max(largest, abs(x[i]))
    scale = min(max(np.float32(largest / _LARGEST_CODE), _SMALLEST_SCALE), _LARGEST_SCALE)
    for i in range(x.shape[0]):
        rounded = np.rint(np.float32(x[i] / scale))
        codes[i] = np.int8(min(max(rounded, np.float32(-128)), _LARGEST_CODE))
    return scale
