"""Softmax attention, over a sliding window or the whole text, with memory that grows with the window only.

    scores_ij = D^-0.5 * q_i k_j, for j <= i and i - j < window        o_i = sum_j softmax(scores_i)_j v_j

Letters: B batch, L query tokens, N key columns, H query heads, Hk key/value heads, r = H / Hk query heads per key/value
head, D channels. Attention runs over blocks of queries; each block gets only the columns in its window.

Source: SpikingBrain (arXiv:2509.05276), eq. 12 and 13.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from .kernels import kernels_for

# Queries whose scores are in memory at once.
_BLOCK = 512
# float32 represents every integer up to this one.
_EXACT_FLOAT32 = 2**24
# All backends but cuDNN; see `any_length`.
_ANY_LENGTH = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]

# (query tensors [B, H, L, .], column tensors [B, Hk, N, .], mask of what each query sees or None) -> [B, H, L, D]
Core: TypeAlias = Callable[[tuple[Tensor, ...], tuple[Tensor, ...], Tensor | None], Tensor]


def attend(
    query: tuple[Tensor, ...],
    columns: tuple[Tensor, ...],
    core: Core,
    *,
    window: int | None = None,
    num_sinks: int = 0,
    causal: bool = True,
    valid: Tensor | None = None,
    mask: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Let each query attend to the columns in its window.

    The columns are the sinks, which every query sees, followed by tokens in order, the last L of which belong to the
    queries. A single query sees all columns that are passed, in any order.

    Args:
        query: tensors [B, H, L, .], passed to core.
        columns: tensors [B, Hk, N, .], passed to core.
        core: `float_attention` or `integer_attention`.
        window: number of columns that a query sees, including its own; None for its own and all before it.
        num_sinks: number of sinks among the columns; they come first.
        causal: False lets every query see every column.
        valid: bool, [B, N], False for padding, which no other token sees; None if there is no padding.
        mask: bool, [B or 1, 1, L, N], True where a query sees a column, in the place of all of the above; a query that
            sees nothing, as padding does, is shown everything. None for the above.
        dtype: that the caller turns the result into; kernels round the weights of values to it.
    Returns:
        [B, H, L, D].
    """
    num_queries, num_columns = query[0].shape[2], columns[0].shape[2]
    if mask is not None:
        blocks = [slice(begin, begin + _BLOCK) for begin in range(0, num_queries, _BLOCK)]
        parts = [core(tuple(x[:, :, b] for x in query), columns, _never_empty(mask[:, :, b])) for b in blocks]
        return torch.cat(parts, 2)
    if num_queries == 1 or not causal:
        return core(query, columns, None if valid is None else _never_empty(valid[:, None, None]))
    whole = valid is None and num_queries == num_columns and (window is None or window >= num_columns)
    if whole and core is float_attention:
        (q,), (k, v) = query, columns
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    is_square = columns[0].shape[-1] == columns[len(columns) // 2].shape[-1]  # keys as wide as values
    fits = core is float_attention or (core is integer_attention and query[0].dtype == torch.int16)
    if is_square and valid is None and fits:
        kernels = kernels_for("attention", *(x for x in (*query, *columns) if x.is_floating_point()))
        if kernels is not None:
            return kernels.run(query, columns, window, num_sinks, dtype or query[-1].dtype)
    first_query = num_columns - num_queries
    outputs = []
    for begin in range(first_query, num_columns, _BLOCK):
        end = min(begin + _BLOCK, num_columns)
        oldest = num_sinks if window is None else max(num_sinks, begin - window + 1)
        device = query[0].device
        i = torch.arange(begin, end, device=device)[:, None]
        j = torch.cat([torch.arange(num_sinks, device=device), torch.arange(oldest, end, device=device)])
        near = j <= i if window is None else (j <= i) & (i - j < window)
        mask = (near | (j < num_sinks))[None, None]
        if valid is not None:
            mask = (mask & valid[:, None, None, j]) | (i == j)
        part = tuple(x[:, :, begin - first_query : end - first_query] for x in query)
        outputs.append(core(part, tuple(_pick(x, num_sinks, oldest, end) for x in columns), mask))
    return torch.cat(outputs, 2)


def columns_seen(
    num_queries: int,
    num_columns: int,
    *,
    window: int | None = None,
    num_sinks: int = 0,
    causal: bool = True,
    valid: Tensor | None = None,
    mask: Tensor | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """Return how many columns each query sees in `attend`, int64 [B or 1, L]; arguments are as there.

    Padding sees what `valid` leaves, or nothing by a `mask`.

    >>> columns_seen(3, 5, window=4).tolist()
    [[3, 4, 4]]
    """
    if mask is not None:
        return mask[:, 0].sum(-1)
    j = torch.arange(num_columns, device=device)
    i = j[num_columns - num_queries :, None]
    seen = torch.ones_like(i >= j)
    if num_queries > 1 and causal:
        near = j <= i if window is None else (j <= i) & (i - j < window)
        seen = near | (j < num_sinks)
    if valid is None:
        return seen.sum(-1)[None]
    own = (i == j) if num_queries > 1 and causal else torch.zeros_like(seen)
    return ((seen & valid[:, None]) | own).sum(-1)


def any_length(device: torch.device) -> AbstractContextManager[object]:
    """Keep PyTorch's attention off cuDNN on a GPU, for calls that have one more column each time.

    cuDNN makes a new plan for every new shape, which takes about 40 ms on an H100. On other devices this does nothing,
    since the setting applies to all threads.
    """
    return sdpa_kernel(_ANY_LENGTH) if device.type == "cuda" else nullcontext()


def float_attention(query: tuple[Tensor, ...], columns: tuple[Tensor, ...], mask: Tensor | None) -> Tensor:
    """Attend in floating point: query (q,), columns (k, v)."""
    (q,), (k, v) = query, columns
    folded, mask = _fold(q, k.shape[1], mask)
    with any_length(q.device):
        return F.scaled_dot_product_attention(folded, k, v, attn_mask=mask).reshape(*q.shape[:-1], v.shape[-1])


def integer_attention(query: tuple[Tensor, ...], columns: tuple[Tensor, ...], mask: Tensor | None) -> Tensor:
    """Attend with spike counts for queries and INT8 keys and values: the products of counts and keys are exact.

    Args:
        query: count, int32 [B, H, L, D], and threshold, float32 [B, H, L, 1].
        columns: codes and scales of keys, then of values: int8 [B, Hk, N, D] and float32 [B, Hk, N, 1] each.
        mask: bool, True where a query sees a column, [B or 1, 1, L or 1, N]; None if all queries see all columns.
    Returns:
        Outputs in the threshold's dtype. The softmax and its product with the values are in floating point.
    """
    (count, threshold), (k, k_scale, v, v_scale) = query, columns
    folded, mask = _fold(count, k.shape[1], mask)
    scores = integer_product(folded, k).to(threshold.dtype) * _fold(threshold, k.shape[1], None)[0]
    scores = scores * k_scale.transpose(-1, -2) * count.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    weight = scores.softmax(-1) * v_scale.transpose(-1, -2)
    return (weight @ v.to(weight.dtype)).reshape(*count.shape[:-1], v.shape[-1])


def integer_product(count: Tensor, k: Tensor) -> Tensor:
    """Return count @ k^T for integer tensors, exactly: in float32 if no partial sum can exceed 2^24, else in float64.

    Args:
        count: spike counts, [..., L, D].
        k: INT8 codes, [..., N, D].
    """
    if count.numel() == 0 or k.numel() == 0:
        return torch.zeros(*count.shape[:-1], k.shape[-2], device=count.device)
    bound = int(count.abs().sum(-1).max()) * 128
    # On a GPU, float32 products may use TF32, which drops bits.
    exact = count.device.type == "cpu" or torch.get_float32_matmul_precision() == "highest"
    dtype = torch.float32 if bound <= _EXACT_FLOAT32 and exact else torch.float64
    with torch.autocast(count.device.type, enabled=False):
        return count.to(dtype) @ k.to(dtype).transpose(-1, -2)


def _fold(q: Tensor, num_kv_heads: int, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Stack the r query heads of a key/value head as queries, [B, Hk, r * L, .], so that keys are not copied."""
    shared = q.shape[1] // num_kv_heads
    if mask is not None and mask.shape[-2] > 1:
        mask = mask.repeat(1, 1, shared, 1)
    return q.unflatten(1, (num_kv_heads, shared)).flatten(2, 3), mask


def _pick(x: Tensor, num_sinks: int, oldest: int, end: int) -> Tensor:
    if num_sinks == 0:
        return x[:, :, oldest:end]
    return torch.cat([x[:, :, :num_sinks], x[:, :, oldest:end]], 2)


def _never_empty(mask: Tensor) -> Tensor:
    """Return the mask with empty rows set to all True, since their softmax would be NaN."""
    return mask | ~mask.any(-1, keepdim=True)
