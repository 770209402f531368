"""Triton kernel of softmax attention for many tokens: over a window, or the whole text before each token.

Columns outside the window are not read. Scores are never stored: each program has a block of queries of one head, goes
through the columns that they see, and keeps the largest score, the sum of weights and the sum of weighted values
(online softmax). On spikes, scores are products of integer counts and INT8 keys on tensor cores, exact in INT32.

Source: Dao, FlashAttention-2, arXiv:2307.08691, algorithm 1; Milakov and Gimelshein, arXiv:1805.02867, for the softmax.
"""

# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportOperatorIssue=false
# pyright: reportIndexIssue=false, reportAttributeAccessIssue=false, reportCallIssue=false

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ....coding.kernels import interpreting

# A window that no text exceeds.
_WHOLE = 2**30
_PER_EXP2 = 1 / math.log(2)


def run(
    query: tuple[Tensor, ...], columns: tuple[Tensor, ...], window: int | None, num_sinks: int, dtype: torch.dtype
) -> Tensor:
    """Return outputs, [B, H, L, D] of the dtype, as `swa.attend` does for causal queries without padding.

    Args:
        query: q, [B, H, L, D]; or counts of at most 16 bits and thresholds, [B, H, L, 1].
        columns: k and v, [B, Hk, N, D]; or INT8 codes and scales, [B, Hk, N, 1], of k, then of v.
        window: columns that a query sees; None for all before it.
        num_sinks: columns in front that every query sees.
        dtype: of the outputs, and on spikes of the weighted values.
    """
    spiking = len(query) == 2
    q, threshold = (query[0].to(torch.int16), query[1]) if spiking else (query[0], query[0])
    k, k_scale, v, v_scale = columns if spiking else (columns[0], columns[0], columns[1], columns[1])
    q, k = _channels(q), _channels(k)
    v = _channels(v.to(dtype))
    batch, num_heads, num_queries, dim = q.shape
    num_columns, num_key_heads = k.shape[2], k.shape[1]
    o = torch.empty(batch, num_queries, num_heads, dim, dtype=dtype, device=q.device).transpose(1, 2)
    wide = max(triton.next_power_of_2(dim), 16 if not spiking else 32)
    queries, width, warps, stages = settings(wide, spiking=spiking, precise=dtype == torch.float32)
    attend_columns[triton.cdiv(num_queries, queries), batch * num_heads](
        q, k, v, threshold, k_scale, v_scale, o,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *threshold.stride()[:3], *k_scale.stride()[:3],
        *v_scale.stride()[:3], *o.stride()[:3], num_queries, num_columns, num_sinks,
        _WHOLE if window is None else window, dim**-0.5 * _PER_EXP2,
        HEADS=num_heads, PER_KEY=num_heads // num_key_heads, DIM=dim, WIDE=wide, QUERIES=queries, WIDTH=width,
        SPIKING=spiking, PRECISION="ieee" if dtype == torch.float32 else "tf32",
        num_warps=warps, num_stages=stages,
    )  # fmt: skip
    return o


def settings(wide: int, *, spiking: bool, precise: bool) -> tuple[int, int, int, int]:
    """Return queries and columns of a block, warps and stages."""
    if interpreting():
        return 32, 32, 1, 1
    if precise:
        return 64, 32, 4, 2
    if wide > 128:
        return 64, 64, 8, 2
    if wide <= 64 and not spiking:
        return 64, 64, 4, 3
    return (128, 32, 4, 3) if spiking and wide > 64 else (128, 64, 8, 3)


def _channels(x: Tensor) -> Tensor:
    return x if x.stride(3) == 1 else x.contiguous()


@triton.jit
def attend_columns(
    q_ptr,  # [B, H, L, D]: activations, or int16 counts
    k_ptr,  # [B, Hk, N, D]: keys, or INT8 codes
    v_ptr,  # [B, Hk, N, D]: values, or their codes in the dtype of o
    threshold_ptr,  # float32, [B, H, L, 1], if SPIKING
    k_scale_ptr,  # float32, [B, Hk, N, 1], if SPIKING
    v_scale_ptr,
    o_ptr,  # [B, H, L, D], filled
    q_batch, q_head, q_token,  # strides
    k_batch, k_head, k_token,
    v_batch, v_head, v_token,
    threshold_batch, threshold_head, threshold_token,
    k_scale_batch, k_scale_head, k_scale_token,
    v_scale_batch, v_scale_head, v_scale_token,
    o_batch, o_head, o_token,
    num_queries,
    num_columns,
    num_sinks,
    window,
    scale,  # of scores, for exponents of 2
    HEADS: tl.constexpr,
    PER_KEY: tl.constexpr,
    DIM: tl.constexpr,
    WIDE: tl.constexpr,
    QUERIES: tl.constexpr,
    WIDTH: tl.constexpr,
    SPIKING: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Attend for QUERIES queries of a head; grid [blocks of queries, B * H]."""
    # The last queries first: in a whole text they see the most.
    block = tl.num_programs(0) - 1 - tl.program_id(0)
    batch, head = (tl.program_id(1) // HEADS).to(tl.int64), tl.program_id(1) % HEADS
    key_head = head // PER_KEY
    place = block * QUERIES + tl.arange(0, QUERIES)
    channel = tl.arange(0, WIDE)[None, :]
    is_query = (place < num_queries)[:, None] & (channel < DIM)
    q = tl.load(
        q_ptr + batch * q_batch + head * q_head + place.to(tl.int64)[:, None] * q_token + channel,
        mask=is_query,
        other=0,
    )
    k_ptr += batch * k_batch + key_head * k_head
    v_ptr += batch * v_batch + key_head * v_head
    high, row_scale = q, scale
    some_high = False
    if SPIKING:
        k_scale_ptr += batch * k_scale_batch + key_head * k_scale_head
        v_scale_ptr += batch * v_scale_batch + key_head * v_scale_head
        here = threshold_ptr + batch * threshold_batch + head * threshold_head + place.to(tl.int64) * threshold_token
        row_scale = tl.load(here, mask=place < num_queries, other=0) * scale
        # A count is low + 256 * high, both INT8.
        low = q.to(tl.int8)
        high = (q - low.to(tl.int16)) >> 8
        some_high = tl.max(tl.abs(high)) > 0
        high, q = high.to(tl.int8), low
    i = num_columns - num_queries + place  # the query's own column
    first = num_columns - num_queries + block * QUERIES
    last = tl.minimum(first + QUERIES, num_columns) - 1
    sums = tl.zeros([QUERIES, WIDE], tl.float32)
    weights = tl.zeros([QUERIES], tl.float32)
    largest = tl.full([QUERIES], float("-inf"), tl.float32)
    begin = tl.maximum(first - window + 1, num_sinks) // WIDTH * WIDTH
    # From here to `own`, all queries of the block see all columns.
    seen = tl.cdiv(tl.maximum(last - window + 1, num_sinks), WIDTH) * WIDTH
    seen = tl.minimum(tl.maximum(seen, begin), last + 1)
    own = tl.maximum((first + 1) // WIDTH * WIDTH, seen)
    if some_high:
        for part in tl.static_range(4):
            start = 0 if part == 0 else begin if part == 1 else seen if part == 2 else own
            end = num_sinks if part == 0 else seen if part == 1 else own if part == 2 else last + 1
            sums, weights, largest = columns_between(
                sums, weights, largest, q, high, row_scale, start, end, i,
                k_ptr, v_ptr, k_scale_ptr, v_scale_ptr, k_token, v_token, k_scale_token, v_scale_token,
                num_columns, num_sinks, window,
                PART=part, HIGH=True, DIM=DIM, WIDE=WIDE, WIDTH=WIDTH, SPIKING=SPIKING, PRECISION=PRECISION,
            )  # fmt: skip
    else:
        for part in tl.static_range(4):
            start = 0 if part == 0 else begin if part == 1 else seen if part == 2 else own
            end = num_sinks if part == 0 else seen if part == 1 else own if part == 2 else last + 1
            sums, weights, largest = columns_between(
                sums, weights, largest, q, high, row_scale, start, end, i,
                k_ptr, v_ptr, k_scale_ptr, v_scale_ptr, k_token, v_token, k_scale_token, v_scale_token,
                num_columns, num_sinks, window,
                PART=part, HIGH=False, DIM=DIM, WIDE=WIDE, WIDTH=WIDTH, SPIKING=SPIKING, PRECISION=PRECISION,
            )  # fmt: skip
    o = (sums / weights[:, None]).to(o_ptr.dtype.element_ty)
    tl.store(
        o_ptr + batch * o_batch + head * o_head + place.to(tl.int64)[:, None] * o_token + channel, o, mask=is_query
    )


@triton.jit
def columns_between(
    sums, weights, largest,  # so far
    q, high,
    row_scale,  # of scores, for exponents of 2; above 0
    start, end,
    i,  # the column of each query
    k_ptr, v_ptr, k_scale_ptr, v_scale_ptr,
    k_token, v_token, k_scale_token, v_scale_token,
    num_columns, num_sinks, window,
    PART: tl.constexpr,  # 0: sinks; 1: the window's edge; 2: columns that all queries see; 3: the queries' own
    HIGH: tl.constexpr,
    DIM: tl.constexpr,
    WIDE: tl.constexpr,
    WIDTH: tl.constexpr,
    SPIKING: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Add the columns from start to end, in blocks of WIDTH."""
    channel = tl.arange(0, WIDE)
    for first in range(start, end, WIDTH):
        j = first + tl.arange(0, WIDTH)
        row = j.to(tl.int64)
        if PART == 2 and WIDE == DIM:
            k = tl.load(k_ptr + row[None, :] * k_token + channel[:, None])
        else:
            k = tl.load(
                k_ptr + row[None, :] * k_token + channel[:, None],
                mask=(j < num_columns)[None, :] & (channel < DIM)[:, None], other=0,
            )  # fmt: skip
        if SPIKING:
            total = tl.dot(q, k, out_dtype=tl.int32)
            if HIGH:
                total += tl.dot(high, k, out_dtype=tl.int32) << 8
            k_scale = tl.load(k_scale_ptr + row * k_scale_token, mask=j < num_columns, other=0)
            score = total.to(tl.float32) * k_scale[None, :]
        else:
            score = tl.dot(q, k, input_precision=PRECISION)
        if PART == 0:
            score = tl.where((j < num_sinks)[None, :], score, float("-inf"))
        elif PART != 2:
            near = (j[None, :] <= i[:, None]) & (i[:, None] - j[None, :] < window) & (j >= num_sinks)[None, :]
            score = tl.where(near, score, float("-inf"))
        new_largest = tl.maximum(largest, tl.max(score, 1) * row_scale)
        # A query may see no column of this block, and none before it.
        base = tl.where(new_largest == float("-inf"), 0.0, new_largest) if PART == 1 else new_largest
        fade = tl.exp2(largest - base)
        weight = tl.exp2(score * (row_scale[:, None] if SPIKING else row_scale) - base[:, None])
        weights = weights * fade + tl.sum(weight, 1)
        if SPIKING:
            weight *= tl.load(v_scale_ptr + row * v_scale_token, mask=j < num_columns, other=0)[None, :]
        if PART == 2 and WIDE == DIM:
            v = tl.load(v_ptr + row[:, None] * v_token + channel[None, :])
        else:
            v = tl.load(
                v_ptr + row[:, None] * v_token + channel[None, :],
                mask=(j < num_columns)[:, None] & (channel < DIM)[None, :], other=0,
            )  # fmt: skip
        sums = tl.dot(weight.to(v.dtype), v, sums * fade[:, None], input_precision=PRECISION)
        largest = new_largest
    return sums, weights, largest
