"""Triton kernels of mode `count`: the integer-collapsed form. INT8 counts times INT8 weights on tensor cores.

`count_spikes` finds threshold and counts of a token and packs them to INT8. A count beyond INT8 is low + 256 * high:
the low byte goes the same way as the others, the rare high parts go to a list. `multiply` adds their rows to the
product's INT32 sums, and rescales.
"""

# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportOperatorIssue=false
# pyright: reportIndexIssue=false, reportAttributeAccessIssue=false, reportCallIssue=false

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from ...coding.kernels import interpreting
from ...neuro.threshold_triton import COUNTED, block_statistic, count_of, threshold_of
from .job import Job, cdiv, num_processors, power_of_two
from .one_pass import current_pass
from .weights import columns_of, rows_of


class Settings(NamedTuple):
    """Launch settings of mode `count`: the block that a program computes."""

    tokens: int
    outputs: int
    inputs: int
    warps: int
    stages: int


_MANY = [Settings(128, 256, 128, 8, 4), Settings(256, 128, 128, 8, 4), Settings(128, 128, 128, 8, 4)]
_FEW = [Settings(64, 64, 128, 4, 5), Settings(64, 128, 128, 4, 5), Settings(64, 32, 256, 4, 4)]


def settings_for(job: Job) -> list[Settings]:
    """Return the launch settings to choose from."""
    if interpreting():
        return [Settings(32, 128, 128, 1, 1)]
    return _MANY if len(job.x) > 64 else _FEW


class Plan(NamedTuple):
    """A job with its weights in the orders in which they are read."""

    settings: Settings
    job: Job
    rows: Tensor
    columns: Tensor

    def run(self) -> None:
        """Fill job.y."""
        _multiply(self)


def plan_for(settings: Settings, job: Job) -> Plan:
    """Bring the weights into order."""
    return Plan(settings, job, rows_of(job.weight), columns_of(job.weight))


def run(settings: Settings, job: Job) -> None:
    """Fill job.y."""
    plan_for(settings, job).run()


def _multiply(plan: Plan) -> None:
    settings, job, rows, columns = plan
    y, high_capacity, scale, bias = job.y, job.high_capacity, job.scale, job.bias
    num_tokens, num_outputs, stride = len(job.x), len(job.weight), columns.shape[1]
    low, threshold, num_high, channel, high = counts_of(job, stride)
    blocks = cdiv(num_tokens, settings.tokens) * cdiv(num_outputs, settings.outputs)
    num_programs = min(blocks, num_processors(y.device))
    multiply[num_programs,](
        TensorDescriptor.from_tensor(low, [settings.tokens, settings.inputs]),
        TensorDescriptor.from_tensor(columns, [settings.outputs, settings.inputs]),
        rows,
        threshold,
        threshold if scale is None else scale,
        threshold if bias is None else bias,
        num_high,
        channel,
        high,
        y,
        num_tokens,
        num_outputs,
        stride,
        rows.shape[1],
        high_capacity,
        num_programs,
        RESCALE=scale is not None,
        BIAS=bias is not None,
        TOKENS=settings.tokens,
        OUTPUTS=settings.outputs,
        INPUTS=settings.inputs,
        num_warps=settings.warps,
        num_stages=settings.stages,
        enable_fp_fusion=False,
    )


class Counts(NamedTuple):
    """Spike counts of tokens, packed; see `count_spikes`."""

    low: Tensor
    threshold: Tensor
    num_high: Tensor
    channel: Tensor
    high: Tensor


def counts_of(job: Job, stride: int) -> Counts:
    """Return the counts of a job's tokens: those of the layer before, if it had the same input in the same pass."""
    shared, key = current_pass(), (job.rule, stride, job.high_capacity)
    if shared is None or job.source is None or job.failed is None:
        return _count(job, stride)
    known = shared.found_of(job.source, key)
    if known is None:
        known = _count(job, stride), job.failed
        shared.keep(job.source, key, known)
    elif known[1] is not job.failed:
        job.failed.copy_(known[1])
    return known[0]


def _count(job: Job, stride: int) -> Counts:
    x, rule, num_tokens = job.x, job.rule, len(job.x)
    low = torch.empty(num_tokens, stride, dtype=torch.int8, device=x.device)
    threshold = torch.empty(num_tokens, dtype=torch.float32, device=x.device)
    num_high = torch.empty(num_tokens, dtype=torch.int32, device=x.device)
    channel, high = torch.empty(2, num_tokens, job.high_capacity, dtype=torch.int32, device=x.device)
    block = power_of_two(stride)
    count_spikes[num_tokens,](
        x,
        low,
        threshold,
        num_high,
        channel,
        high,
        num_high if job.failed is None else job.failed,
        x.shape[1],
        stride,
        job.high_capacity,
        *rule.numbers,
        RULE=rule.number,
        FMA=not interpreting(),  # the interpreter's fma rounds twice
        BLOCK=block,
        num_warps=2 if block <= 4096 else 16,
        enable_fp_fusion=False,
    )
    return Counts(low, threshold, num_high, channel, high)


@triton.jit
def count_spikes(
    x_ptr,  # activations or int32 counts, [tokens, inputs]
    low_ptr,  # int8, [tokens, stride], padded with zeros
    threshold_ptr,  # float32, [tokens]
    num_high_ptr,  # int32, [tokens]
    channel_ptr,  # int32, [tokens, num_places]
    high_ptr,  # int32, [tokens, num_places]
    failed_ptr,  # int32, [tokens]
    num_inputs,
    stride,
    num_places,
    a,  # the rule's numbers
    b,
    c,
    quiet,
    RULE: tl.constexpr,  # COUNTED if x holds counts
    FMA: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Count and pack a token; grid [tokens]."""
    token = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + token * num_inputs + channel, mask=channel < num_inputs, other=0)
    if RULE == COUNTED:
        count = x
        some_high = True
    else:
        x = x.to(tl.float32)
        largest = tl.max(tl.abs(x), 0)
        threshold, fits, _ = threshold_of(block_statistic(x, RULE, 0), num_inputs, a, b, c, RULE)
        count = tl.where(fits, count_of(x, threshold, quiet, SMALL=True, FMA=FMA), 0)
        some_high = largest > 127 * threshold
        tl.store(threshold_ptr + token, tl.where(fits, threshold, float("nan")))
        tl.store(failed_ptr + token, (fits == 0).to(tl.int32))
    tl.store(low_ptr + token * stride + channel, count.to(tl.int8), mask=channel < stride)
    num_high = 0
    if some_high:
        high = count + 128 >> 8
        is_high = (high != 0).to(tl.int32)
        num_high = tl.sum(is_high, 0)
        place = token * num_places + tl.cumsum(is_high, 0) - is_high
        tl.store(channel_ptr + place, channel, mask=is_high > 0)
        tl.store(high_ptr + place, high, mask=is_high > 0)
    tl.store(num_high_ptr + token, num_high)


@triton.jit
def multiply(
    low,  # descriptor of int8 [tokens, stride], blocks [TOKENS, INPUTS]
    columns,  # descriptor of int8 weights [outputs, stride], blocks [OUTPUTS, INPUTS]
    rows_ptr,  # int8 weights, [inputs, row_stride]
    threshold_ptr,  # float32, [tokens]
    scale_ptr,  # float32, [outputs]
    bias_ptr,  # [outputs], or scale_ptr again
    num_high_ptr,  # as above
    channel_ptr,
    high_ptr,
    y_ptr,  # [tokens, outputs]: int32 sums, or rescaled activations
    num_tokens,
    num_outputs,
    num_inputs,
    row_stride,
    num_places,
    num_programs,
    RESCALE: tl.constexpr,
    BIAS: tl.constexpr,
    TOKENS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
):
    """Multiply, rescale; a program takes every num_programs-th tile of the result; grid [num_programs]."""
    num_token_tiles = tl.cdiv(num_tokens, TOKENS)
    num_output_tiles = tl.cdiv(num_outputs, OUTPUTS)
    for tile in tl.range(tl.program_id(0), num_token_tiles * num_output_tiles, num_programs, flatten=True):
        # Eight tiles of tokens share the weights that are in the cache.
        width = 8 * num_output_tiles
        first = tile // width * 8
        height = tl.minimum(num_token_tiles - first, 8)
        token_tile = first + tile % height
        output_tile = tile % width // height
        total = tl.zeros([TOKENS, OUTPUTS], tl.int32)
        for i in range(0, tl.cdiv(num_inputs, INPUTS)):
            a = low.load([token_tile * TOKENS, i * INPUTS])
            b = columns.load([output_tile * OUTPUTS, i * INPUTS])
            total = tl.dot(a, b.T, total, out_dtype=tl.int32)
        token = token_tile * TOKENS + tl.arange(0, TOKENS)
        output = output_tile * OUTPUTS + tl.arange(0, OUTPUTS)
        is_token = token < num_tokens
        is_output = output < num_outputs
        num_high = tl.load(num_high_ptr + token, mask=is_token, other=0)
        for i in range(0, tl.max(num_high, 0)):
            is_high = i < num_high
            place = token.to(tl.int64) * num_places + i
            row = tl.load(channel_ptr + place, mask=is_high, other=0).to(tl.int64) * row_stride
            high = tl.load(high_ptr + place, mask=is_high, other=0)
            w = tl.load(rows_ptr + row[:, None] + output[None, :], mask=is_high[:, None] & is_output[None, :], other=0)
            total += w.to(tl.int32) * (high << 8)[:, None]
        if RESCALE:
            scale = tl.load(scale_ptr + output, mask=is_output, other=0)
            threshold = tl.load(threshold_ptr + token, mask=is_token, other=0)
            y = total.to(tl.float32) * scale[None, :] * threshold[:, None]
            if BIAS:
                y += tl.load(bias_ptr + output, mask=is_output, other=0).to(tl.float32)[None, :]
        else:
            y = total
        here = y_ptr + token[:, None].to(tl.int64) * num_outputs + output[None, :]
        tl.store(here, y.to(y_ptr.dtype.element_ty), mask=is_token[:, None] & is_output[None, :])
