"""Triton kernel for the dense projections of a decoder's token: rows of float weights times one input.

A product of cuBLAS would do as well, but not in a CUDA graph that is kept: its workspace is not the graph's. PyTorch
frees it when anything in the process is compiled with CUDA graphs, and the next replay ends in a launch failure.
"""

# pyright: reportCallIssue=false, reportArgumentType=false, reportIndexIssue=false
# pyright: reportOperatorIssue=false, reportAttributeAccessIssue=false

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .job import cdiv, power_of_two

# Outputs of a program, and the most inputs that it reads at a time.
_ROWS, _MOST_INPUTS = 4, 4096


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor, *, residual: bool = False) -> None:
    """Fill y with weight @ x + bias, or add that to it.

    Args:
        x: [1, inputs], contiguous.
        weight: [outputs, inputs], contiguous.
        bias: [outputs].
        y: [1, outputs], of which the outputs may be a part of a row.
        residual: whether y is added to.
    """
    num_outputs, num_inputs = weight.shape
    block = min(power_of_two(num_inputs), _MOST_INPUTS)
    multiply_rows[(cdiv(num_outputs, _ROWS),)](
        x,
        weight,
        x if bias is None else bias,
        y,
        num_inputs,
        num_outputs,
        BIAS=bias is not None,
        RESIDUAL=residual,
        ROWS=_ROWS,
        BLOCK=block,
        num_warps=8 if block >= 2048 else 4,
    )


@triton.jit
def multiply_rows(
    x_ptr,  # [inputs]
    weight_ptr,  # [outputs, inputs]
    bias_ptr,  # [outputs], if BIAS
    y_ptr,  # [outputs]
    num_inputs,
    num_outputs,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Multiply ROWS rows, in float32, rounded once, and once more where the residual is added; as PyTorch does."""
    output = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    is_output = output < num_outputs
    row = weight_ptr + output.to(tl.int64)[:, None] * num_inputs
    total = tl.zeros([ROWS, BLOCK], tl.float32)
    for start in range(0, num_inputs, BLOCK):
        channel = start + tl.arange(0, BLOCK)
        is_channel = channel < num_inputs
        x = tl.load(x_ptr + channel, mask=is_channel, other=0).to(tl.float32)
        w = tl.load(row + channel[None, :], mask=is_output[:, None] & is_channel[None, :], other=0)
        total += w.to(tl.float32) * x[None, :]
    y = tl.sum(total, 1)
    if BIAS:
        y += tl.load(bias_ptr + output, mask=is_output, other=0).to(tl.float32)
    dtype: tl.constexpr = y_ptr.dtype.element_ty
    if RESIDUAL:
        y = tl.load(y_ptr + output, mask=is_output, other=0).to(tl.float32) + y.to(dtype).to(tl.float32)
    tl.store(y_ptr + output, y.to(dtype), mask=is_output)
