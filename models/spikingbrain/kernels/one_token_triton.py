"""A Triton kernel for softmax attention of one new token of each text, over columns that have their place already."""

# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportOperatorIssue=false
# pyright: reportIndexIssue=false, reportAttributeAccessIssue=false, reportCallIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# Columns of a step. Products on tensor cores have at least 16 rows and columns.
_COLUMNS, _LEAST = 64, 16


def attend(q: Tensor, keys: Tensor, values: Tensor, position: Tensor) -> Tensor:
    """Return softmax(D^-0.5 * q k) v over the columns up to a position that the GPU knows.

    Args:
        q: queries, [B, H, 1, D].
        keys: [B, Hk, N, D], contiguous.
        values: [B, Hk, N, D], contiguous.
        position: the last column that is seen, int64 [1].
    Returns:
        [B, H, 1, D] in the dtype of q.
    """
    q = q.contiguous()
    o = torch.empty_like(q)
    batch, num_heads, _, dim = q.shape
    num_columns = keys.shape[2]
    shared = num_heads // keys.shape[1]
    attend_columns[batch * keys.shape[1],](
        q, keys, values, o, position, num_columns, dim**-0.5,
        SHARED=shared, ROWS=max(triton.next_power_of_2(shared), _LEAST), DIM=dim,
        WIDE=max(triton.next_power_of_2(dim), _LEAST), COLUMNS=_COLUMNS, num_warps=4,
    )  # fmt: skip
    return o


@triton.jit
def attend_columns(
    q_ptr,  # [texts * key heads, SHARED, DIM]
    k_ptr,  # [texts * key heads, num_columns, DIM]
    v_ptr,
    o_ptr,  # as q
    position_ptr,
    num_columns,
    scale,
    SHARED: tl.constexpr,
    ROWS: tl.constexpr,
    DIM: tl.constexpr,
    WIDE: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Attend with the SHARED query heads of a key head; grid [texts * key heads]."""
    program = tl.program_id(0).to(tl.int64)
    row, channel, column = tl.arange(0, ROWS), tl.arange(0, WIDE), tl.arange(0, COLUMNS)
    of_q = program * SHARED * DIM + row[:, None] * DIM + channel[None, :]
    is_q = (row < SHARED)[:, None] & (channel < DIM)[None, :]
    q = tl.load(q_ptr + of_q, mask=is_q, other=0)
    highest = tl.full([ROWS], -float("inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    o = tl.zeros([ROWS, WIDE], tl.float32)
    end = (tl.load(position_ptr) + 1).to(tl.int32)
    for first in range(0, end, COLUMNS):
        here = first + column
        place = program * num_columns * DIM + here[:, None] * DIM + channel[None, :]
        inside = (here < end)[:, None] & (channel < DIM)[None, :]
        k = tl.load(k_ptr + place, mask=inside, other=0)
        v = tl.load(v_ptr + place, mask=inside, other=0)
        scores = tl.where((here < end)[None, :], tl.dot(q, k.trans(), input_precision="ieee") * scale, -float("inf"))
        most = tl.maximum(highest, tl.max(scores, 1))
        weight = tl.exp(scores - most[:, None])
        kept = tl.exp(highest - most)
        total = total * kept + tl.sum(weight, 1)
        o = o * kept[:, None] + tl.dot(weight.to(v.dtype), v, input_precision="ieee")
        highest = most
    tl.store(o_ptr + of_q, (o / total[:, None]).to(o_ptr.dtype.element_ty), mask=is_q)
