"""Layers with weight groups on a GPU: how `grouped.py` and `narrow_groups.py` are launched."""

# pyright: reportArgumentType=false, reportIndexIssue=false, reportCallIssue=false

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...coding.kernels import interpreting
from .grouped import ROWS, add_groups, add_shares, count_channels
from .job import cdiv, power_of_two
from .narrow_groups import NarrowGroupPlan, NarrowGroupSettings, narrow_group_settings_for
from .packed import TILE_WORDS, Packed, packed_of
from .stage import Stage
from .tuning import fastest
from .upper import upper_bits

# Programs of `add_groups` that fill a large GPU, and most shares that the groups are divided into.
_PROGRAMS, _MOST_SHARES = 1584, 256
# Outputs of a program of `add_shares`.
_BLOCK = 32
_CHANNELS = 1024
# Tokens at a time: their shares take memory.
_PORTION = 64


class GroupPlan(NamedTuple):
    """How a stage with weight groups is divided, and the memory that its kernels share."""

    stage: Stage
    packed: Packed
    size: int  # input channels of a group
    bias: Tensor | None  # of all matrices
    first: Tensor  # as of `add_shares`
    end: Tensor
    counts: Tensor
    threshold: Tensor
    partial: Tensor
    failed: Tensor
    per_share: int

    def run(self) -> None:
        """Count, add, rescale, and fill the stage's y."""
        _count(self)
        _add(self)


def settings_for(stage: Stage) -> list[NarrowGroupSettings | None]:
    """Return the launch settings to choose from: None for the kernels of `grouped.py`, those for narrow layers last."""
    return [None, *(narrow_group_settings_for(stage.matrices) if len(stage.x) == 1 else [])]


def tuned_groups(stage: Stage) -> GroupPlan | NarrowGroupPlan:
    """Return the plan with which a stage is fastest; it runs many times, unless that is known."""
    plans: dict[NarrowGroupSettings | None, GroupPlan | NarrowGroupPlan] = {}

    def run_stage(settings: NarrowGroupSettings | None) -> None:
        if settings not in plans:
            plans[settings] = plan_groups(stage, settings)
        plans[settings].run()

    key = f"groups of {stage.matrices[0].group_size}, {stage.kind}"
    return plan_groups(stage, fastest(key, settings_for(stage), run_stage, stage.x.device))


def plan_groups(stage: Stage, settings: NarrowGroupSettings | None = None) -> GroupPlan | NarrowGroupPlan:
    """Divide the work of a stage whose matrices have groups of one size, and allocate memory."""
    (num_tokens, _), device = stage.x.shape, stage.x.device
    words = 0 if settings is None else settings.words
    packed = packed_of(stage.matrices, words)
    num_inputs, wide = len(packed.rows), 32 // packed.bits * (words or TILE_WORDS)
    size = stage.matrices[0].group_size or num_inputs
    first, end, before = [], [], 0
    for matrix in stage.matrices:
        first += range(before, before + len(matrix.weight), wide)
        before += len(matrix.weight)
        end += [before] * cdiv(len(matrix.weight), wide)
    biases = [matrix.bias for matrix in stage.matrices if matrix.bias is not None]
    bias = torch.cat(biases) if biases else None
    starts, ends = (torch.tensor(numbers, dtype=torch.int32, device=device) for numbers in (first, end))
    failed = torch.empty(num_tokens, dtype=torch.int32, device=device) if stage.failed is None else stage.failed
    if settings is not None:
        return NarrowGroupPlan(settings, stage, packed, size, bias, starts, ends, failed)
    wanted = max(min(_PROGRAMS // len(first), _MOST_SHARES), 1)
    per_share = cdiv(len(packed.scale), wanted)
    return GroupPlan(
        stage,
        packed,
        size,
        bias,
        starts,
        ends,
        torch.zeros(num_tokens, len(packed.scale) * size, dtype=torch.int32, device=device),
        torch.empty(num_tokens, dtype=torch.float32, device=device),
        torch.empty(num_tokens, cdiv(len(packed.scale), per_share), len(first) * wide, device=device),
        failed,
        per_share,
    )


def run(stage: Stage) -> None:
    """Fill the y of a stage, a portion of its tokens at a time."""
    for first in range(0, len(stage.x), _PORTION):
        part = slice(first, first + _PORTION)
        failed = None if stage.failed is None else stage.failed[part]
        with torch.cuda.device_of(stage.x):  # Triton launches on the current GPU
            plan_groups(stage._replace(x=stage.x[part], y=stage.y[part], failed=failed)).run()


def _count(plan: GroupPlan) -> None:
    stage, num_inputs = plan.stage, plan.stage.num_inputs
    norm, eps = stage.norm or (stage.x, 0.0)
    count_channels[len(plan.counts), cdiv(num_inputs, _CHANNELS)](
        stage.x,
        norm,
        stage.x if stage.seen is None else stage.seen,
        plan.counts,
        plan.threshold,
        plan.failed,
        num_inputs,
        plan.counts.shape[1],
        eps,
        *stage.rule.numbers,
        **stage.reading(),
        CHANNELS=_CHANNELS,
        num_warps=1 if interpreting() else 8,
        enable_fp_fusion=False,
    )


def _add(plan: GroupPlan) -> None:
    stage, packed = plan.stage, plan.packed
    num_tokens, shares, padded_outputs = plan.partial.shape
    add_groups[len(plan.first), shares, num_tokens](
        plan.counts,
        packed.rows,
        packed.scale,
        packed.scale if packed.minimum is None else packed.minimum,
        plan.partial,
        len(packed.rows),
        plan.counts.shape[1],
        packed.scale.stride(0),
        padded_outputs,
        len(packed.scale),
        plan.per_share,
        *upper_bits(stage.upper, packed.bits),
        UPPER=bool(stage.upper),
        BITS=packed.bits,
        LIFT=packed.lift,
        MINIMUM=packed.minimum is not None,
        SIZE=plan.size,
        PADDED_SIZE=power_of_two(plan.size),
        RAGGED=plan.size % ROWS.value != 0,
        ROW_WORDS=packed.rows.stride(0),
        WORDS=TILE_WORDS,
        num_warps=1,
        enable_fp_fusion=False,
    )
    add_shares[padded_outputs // _BLOCK, num_tokens](
        plan.partial,
        plan.threshold,
        plan.threshold if plan.bias is None else plan.bias,
        plan.first,
        plan.end,
        stage.y,
        shares,
        padded_outputs,
        stage.y.shape[1],
        BIAS=plan.bias is not None,
        RESIDUAL=stage.residual,
        TILE=padded_outputs // len(plan.first),
        BLOCK=_BLOCK,
        SHARES=power_of_two(shares),
        num_warps=4,
        enable_fp_fusion=False,
    )
