"""Triton kernels for what stands between a layer's products: norm, residual, SwiGLU's product.

They round where PyTorch does, so they differ from the plain forms only by the order of a norm's sum.
"""

# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportOperatorIssue=false
# pyright: reportIndexIssue=false, reportAttributeAccessIssue=false, reportCallIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# Numbers of a program.
_BLOCK = 2048


def rms_norm(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the norm of x, or of x + residual, and that sum (or x); in the dtype of the residual (or of x).

    Args:
        x: [*tokens, dim].
        weight: [dim].
        eps: added to the mean square.
        residual: [*tokens, dim].
    """
    x = x.contiguous()
    stream = x if residual is None else residual.contiguous()
    y = torch.empty_like(stream)
    total = stream if residual is None else torch.empty_like(stream)
    dim = x.shape[-1]
    num_tokens = x.numel() // dim
    wide = triton.next_power_of_2(dim)
    rows = max(_BLOCK // wide, 1)
    normalise[triton.cdiv(num_tokens, rows),](
        x, stream, weight, y, total, num_tokens, eps, DIM=dim, WIDE=wide, ROWS=rows, RESIDUAL=residual is not None,
        num_warps=4 if wide <= 4096 else 8,
    )  # fmt: skip
    return y, total


def silu_product(gate: Tensor, up: Tensor) -> Tensor:
    """Return silu(gate) * up.

    Args:
        gate: of any shape.
        up: of the same shape and dtype.
    """
    gate, up = gate.contiguous(), up.contiguous()
    y = torch.empty_like(gate)
    multiply_silu[triton.cdiv(y.numel(), _BLOCK),](gate, up, y, y.numel(), BLOCK=_BLOCK, num_warps=4)
    return y


@triton.jit
def normalise(
    x_ptr,  # [tokens, dim]
    residual_ptr,
    weight_ptr,  # [dim]
    y_ptr,
    total_ptr,
    num_tokens,
    eps,
    DIM: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    RESIDUAL: tl.constexpr,
):
    """Normalise ROWS tokens; grid [blocks of tokens]."""
    token = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, WIDE)[None, :]
    here = token[:, None] * DIM + channel
    inside = (token < num_tokens)[:, None] & (channel < DIM)
    x = tl.load(x_ptr + here, mask=inside, other=0).to(tl.float32)
    if RESIDUAL:
        x += tl.load(residual_ptr + here, mask=inside, other=0).to(tl.float32)
        tl.store(total_ptr + here, x.to(total_ptr.dtype.element_ty), mask=inside)
    inverse = tl.rsqrt(tl.sum(x * x, 1) / DIM + eps)[:, None]
    weight = tl.load(weight_ptr + channel, mask=channel < DIM, other=0).to(tl.float32)
    tl.store(y_ptr + here, (x * inverse * weight).to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def multiply_silu(gate_ptr, up_ptr, y_ptr, num, BLOCK: tl.constexpr):
    """Multiply BLOCK numbers, with silu rounded before the product; grid [blocks]."""
    here = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    gate = tl.load(gate_ptr + here, mask=here < num, other=0).to(tl.float32)
    up = tl.load(up_ptr + here, mask=here < num, other=0).to(tl.float32)
    dtype: tl.constexpr = y_ptr.dtype.element_ty
    silu = (gate / (1.0 + tl.exp(-gate))).to(dtype).to(tl.float32)
    tl.store(y_ptr + here, (silu * up).to(dtype), mask=here < num)
