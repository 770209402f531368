"""A Triton kernel for the distance of two distributions over the vocabulary, and its gradient, in one reading."""

# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportOperatorIssue=false
# pyright: reportIndexIssue=false, reportAttributeAccessIssue=false, reportCallIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# Logits of a row that a program reads at once.
_BLOCK = 4096


def divergence(found: Tensor, wanted: Tensor, temperature: float, share: float) -> tuple[Tensor, Tensor]:
    """Return KL(softmax(wanted / T) || softmax(found / T)) * T^2 of each row, and the gradient of their sum.

    Args:
        found: logits, [rows, V].
        wanted: logits of the teacher, [rows, V].
        temperature: T.
        share: factor of the gradient.
    Returns:
        float32 [rows], and the gradient of share * the sum by `found`, in its dtype, [rows, V].
    """
    found, wanted = found.contiguous(), wanted.contiguous()
    gradient = torch.empty_like(found)
    num_rows, num_logits = found.shape
    rows = torch.empty(num_rows, dtype=torch.float32, device=found.device)
    block = min(_BLOCK, triton.next_power_of_2(num_logits))
    diverge_rows[num_rows,](
        found, wanted, gradient, rows, num_logits, 1 / temperature, share * temperature, temperature**2,
        BLOCK=block, num_warps=8,
    )  # fmt: skip
    return rows, gradient


@triton.jit
def diverge_rows(
    found_ptr,  # [rows, num_logits]
    wanted_ptr,
    gradient_ptr,
    loss_ptr,  # float32, [rows]
    num_logits,
    inverse,  # 1 / temperature
    factor,  # of the gradient
    scale,  # of the loss
    BLOCK: tl.constexpr,
):
    """Compare one row; grid [rows]."""
    start = tl.program_id(0).to(tl.int64) * num_logits
    lanes = tl.arange(0, BLOCK)
    # Largest logit and sum of exponentials of every lane, put together after the loop.
    high_found = tl.full([BLOCK], -float("inf"), tl.float32)
    high_wanted = tl.full([BLOCK], -float("inf"), tl.float32)
    sum_found = tl.zeros([BLOCK], tl.float32)
    sum_wanted = tl.zeros([BLOCK], tl.float32)
    for first in range(0, num_logits, BLOCK):
        inside = first + lanes < num_logits
        found = tl.load(found_ptr + start + first + lanes, mask=inside, other=-1e30).to(tl.float32) * inverse
        wanted = tl.load(wanted_ptr + start + first + lanes, mask=inside, other=-1e30).to(tl.float32) * inverse
        highest = tl.maximum(high_found, found)
        sum_found = sum_found * tl.exp(high_found - highest) + tl.exp(found - highest)
        high_found = highest
        highest = tl.maximum(high_wanted, wanted)
        sum_wanted = sum_wanted * tl.exp(high_wanted - highest) + tl.exp(wanted - highest)
        high_wanted = highest
    most = tl.max(high_found, 0)
    log_found = most + tl.log(tl.sum(sum_found * tl.exp(high_found - most), 0))
    most = tl.max(high_wanted, 0)
    log_wanted = most + tl.log(tl.sum(sum_wanted * tl.exp(high_wanted - most), 0))
    loss = tl.zeros([BLOCK], tl.float32)
    for first in range(0, num_logits, BLOCK):
        inside = first + lanes < num_logits
        found = tl.load(found_ptr + start + first + lanes, mask=inside, other=0).to(tl.float32) * inverse - log_found
        wanted = tl.load(wanted_ptr + start + first + lanes, mask=inside, other=0).to(tl.float32) * inverse - log_wanted
        probability = tl.exp(wanted)
        loss += tl.where(inside, probability * (wanted - found), 0.0)
        gradient = (tl.exp(found) - probability) * factor
        tl.store(gradient_ptr + start + first + lanes, gradient.to(gradient_ptr.dtype.element_ty), mask=inside)
    tl.store(loss_ptr + tl.program_id(0), tl.sum(loss, 0) * scale)
