"""Triton kernel for the attention of one token over a cache of keys and values: rotary embedding, softmax, cache write.

A program has a head of keys and values, with all heads of queries that read it, and a share of the cached tokens. The
last program of a head to finish adds up the shares.
"""

# ruff: noqa: PLR0915 - a kernel is one function
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportOperatorIssue=false
# pyright: reportIndexIssue=false, reportAttributeAccessIssue=false, reportCallIssue=false

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def product(x, y):
    """Return x * y in the dtype of both, rounded as PyTorch does."""
    return (x.to(tl.float32) * y.to(tl.float32)).to(x.dtype)


@triton.jit
def normalised(x, weight, eps, DIM: tl.constexpr):
    """Return RMSNorm of heads in two halves, each [heads, half], as PyTorch rounds it in the dtype of x."""
    low, high = x
    squares = tl.sum(low.to(tl.float32) * low.to(tl.float32), 1) + tl.sum(high.to(tl.float32) * high.to(tl.float32), 1)
    inverse = tl.rsqrt(squares / DIM + eps)[:, None]
    low = product((low.to(tl.float32) * inverse).to(low.dtype), weight[0])
    high = product((high.to(tl.float32) * inverse).to(high.dtype), weight[1])
    return low, high


@triton.jit
def rotated(x, cos, sin):
    """Return x * cos + rotate_half(x) * sin, rounded after each step; all in two halves."""
    low, high = x
    first = product(low, cos[0]).to(tl.float32) - product(high, sin[0]).to(tl.float32)
    second = product(high, cos[1]).to(tl.float32) + product(low, sin[1]).to(tl.float32)
    return first.to(low.dtype), second.to(low.dtype)


@triton.jit
def halves_at(row, half, is_half, HALF: tl.constexpr):
    """Load two halves of rows of 2 * HALF numbers."""
    return tl.load(row + half, mask=is_half, other=0), tl.load(row + HALF + half, mask=is_half, other=0)


@triton.jit
def attend(
    projected_ptr,  # queries, keys and values of the token, [heads + 2 * key heads, dim]
    cache_ptr,  # int64, [3]: address of keys and values, [layers, 2, key heads, rows, dim]; rows; cached tokens
    cos_ptr,  # [dim]: of the token's position
    sin_ptr,
    query_norm_ptr,  # [dim], if NORM
    key_norm_ptr,
    partial_ptr,  # float32, [heads, splits, dim + 2]: sums of values, the largest score, the sum of weights
    arrived_ptr,  # int32, [key heads], zeros before and after
    y_ptr,  # [heads, dim]
    layer,
    scaling,
    eps,
    HEADS: tl.constexpr,
    KEY_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    GROUP: tl.constexpr,  # heads of queries per head of keys, padded
    WIDE: tl.constexpr,  # half of DIM, padded
    BLOCK: tl.constexpr,
    NORM: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Fill y, and write the token's key and value into the cache; grid [key heads, splits]."""
    key_head, split, splits = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    HALF: tl.constexpr = DIM // 2
    PER_KEY: tl.constexpr = HEADS // KEY_HEADS
    num_rows, length = tl.load(cache_ptr + 1), tl.load(cache_ptr + 2).to(tl.int32)
    share = tl.cdiv(tl.cdiv(length, BLOCK), splits) * BLOCK
    active = tl.maximum(tl.cdiv(length, tl.maximum(share, 1)), 1)
    if split >= active:
        return
    half = tl.arange(0, WIDE)[None, :]
    is_half = half < HALF
    member = tl.arange(0, GROUP)[:, None]
    head = key_head * PER_KEY + member
    is_query = (member < PER_KEY) & is_half
    cos, sin = halves_at(cos_ptr, half, is_half, HALF), halves_at(sin_ptr, half, is_half, HALF)
    query = halves_at(projected_ptr + head * DIM, half, is_query, HALF)
    if NORM:
        query = normalised(query, halves_at(query_norm_ptr, half, is_half, HALF), eps, DIM)
    query_low, query_high = rotated(query, cos, sin)
    # An address that a graph reads when it runs: so it serves any cache.
    memory = tl.load(cache_ptr).to(tl.pointer_type(projected_ptr.dtype.element_ty))
    keys = tl.multiple_of(memory, 16) + (2 * layer * KEY_HEADS + key_head) * num_rows * DIM
    values = keys + KEY_HEADS * num_rows * DIM
    largest = tl.full([GROUP], float("-inf"), tl.float32)
    weights = tl.zeros([GROUP], tl.float32)
    sums_low, sums_high = tl.zeros([GROUP, WIDE], tl.float32), tl.zeros([GROUP, WIDE], tl.float32)
    if split == 0:
        # The token itself.
        key = halves_at(projected_ptr + (HEADS + key_head) * DIM, half, is_half, HALF)
        if NORM:
            key = normalised(key, halves_at(key_norm_ptr, half, is_half, HALF), eps, DIM)
        key_low, key_high = rotated(key, cos, sin)
        value_low, value_high = halves_at(projected_ptr + (HEADS + KEY_HEADS + key_head) * DIM, half, is_half, HALF)
        row = length.to(tl.int64) * DIM + half
        tl.store(keys + row, key_low, mask=is_half)
        tl.store(keys + row + HALF, key_high, mask=is_half)
        tl.store(values + row, value_low, mask=is_half)
        tl.store(values + row + HALF, value_high, mask=is_half)
        score = tl.sum(query_low.to(tl.float32) * key_low.to(tl.float32), 1)
        largest = (score + tl.sum(query_high.to(tl.float32) * key_high.to(tl.float32), 1)) * scaling
        weights += 1.0
        sums_low += value_low.to(tl.float32)
        sums_high += value_high.to(tl.float32)
    for start in range(split * share, tl.minimum((split + 1) * share, length), BLOCK):
        token = start + tl.arange(0, BLOCK)
        row = token.to(tl.int64)[:, None] * DIM + half
        is_row = (token < length)[:, None] & is_half
        key_low = tl.load(keys + row, mask=is_row, other=0)
        key_high = tl.load(keys + row + HALF, mask=is_row, other=0)
        value_low = tl.load(values + row, mask=is_row, other=0)
        value_high = tl.load(values + row + HALF, mask=is_row, other=0)
        score = tl.dot(query_low, tl.trans(key_low), input_precision=PRECISION)
        score = tl.dot(query_high, tl.trans(key_high), score, input_precision=PRECISION) * scaling
        score = tl.where((token < length)[None, :], score, float("-inf"))
        new_largest = tl.maximum(largest, tl.max(score, 1))
        fade = tl.exp(largest - new_largest)
        weight = tl.exp(score - new_largest[:, None])
        weights = weights * fade + tl.sum(weight, 1)
        weight = weight.to(value_low.dtype)
        sums_low = tl.dot(weight, value_low, sums_low * fade[:, None], input_precision=PRECISION)
        sums_high = tl.dot(weight, value_high, sums_high * fade[:, None], input_precision=PRECISION)
        largest = new_largest
    PLACE: tl.constexpr = DIM + 2
    is_head = member < PER_KEY
    arrived = 0
    if active > 1:
        here = partial_ptr + (head * splits + split) * PLACE
        tl.store(here + half, sums_low, mask=is_query)
        tl.store(here + HALF + half, sums_high, mask=is_query)
        tl.store(here + DIM, largest[:, None], mask=is_head)
        tl.store(here + DIM + 1, weights[:, None], mask=is_head)
        tl.debug_barrier()  # all threads have stored before one says so
        arrived = tl.atomic_add(arrived_ptr + key_head, 1, sem="acq_rel")
    if arrived < active - 1:
        return
    if active > 1:
        tl.store(arrived_ptr + key_head, 0)
        largest = tl.full([GROUP], float("-inf"), tl.float32)
        weights = tl.zeros([GROUP], tl.float32)
        sums_low, sums_high = tl.zeros([GROUP, WIDE], tl.float32), tl.zeros([GROUP, WIDE], tl.float32)
        # Always in the same order, so that the result does not depend on which program is last.
        for other in range(0, active):
            here = partial_ptr + (head * splits + other) * PLACE
            at = tl.load(here + DIM, mask=is_head, other=0, cache_modifier=".cg")
            more = tl.load(here + DIM + 1, mask=is_head, other=0, cache_modifier=".cg")
            low = tl.load(here + half, mask=is_query, other=0, cache_modifier=".cg")
            high = tl.load(here + HALF + half, mask=is_query, other=0, cache_modifier=".cg")
            new_largest = tl.maximum(largest, tl.max(at, 1))
            fade, rise = tl.exp(largest - new_largest), tl.exp(tl.max(at, 1) - new_largest)
            weights = weights * fade + tl.sum(more, 1) * rise
            sums_low = sums_low * fade[:, None] + low * rise[:, None]
            sums_high = sums_high * fade[:, None] + high * rise[:, None]
            largest = new_largest
    low = (sums_low / weights[:, None]).to(y_ptr.dtype.element_ty)
    high = (sums_high / weights[:, None]).to(y_ptr.dtype.element_ty)
    tl.store(y_ptr + head * DIM + half, low, mask=is_query)
    tl.store(y_ptr + head * DIM + HALF + half, high, mask=is_query)
