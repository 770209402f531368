"""Triton kernels for the heads of softmax attention: rotary embedding, spike counts of queries, INT8 keys and values.

Each gives the bits of its plain form: `rope.rotate`, `AdaptiveThreshold` and `int8.quantize_tokens`.
"""

# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportOperatorIssue=false
# pyright: reportIndexIssue=false, reportAttributeAccessIssue=false, reportCallIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ....coding.kernels import interpreting
from ....neuro import KernelRule
from ....neuro.threshold_triton import block_statistic, count_of, threshold_of

# Numbers of a program.
_BLOCK = 2048


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return `rope.rotate`.

    Args:
        x: [B, L, H, D].
        cos: [B or 1, L, 1, D].
        sin: [B or 1, L, 1, D].
    """
    x = x.contiguous()
    y = torch.empty_like(x)
    batch, length, num_heads, dim = x.shape
    cos, sin = (part.to(x.dtype).contiguous() for part in (cos, sin))
    half = triton.next_power_of_2(dim // 2)
    rows = max(_BLOCK // (2 * half), 1)
    rotate_rows[triton.cdiv(batch * length * num_heads, rows),](
        x, cos, sin, y, batch * length * num_heads, cos.shape[0] * length * num_heads, num_heads,
        HALF=dim // 2, WIDE=half, ROWS=rows, enable_fp_fusion=False,
    )  # fmt: skip
    return y


def count(x: Tensor, rule: KernelRule) -> tuple[Tensor, Tensor, Tensor]:
    """Return spike counts, int16 [..., D], thresholds, float32 [..., 1], and int32 [...], not 0 where a row has none.

    Args:
        x: queries, [..., D].
        rule: of a neuron with counts below 2^15.
    """
    x = x.contiguous()
    counts = torch.empty(x.shape, dtype=torch.int16, device=x.device)
    threshold = torch.empty(*x.shape[:-1], 1, dtype=torch.float32, device=x.device)
    failed = torch.empty(x.shape[:-1], dtype=torch.int32, device=x.device)
    num_rows, dim = failed.numel(), x.shape[-1]
    wide = triton.next_power_of_2(dim)
    rows = max(_BLOCK // wide, 1)
    count_rows[triton.cdiv(num_rows, rows),](
        x, counts, threshold, failed, num_rows, *rule.numbers,
        RULE=rule.number, FMA=not interpreting(), DIM=dim, WIDE=wide, ROWS=rows, enable_fp_fusion=False,
    )  # fmt: skip
    return counts, threshold, failed


def quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return `int8.quantize_tokens`.

    Args:
        x: keys or values, [..., D].
    """
    x = x.contiguous()
    codes = torch.empty(x.shape, dtype=torch.int8, device=x.device)
    scale = torch.empty(*x.shape[:-1], 1, dtype=torch.float32, device=x.device)
    num_rows, dim = scale.numel(), x.shape[-1]
    wide = triton.next_power_of_2(dim)
    rows = max(_BLOCK // wide, 1)
    quantize_rows[triton.cdiv(num_rows, rows),](
        x, codes, scale, num_rows, DIM=dim, WIDE=wide, ROWS=rows, enable_fp_fusion=False
    )
    return codes, scale


@triton.jit
def rotate_rows(
    x_ptr,  # [rows, 2 * HALF], `num_heads` rows a token
    cos_ptr,  # [tokens, 2 * HALF]
    sin_ptr,
    y_ptr,
    num_rows,
    num_angles,  # rows after which the angles repeat
    num_heads,
    HALF: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Rotate ROWS heads, rounding after each step; grid [blocks of rows]."""
    row = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    channel = tl.arange(0, WIDE)[None, :]
    inside = (row < num_rows) & (channel < HALF)
    here = row * (2 * HALF) + channel
    angle = row % num_angles // num_heads * (2 * HALF) + channel
    low, high = tl.load(x_ptr + here, mask=inside, other=0), tl.load(x_ptr + here + HALF, mask=inside, other=0)
    cos_low, cos_high = tl.load(cos_ptr + angle, mask=inside, other=0), tl.load(cos_ptr + angle + HALF, mask=inside)
    sin_low, sin_high = tl.load(sin_ptr + angle, mask=inside, other=0), tl.load(sin_ptr + angle + HALF, mask=inside)
    first = rounded_product(low, cos_low) - rounded_product(high, sin_low)
    second = rounded_product(high, cos_high) + rounded_product(low, sin_high)
    tl.store(y_ptr + here, first.to(low.dtype), mask=inside)
    tl.store(y_ptr + here + HALF, second.to(low.dtype), mask=inside)


@triton.jit
def rounded_product(x, y):
    """Return x * y, rounded to their dtype, as float32."""
    return (x.to(tl.float32) * y.to(tl.float32)).to(x.dtype).to(tl.float32)


@triton.jit
def count_rows(
    x_ptr,  # [rows, DIM]
    count_ptr,  # int16, the same
    threshold_ptr,  # float32, [rows]
    failed_ptr,  # int32, [rows]
    num_rows,
    a,  # the rule's numbers
    b,
    c,
    quiet,
    RULE: tl.constexpr,
    FMA: tl.constexpr,
    DIM: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Count the spikes of ROWS rows; grid [blocks of rows]."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, WIDE)[None, :]
    here = row[:, None] * DIM + channel
    inside = (row < num_rows)[:, None] & (channel < DIM)
    x = tl.load(x_ptr + here, mask=inside, other=0).to(tl.float32)
    threshold, fits, _ = threshold_of(block_statistic(x, RULE, 1), DIM, a, b, c, RULE)
    count = tl.where(fits[:, None], count_of(x, threshold[:, None], quiet, SMALL=True, FMA=FMA), 0)
    tl.store(count_ptr + here, count.to(tl.int16), mask=inside)
    tl.store(threshold_ptr + row, tl.where(fits, threshold, float("nan")), mask=row < num_rows)
    tl.store(failed_ptr + row, (fits == 0).to(tl.int32), mask=row < num_rows)


@triton.jit
def quantize_rows(
    x_ptr,  # [rows, DIM]
    code_ptr,  # int8, the same
    scale_ptr,  # float32, [rows]
    num_rows,
    DIM: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Quantise ROWS rows; grid [blocks of rows]."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, WIDE)[None, :]
    here = row[:, None] * DIM + channel
    inside = (row < num_rows)[:, None] & (channel < DIM)
    x = tl.load(x_ptr + here, mask=inside, other=0).to(tl.float32)
    scale = tl.div_rn(tl.max(tl.abs(x), 1), 127.0)
    scale = tl.minimum(tl.maximum(scale, 1e-5), 1e4)
    code = count_of(x, scale[:, None], 0.0, SMALL=True, FMA=False)
    code = tl.minimum(tl.maximum(code, -128), 127)
    tl.store(code_ptr + here, code.to(tl.int8), mask=inside)
    tl.store(scale_ptr + row, scale, mask=row < num_rows)
