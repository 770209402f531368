"""Count what stays dense: norms, attention of each kind, gates, experts' routing, embedding and head.

Each function says what one vector costs as a plain loop over scalars would do it; tests run those loops. Matrix
products are FP16 MACs, all else FP32, as the models compute it; states of linear attention are FP32. Masked pairs are
not counted. Activations are 2 bytes, read and written once by each part. Scores of attention on counts do spike; they
are counted here, as they belong to a part that does not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ..errors import InputError
from ..models.recording.modules import ModuleRecord
from .count_spiking import adder_width
from .counts import SCORES, LayerCounts, OperationCounts


def count_dense_part(part: ModuleRecord, shared_tokens: int = 1) -> LayerCounts:
    """Return the operations of a part that does not spike; they are the same in all systems.

    The exception is attention on counts, which the INT8 and FP16 systems do in FP16, and the system of the same weights
    with INT8 keys and values; its scores are a part of their own, see `count_scores`.

    Args:
        part: the record.
        shared_tokens: tokens for which the weights of a dense layer are read once.
    """
    if part.kind not in _COUNTS:
        raise InputError(f"{part.name}: expected one of {', '.join(_COUNTS)}, got {part.kind!r}.")
    sizes = part.sizes
    if part.kind == "linear":
        sizes = {**sizes, "reads": -(-part.num_tokens // shared_tokens)}
    spiking = _COUNTS[part.kind](part.num_tokens, part.num_pairs, sizes)
    same = dense = spiking
    if sizes.get("rounds_cache"):
        dense = _softmax(part.num_tokens, part.num_pairs, {**sizes, "rounds_cache": 0}, floats=True)
        same = spiking if sizes["integer"] else dense
    weights = sizes["in_features"] * sizes["out_features"] if part.kind == "linear" else 0
    return LayerCounts(part.kind, spiking, dense, dense, weight_count=weights, same_weights=same)


def count_scores(part: ModuleRecord) -> LayerCounts:
    """Return the operations of the scores of attention on counts: products of queries that spike and INT8 keys.

    A query's D channels become counts (as in `count_spiking_layer`, D channels a head). Each spike adds its channel of
    the key of each column that the query sees, so a score is a sum of INT8 codes, as wide as its bound says. Shifts and
    a zero point are as there, with the sum of a key's codes in the place of a row sum (D - 1 additions a column). The
    sum becomes a float and is multiplied with threshold and scale. The dense systems do D MACs for a score, in FP16;
    with the same weights in INT8, of queries in INT8.

    Args:
        part: of a kind "softmax" that ran on counts.
    """
    n, d, zero_point = part.num_tokens, part.sizes["dim"], part.zero_point
    queries, scores = n * part.sizes["heads"], part.num_pairs * part.sizes["heads"]
    corrections = scores if zero_point else 0
    bits = (part.sizes["largest_score"] + 128 * zero_point * d).bit_length() + 1
    width = adder_width(bits)
    key_sums = n * part.sizes["kv_heads"] * (d - 1) if zero_point else 0
    additions = part.num_synops + corrections + key_sums
    spiking = OperationCounts(
        num_activations=queries * d,
        num_spikes=part.num_spikes,
        num_synops=part.num_synops,
        **{f"num_add_int{width}": additions},
        num_mul_int32=corrections,
        num_shifts_per_spike=part.num_weighted_synops,
        num_shifts_per_timestep=part.num_shifted_sums if part.num_weighted_synops else 0,
        num_rescale_convert=scores,
        num_rescale_mul=2 * scores,
        accumulator_bytes=2 * (width // 8) * additions,
    )
    dense = OperationCounts(num_activations=queries * d, num_macs=scores * d, num_mac_fp16=scores * d)
    same = OperationCounts(
        num_activations=queries * d,
        num_macs=scores * d,
        num_mac_int8=scores * d,
        num_rescale_convert=scores,
        num_rescale_mul=2 * scores,
    )
    spiking, same = spiking + _to_counts(queries, d), same + _to_int8(queries, d)
    return LayerCounts(SCORES, spiking, dense, dense, accumulator_bits=bits, same_weights=same)


def _linear(n: int, pairs: int, sizes: Mapping[str, int]) -> OperationCounts:
    """K N MACs and N biases; FP16 weights are read once for each group of tokens."""
    inputs, outputs, reads = sizes["in_features"], sizes["out_features"], sizes["reads"]
    return OperationCounts(
        num_macs=n * inputs * outputs,
        num_mac_fp16=n * inputs * outputs,
        num_add_fp32=n * outputs * sizes["bias"],
        weight_bytes=2 * reads * inputs * outputs,
        parameter_bytes=2 * reads * outputs * sizes["bias"],
        activation_bytes=2 * n * (inputs + outputs),
    )


def _embedding(n: int, pairs: int, sizes: Mapping[str, int]) -> OperationCounts:
    """A row of the table is read and written on."""
    return OperationCounts(parameter_bytes=2 * n * sizes["dim"], activation_bytes=2 * n * sizes["dim"])


def _rms_norm(n: int, pairs: int, sizes: Mapping[str, int]) -> OperationCounts:
    """Of d channels: d squares, d - 1 additions, a division, eps, root, reciprocal; then two products each.

    Without weights there is one product each; 1 + weight and a bias take an addition each.
    """
    d, weight, bias = sizes["dim"], sizes.get("weight", 1), sizes.get("bias", 0)
    return OperationCounts(
        num_add_fp32=n * d * (1 + sizes.get("offset", 0) + bias),
        num_mul_fp32=n * d * (2 + weight),
        num_div_fp32=2 * n,
        num_sqrt_fp32=n,
        parameter_bytes=2 * n * d * (weight + bias),
        activation_bytes=4 * n * d,
    )


def _layer_norm(n: int, pairs: int, sizes: Mapping[str, int]) -> OperationCounts:
    """As `_rms_norm` on x - mean (d - 1 additions, a division, d subtractions), and usually a bias for each channel."""
    d = sizes["dim"]
    return _rms_norm(n, pairs, {"bias": 1, **sizes}) + OperationCounts(num_add_fp32=n * (2 * d - 1), num_div_fp32=n)


def _residual(n: int, pairs: int, sizes: Mapping[str, int]) -> OperationCounts:
    """Two additions per channel: the stream plus attention, and plus the feed-forward part."""
    d = sizes["dim"]
    return OperationCounts(num_add_fp32=2 * n * d, activation_bytes=12 * n * d)


def _gated_mlp(n: int, pairs: int, sizes: Mapping[str, int]) -> OperationCounts:
    """silu(g) * u per channel: an exponential, an addition, a division g / (1 + exp(-g)), and a product."""
    d = sizes["dim"]
    return OperationCounts(
        num_exp_fp32=n * d, num_add_fp32=n * d, num_div_fp32=n * d, num_mul_fp32=n * d, activation_bytes=6 * n * d
    )


def _softmax(n: int, pairs: int, sizes: Mapping[str, int], *, floats: bool = False) -> OperationCounts:
    """Softmax attention with a rotary embedding, P pairs of query token and column, H query and Hk key/value heads.

    Rotary: D / 2 angles (a product, a sine and a cosine each) per token; two products and an addition for each channel
    of a query or key. For each pair and query head: D MACs, a product with D^-1/2, an exponential of the score less the
    largest, D MACs with the value. For each query and head, over its m columns: m - 1 comparisons for the largest, m
    subtractions, m - 1 additions, m divisions. Keys and values are read once per pair and key/value head.

    On counts (integer) the scores are counted in `count_scores`. Keys and values become INT8 once (as dense activations
    there, with limits to the scale), and are read as such with a scale of 4 bytes each; weights are multiplied with the
    scale of the value. As released, the counts and codes are multiplied out again, a product per channel, and all that
    follows is in floats; the cache keeps floats, and all columns are rounded again whenever a token sees them.

    Args:
        n: tokens.
        pairs: P.
        sizes: heads, kv_heads, dim, integer, and rounds_cache if queries spike.
        floats: count the dense counterpart: without the scores of integer attention, since these are a part of their
            own, and in floats.
    """
    heads, kv_heads, d = sizes["heads"], sizes["kv_heads"], sizes["dim"]
    scores, queries, rotated = pairs * heads, n * heads, n * (heads + kv_heads) * d
    integer = sizes["integer"] and not floats
    common = OperationCounts(
        num_exp_fp32=scores + n * d,
        num_mul_fp32=scores + 2 * rotated + n * (d // 2),
        num_add_fp32=2 * scores - queries + rotated,
        num_compare_fp32=scores - queries,
        num_div_fp32=scores,
        num_mac_fp16=(1 if sizes["integer"] else 2) * scores * d,
        kv_bytes=2 * (1 if integer else 2) * kv_heads * d * (pairs + n),
        activation_bytes=2 * n * d * (2 * heads + 2 * kv_heads),
    )
    if integer:
        scales = OperationCounts(num_mul_fp32=scores, kv_bytes=2 * 4 * kv_heads * (pairs + n))
        return common + scales + _to_int8(2 * kv_heads * n, d)
    if not sizes.get("rounds_cache"):
        return common
    rounded = 2 * kv_heads * pairs
    products = OperationCounts(num_mul_fp32=(queries + rounded) * d)
    return common + products + _to_counts(queries, d) + _to_int8(rounded, d)


def _to_counts(vectors: int, d: int) -> OperationCounts:
    return OperationCounts(
        num_encoded_tokens=vectors,
        num_encode_abs=vectors * d,
        num_encode_add=vectors * (d - 1),
        num_encode_compare=2 * vectors,
        num_encode_div=vectors * (d + 2),
        num_encode_round=vectors * d,
    )


def _to_int8(vectors: int, d: int) -> OperationCounts:
    return OperationCounts(
        num_encoded_tokens=vectors,
        num_encode_abs=vectors * d,
        num_encode_compare=vectors * (d + 1),
        num_encode_div=vectors * (d + 1),
        num_encode_round=vectors * d,
    )


def _gla(n: int, pairs: int, sizes: Mapping[str, int]) -> OperationCounts:
    """The recurrence, as decoding runs it. For each token and key/value head, over D x D states:

    S = decay * S + k v: a product and a MAC for each element; o = q S: D MACs for each output of each query head, and a
    product with D^-1/2 for each channel of a query. The decay of a channel: an exponential, an addition and a logarithm
    for logsigmoid, a division, and the exponential of the result; with a tied gate no division. Feature maps: a
    comparison for ReLU; an exponential, an addition and a division for the sigmoid. The state is read and written.
    """
    heads, kv_heads, d = sizes["heads"], sizes["kv_heads"], sizes["dim"]
    channels, mapped = n * kv_heads * d, n * (heads + kv_heads) * d
    sigmoid = sizes["sigmoid"]
    return OperationCounts(
        num_mac_fp32=n * kv_heads * d * d + n * heads * d * d,
        num_mul_fp32=n * kv_heads * d * d + n * heads * d,
        num_exp_fp32=3 * channels + (mapped if sigmoid else 0),
        num_add_fp32=channels + (mapped if sigmoid else 0),
        num_div_fp32=(0 if sizes["tied"] else channels) + (mapped if sigmoid else 0),
        num_compare_fp32=0 if sigmoid else mapped,
        state_bytes=2 * 4 * n * kv_heads * d * d,
        activation_bytes=2 * n * d * (2 * heads + 2 * kv_heads + (0 if sizes["tied"] else kv_heads)),
    )


def _branches(n: int, pairs: int, sizes: Mapping[str, int]) -> OperationCounts:
    """w1 * o1 + w2 * o2 for each channel of each query head."""
    channels = n * sizes["heads"] * sizes["dim"]
    return OperationCounts(num_mul_fp32=2 * channels, num_add_fp32=channels, activation_bytes=6 * channels)


def _moe(n: int, pairs: int, sizes: Mapping[str, int]) -> OperationCounts:
    """Softmax over E router outputs, the k largest (E - 1, E - 2, ... comparisons), and the weighted sum of experts.

    Softmax: E - 1 comparisons, E subtractions, E exponentials, E - 1 additions, E divisions. Each chosen expert's
    output is multiplied by its probability and added to zeros, each shared one's added. The router is a linear part.
    """
    e, k, d = sizes["experts"], sizes["chosen"], sizes["dim"]
    return OperationCounts(
        num_compare_fp32=n * (e - 1) + n * sum(e - 1 - i for i in range(k)),
        num_add_fp32=n * (2 * e - 1) + n * d * (k + sizes["shared"]),
        num_exp_fp32=n * e,
        num_div_fp32=n * e,
        num_mul_fp32=n * d * k,
        activation_bytes=2 * n * d * (k + sizes["shared"] + 1),
    )


def _experts(n: int, pairs: int, sizes: Mapping[str, int]) -> OperationCounts:
    """Each of a token's experts gives d channels, multiplied by its weight and added to zeros."""
    d = sizes["dim"]
    return OperationCounts(num_mul_fp32=pairs * d, num_add_fp32=pairs * d, activation_bytes=2 * d * (pairs + n))


_COUNTS: dict[str, Callable[[int, int, Mapping[str, int]], OperationCounts]] = {
    "linear": _linear,
    "embedding": _embedding,
    "rms-norm": _rms_norm,
    "layer-norm": _layer_norm,
    "residual": _residual,
    "gated-mlp": _gated_mlp,
    "softmax": _softmax,
    "gla": _gla,
    "branches": _branches,
    "moe": _moe,
    "experts": _experts,
}
