"""Layers with weight groups on a GPU: how `grouped.py` is launched."""

# pyright: reportArgumentType=false, reportIndexIssue=false, reportCallIssue=false

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.weak import WeakTensorKeyDictionary

from ...coding.kernels import interpreting
from .grouped import ROWS, add_groups, add_shares, count_channels
from .job import Matrix, cdiv, power_of_two
from .spike import Stage

# Words of a row that a program of `add_groups` reads.
_WORDS = 128
# Programs of `add_groups` that fill a large GPU, and most shares that the groups are divided into.
_PROGRAMS, _MOST_SHARES = 1584, 256
# Outputs of a program of `add_shares`.
_BLOCK = 32
_CHANNELS = 1024
# Tokens at a time: their shares take memory.
_PORTION = 64


class Packed(NamedTuple):
    """Weights of one matrix as the kernels read them; those of a stage lie side by side.

    Attributes:
        rows: int32 words of positive integers of `bits` bits, [inputs, words padded to tiles].
        scale: [groups, outputs padded to tiles], in float16 where that is exact, else float32.
        minimum: the same, or None.
        bits: of an integer.
        lift: what the packed integers are too much.
    """

    rows: Tensor
    scale: Tensor
    minimum: Tensor | None
    bits: int
    lift: int


# By weight: the versions of what it was made of, and the packed weights.
_packed: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def packed_of(matrices: tuple[Matrix, ...]) -> Packed:
    """Return the packed weights of matrices that read the same input, side by side; made again when they change.

    Each matrix on its own reads its part of them.
    """
    known = [_packed.get(matrix.weight) for matrix in matrices]
    states = [_state(matrix) for matrix in matrices]
    if len(matrices) == 1 and known[0] is not None and known[0][0] == states[0]:
        return known[0][1]
    formats = [_format(matrix) for matrix in matrices]
    bits = max(bits for bits, _ in formats)
    lift = 128 if bits == 8 else max(lift for _, lift in formats)
    halves = all(_is_half(part) for matrix in matrices for part in (matrix.scale, matrix.minimum))
    parts = [_pack(matrix, bits, lift, torch.float16 if halves else torch.float32) for matrix in matrices]
    rows, scale = (torch.cat([part[i] for part in parts], 1) for i in (0, 1))
    minimum = None
    if any(matrix.minimum is not None for matrix in matrices):
        minimum = torch.cat([torch.zeros_like(part[1]) if part[2] is None else part[2] for part in parts], 1)
    whole = Packed(rows, scale, minimum, bits, lift)
    if not (rows.is_cuda and torch.cuda.is_current_stream_capturing()):
        first = 0
        for matrix, state in zip(matrices, states, strict=True):
            wide = slice(first, first + cdiv(len(matrix.weight), 32 // bits * _WORDS) * _WORDS)
            outputs = slice(32 // bits * wide.start, 32 // bits * wide.stop)
            part = Packed(
                rows[:, wide], scale[:, outputs], None if minimum is None else minimum[:, outputs], bits, lift
            )
            _packed[matrix.weight] = state, part
            first = wide.stop
    return whole


def _state(matrix: Matrix) -> list[tuple[int, int | None]]:
    parts = [part for part in (matrix.weight, matrix.scale, matrix.minimum) if part is not None]
    return [(part.data_ptr(), None if part.is_inference() else part._version) for part in parts]


def _format(matrix: Matrix) -> tuple[int, int]:
    """Return the bits that a matrix's integers need, and what makes them positive."""
    low, high = (int(bound) for bound in matrix.weight.aminmax())
    lift = 8 if low < 0 else 0
    return (4, lift) if low >= -8 and high + lift < 16 else (8, 128)


def _is_half(part: Tensor | None) -> bool:
    """Return whether float16 holds what is in a tensor."""
    return part is None or bool((part.to(torch.float16).to(torch.float32) == part).all())


def _pack(matrix: Matrix, bits: int, lift: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return rows, scale and minimum; word i of a tile holds its outputs i, i + _WORDS, ..., the lowest bits first."""
    assert matrix.scale is not None
    fields, (num_out, num_in) = 32 // bits, matrix.weight.shape
    tiles = cdiv(num_out, fields * _WORDS)
    spare = tiles * fields * _WORDS - num_out
    integers = F.pad(matrix.weight.t().to(torch.int32) + lift, (0, spare)).reshape(num_in, tiles, fields, _WORDS)
    rows = torch.zeros(num_in, tiles, _WORDS, dtype=torch.int32, device=integers.device)
    for field in range(fields):
        rows |= integers[:, :, field] << bits * field
    scale, minimum = (
        None if part is None else F.pad(part.to(dtype).t(), (0, spare)) for part in (matrix.scale, matrix.minimum)
    )
    assert scale is not None
    return rows.reshape(num_in, -1), scale, minimum


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


def plan_groups(stage: Stage) -> GroupPlan:
    """Divide the work of a stage whose matrices have groups of one size, and allocate memory."""
    (num_tokens, _), device = stage.x.shape, stage.x.device
    packed = packed_of(stage.matrices)
    num_inputs, wide = len(packed.rows), 32 // packed.bits * _WORDS
    size = stage.matrices[0].group_size or num_inputs
    first, end, before = [], [], 0
    for matrix in stage.matrices:
        first += range(before, before + len(matrix.weight), wide)
        before += len(matrix.weight)
        end += [before] * cdiv(len(matrix.weight), wide)
    wanted = max(min(_PROGRAMS // len(first), _MOST_SHARES), 1)
    per_share = cdiv(len(packed.scale), wanted)
    biases = [matrix.bias for matrix in stage.matrices if matrix.bias is not None]
    return GroupPlan(
        stage,
        packed,
        size,
        torch.cat(biases) if biases else None,
        torch.tensor(first, dtype=torch.int32, device=device),
        torch.tensor(end, dtype=torch.int32, device=device),
        torch.zeros(num_tokens, len(packed.scale) * size, dtype=torch.int32, device=device),
        torch.empty(num_tokens, dtype=torch.float32, device=device),
        torch.empty(num_tokens, cdiv(len(packed.scale), per_share), len(first) * wide, device=device),
        torch.empty(num_tokens, dtype=torch.int32, device=device) if stage.failed is None else stage.failed,
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
    stage, (num_tokens, num_inputs) = plan.stage, (len(plan.counts), len(plan.packed.rows))
    block = min(power_of_two(num_inputs), 4096)
    norm, eps = stage.norm or (stage.x, 0.0)
    count_channels[num_tokens, cdiv(num_inputs, _CHANNELS)](
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
        RULE=stage.rule.number,
        SOURCE=stage.source,
        SEEN=stage.seen is not None,
        CHANNELS=_CHANNELS,
        BLOCK=block,
        BLOCKS=cdiv(num_inputs, block),
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
        BITS=packed.bits,
        LIFT=packed.lift,
        MINIMUM=packed.minimum is not None,
        SIZE=plan.size,
        PADDED_SIZE=power_of_two(plan.size),
        RAGGED=plan.size % ROWS.value != 0,
        ROW_WORDS=packed.rows.stride(0),
        WORDS=_WORDS,
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
