"""Triton kernels for experts: every token is counted once, and its counts go to the weights of each of its experts.

The plain rule is the loop of `Backend.experts`. A route is a token and one of its experts. In mode `spike` a program
adds the rows of a route's active channels and reads no others; in mode `count` it multiplies counts of several routes
to one expert on tensor cores. Both take the weights of all experts by address, so a launch serves all of them, and only
routed tokens.
"""

# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportOperatorIssue=false
# pyright: reportIndexIssue=false, reportAttributeAccessIssue=false, reportCallIssue=false

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...coding.kernels import interpreting
from ...neuro import KernelRule
from ...neuro.threshold_triton import block_statistic, count_of, threshold_of
from ..base import ExpertWeights
from .job import cdiv, power_of_two
from .weights import columns_of, rows_of


class Counted(NamedTuple):
    """Tokens with their spike counts.

    Attributes:
        spikes: counts, int32 [tokens, inputs].
        threshold: float32 [tokens]; NaN where counts might not fit.
        failed: int32 [tokens], 1 there, else 0.
    """

    spikes: Tensor
    threshold: Tensor
    failed: Tensor


def count_once(x: Tensor, rule: KernelRule) -> Counted:
    """Count the spikes of tokens, [tokens, inputs], contiguous."""
    counted = Counted(
        torch.empty(x.shape, dtype=torch.int32, device=x.device),
        torch.empty(len(x), dtype=torch.float32, device=x.device),
        torch.empty(len(x), dtype=torch.int32, device=x.device),
    )
    block = power_of_two(x.shape[1])
    count_tokens[len(x),](
        x,
        *counted,
        x.shape[1],
        *rule.numbers,
        RULE=rule.number,
        FMA=not interpreting(),  # the interpreter's fma rounds twice
        BLOCK=block,
        num_warps=2 if block <= 4096 else 16,
        enable_fp_fusion=False,
    )
    return counted


def run_routes(
    mode: str, counted: Counted, row: Tensor, starts: Sequence[int], weights: Sequence[ExpertWeights], y: Tensor
) -> None:
    """Fill y, [routes, outputs], with the rescaled sums of one projection of all experts.

    Args:
        mode: "spike" or "count".
        counted: the tokens.
        row: int64 [routes]: the token of each route.
        starts: first route of each expert, and after them the number of routes.
        weights: of each expert, without groups.
        y: in the dtype of the activations.
    """
    num_outputs, num_inputs = weights[0].weight.shape
    by_row = mode == "spike"
    routes = 1 if by_row else 32 if interpreting() else 64
    matrices = [rows_of(one.weight) if by_row else columns_of(one.weight) for one in weights]
    biased = weights[0].bias is not None
    biases = [one.bias if one.bias is not None else one.scale for one in weights]
    addresses = [
        [part.data_ptr() for part in parts]
        for parts in zip(matrices, [one.scale for one in weights], biases, strict=True)
    ]
    blocks = [
        (e, first, min(first + routes, starts[e + 1]))
        for e in range(len(weights))
        for first in range(starts[e], starts[e + 1], routes)
    ]
    table = torch.tensor(addresses, dtype=torch.int64, device=y.device)
    block = torch.tensor(blocks, dtype=torch.int32, device=y.device)
    shared = (counted.spikes, counted.threshold, row, block, table, y, num_inputs, num_outputs, matrices[0].shape[1])
    kinds = {"BIAS": biased, "BIAS_TYPE": _TYPES[biases[0].dtype]}
    if by_row:
        outputs = min(power_of_two(num_outputs), 128)
        grid = (len(blocks), cdiv(num_outputs, outputs))
        add_rows_of_route[grid](*shared, **kinds, OUTPUTS=outputs, CHANNELS=32, num_warps=4, enable_fp_fusion=False)
    else:
        grid = (len(blocks), cdiv(num_outputs, 128))
        multiply_routes[grid](
            *shared, **kinds, ROUTES=routes, OUTPUTS=128, CHANNELS=64, num_warps=8, enable_fp_fusion=False
        )


_TYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


@triton.jit
def count_tokens(
    x_ptr,  # activations, [tokens, inputs]
    count_ptr,  # int32, [tokens, inputs]
    threshold_ptr,  # float32, [tokens]
    failed_ptr,  # int32, [tokens]
    num_inputs,
    a,  # the rule's numbers
    b,
    c,
    quiet,
    RULE: tl.constexpr,
    FMA: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Count a token; grid [tokens]."""
    token = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + token * num_inputs + channel, mask=channel < num_inputs, other=0).to(tl.float32)
    threshold, fits, _ = threshold_of(block_statistic(x, RULE, 0), num_inputs, a, b, c, RULE)
    count = tl.where(fits, count_of(x, threshold, quiet, SMALL=True, FMA=FMA), 0)
    tl.store(count_ptr + token * num_inputs + channel, count, mask=channel < num_inputs)
    tl.store(threshold_ptr + token, tl.where(fits, threshold, float("nan")))
    tl.store(failed_ptr + token, (fits == 0).to(tl.int32))


@triton.jit
def address_of(table_ptr, expert, which):
    """Return the address of an expert's weights (0), scales (1) or biases (2)."""
    return tl.load(table_ptr + expert * 3 + which)


@triton.jit
def rescaled(total, threshold, table_ptr, expert, output, num_outputs, BIAS: tl.constexpr, BIAS_TYPE: tl.constexpr):
    """Return total * scale * threshold + bias, each step rounded to float32; total and threshold have routes first."""
    scale_ptr = address_of(table_ptr, expert, 1).to(tl.pointer_type(tl.float32))
    y = total.to(tl.float32) * tl.load(scale_ptr + output, mask=output < num_outputs, other=0)[None, :] * threshold
    if BIAS:
        bias_ptr = address_of(table_ptr, expert, 2).to(tl.pointer_type(BIAS_TYPE))
        y += tl.load(bias_ptr + output, mask=output < num_outputs, other=0).to(tl.float32)[None, :]
    return y


@triton.jit
def add_rows_of_route(
    count_ptr,  # int32, [tokens, inputs]
    threshold_ptr,  # float32, [tokens]
    row_ptr,  # int64, [routes]
    block_ptr,  # int32, [blocks, 3]: expert, first route, end
    table_ptr,  # int64, [experts, 3]: addresses of weights, int8 [inputs, stride], scales and biases, [outputs]
    y_ptr,  # [routes, outputs]
    num_inputs,
    num_outputs,
    stride,
    BIAS: tl.constexpr,
    BIAS_TYPE: tl.constexpr,
    OUTPUTS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Add the rows of the active channels of a route, a binary digit of the counts at a time; grid [routes, tiles]."""
    expert = tl.load(block_ptr + tl.program_id(0) * 3)
    route = tl.load(block_ptr + tl.program_id(0) * 3 + 1).to(tl.int64)
    token = tl.load(row_ptr + route)
    rows_ptr = address_of(table_ptr, expert, 0).to(tl.pointer_type(tl.int8))
    output = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    total = tl.zeros([OUTPUTS], tl.int32)
    for start in range(0, num_inputs, CHANNELS):
        channel = start + tl.arange(0, CHANNELS)
        count = tl.load(count_ptr + token * num_inputs + channel, mask=channel < num_inputs, other=0)
        here = rows_ptr + channel.to(tl.int64)[:, None] * stride + output[None, :]
        # Rows of silent channels are not read.
        w = tl.load(here, mask=(count != 0)[:, None] & (output < num_outputs)[None, :], other=0).to(tl.int32)
        w = tl.where((count < 0)[:, None], -w, w)
        rest = tl.abs(count)
        place = 0
        while tl.max(rest, 0) > 0:
            total += tl.sum(tl.where((rest & 1)[:, None] != 0, w, 0), 0) << place
            rest = rest >> 1
            place += 1
    y = rescaled(
        total[None, :], tl.load(threshold_ptr + token), table_ptr, expert, output, num_outputs, BIAS, BIAS_TYPE
    )
    place_of_y = y_ptr + route * num_outputs + output[None, :]
    tl.store(place_of_y, y.to(y_ptr.dtype.element_ty), mask=(output < num_outputs)[None, :])


@triton.jit
def multiply_routes(
    count_ptr,  # as for `add_rows_of_route`
    threshold_ptr,
    row_ptr,
    block_ptr,
    table_ptr,  # weights are int8 [outputs, stride], zero beyond the inputs
    y_ptr,
    num_inputs,
    num_outputs,
    stride,
    BIAS: tl.constexpr,
    BIAS_TYPE: tl.constexpr,
    ROUTES: tl.constexpr,
    OUTPUTS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Multiply the counts of up to ROUTES routes to an expert with its weights; grid [blocks, tiles]."""
    expert = tl.load(block_ptr + tl.program_id(0) * 3)
    first = tl.load(block_ptr + tl.program_id(0) * 3 + 1)
    end = tl.load(block_ptr + tl.program_id(0) * 3 + 2)
    route = first + tl.arange(0, ROUTES)
    is_route = route < end
    token = tl.load(row_ptr + route, mask=is_route, other=0)
    columns_ptr = address_of(table_ptr, expert, 0).to(tl.pointer_type(tl.int8))
    output = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    total = tl.zeros([ROUTES, OUTPUTS], tl.int32)
    for start in range(0, num_inputs, CHANNELS):
        channel = start + tl.arange(0, CHANNELS)
        is_channel = channel < num_inputs
        here = count_ptr + token[:, None] * num_inputs + channel[None, :]
        count = tl.load(here, mask=is_route[:, None] & is_channel[None, :], other=0)
        place = columns_ptr + output.to(tl.int64)[:, None] * stride + channel[None, :]
        w = tl.load(place, mask=(output < num_outputs)[:, None] & is_channel[None, :], other=0)
        low = count.to(tl.int8)  # wraps, so that what is left is a multiple of 256
        total = tl.dot(low, w.T, total, out_dtype=tl.int32)
        rest = (count - low.to(tl.int32)) >> 8
        shift = 8
        while tl.max(tl.max(tl.abs(rest), 1), 0) > 0:  # counts beyond INT8, which are rare
            low = rest.to(tl.int8)
            total += tl.dot(low, w.T, out_dtype=tl.int32) << shift
            rest = (rest - low.to(tl.int32)) >> 8
            shift += 8
    threshold = tl.load(threshold_ptr + token, mask=is_route, other=0)
    y = rescaled(total, threshold[:, None], table_ptr, expert, output, num_outputs, BIAS, BIAS_TYPE)
    place_of_y = y_ptr + route.to(tl.int64)[:, None] * num_outputs + output[None, :]
    tl.store(place_of_y, y.to(y_ptr.dtype.element_ty), mask=is_route[:, None] & (output < num_outputs)[None, :])
