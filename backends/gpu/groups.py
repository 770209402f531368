"""Layers with weight groups on a GPU: how `grouped.py` is launched."""

# pyright: reportArgumentType=false, reportIndexIssue=false, reportCallIssue=false

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from ...coding.kernels import interpreting
from .grouped import add_groups, count_channels
from .job import Matrix, cdiv, power_of_two
from .spike import Stage

# Words of a row that a program reads, and most shares that the groups are divided into.
_WORDS, _MOST_SHARES = 32, 32
_CHANNELS = 1024
# Tokens at a time: their shares take memory.
_PORTION = 64


class Packed(NamedTuple):
    """Weights as the kernels read them.

    Attributes:
        rows: int32 words of integers of `bits` bits, [inputs, words padded to tiles].
        scale: [groups, outputs padded to tiles], in float16 where that is exact, else float32.
        minimum: the same, or None.
        bits: of an integer.
        lift: what the packed integers are too much.
        size: input channels of a group.
    """

    rows: Tensor
    scale: Tensor
    minimum: Tensor | None
    bits: int
    lift: int
    size: int


# By weight: the versions of what it was made of, and the packed weights.
_packed: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def packed_of(matrix: Matrix) -> Packed:
    """Return the packed weights of a matrix, made again when the weights change."""
    parts = [part for part in (matrix.weight, matrix.scale, matrix.minimum) if part is not None]
    state = [(part.data_ptr(), None if part.is_inference() else part._version) for part in parts]
    found = _packed.get(matrix.weight)
    if found is None or found[0] != state:
        found = state, _pack(matrix)
        if not (matrix.weight.is_cuda and torch.cuda.is_current_stream_capturing()):
            _packed[matrix.weight] = found
    return found[1]


def _pack(matrix: Matrix) -> Packed:
    assert matrix.scale is not None
    low, high = (int(bound) for bound in matrix.weight.aminmax())
    lift = 8 if low < 0 else 0
    bits = 4 if low >= -8 and high + lift < 16 else 8
    lift = lift if bits == 4 else 0
    fields = 32 // bits
    num_out, num_in = matrix.weight.shape
    tiles = cdiv(num_out, fields * _WORDS)
    integers = matrix.weight.t().to(torch.int32) + lift
    padded = torch.nn.functional.pad(integers, (0, tiles * fields * _WORDS - num_out))
    by_field = padded.reshape(num_in, tiles, fields, _WORDS) & (2**bits - 1)
    words = torch.zeros(num_in, tiles, _WORDS, dtype=torch.int32, device=padded.device)
    for field in range(fields):
        words |= by_field[:, :, field] << bits * field
    size = matrix.group_size or num_in
    width = (0, tiles * fields * _WORDS - num_out)
    scale, minimum = (_narrow(part, width) for part in (matrix.scale, matrix.minimum))
    assert scale is not None
    return Packed(words.reshape(num_in, -1), scale, minimum, bits, lift, size)


def _narrow(part: Tensor | None, width: tuple[int, int]) -> Tensor | None:
    """Return [outputs, groups] as [groups, padded outputs], in float16 where no bit is lost."""
    if part is None:
        return None
    half = part.to(torch.float16)
    exact = bool((half.to(torch.float32) == part).all())
    return torch.nn.functional.pad((half if exact else part).t(), width).contiguous()


class GroupPlan(NamedTuple):
    """How a stage with weight groups is divided, and the memory that its kernels share."""

    stage: Stage
    packed: tuple[Packed, ...]
    counts: Tensor
    threshold: Tensor
    partial: tuple[Tensor, ...]
    arrived: tuple[Tensor, ...]
    per_split: tuple[int, ...]

    def run(self) -> None:
        """Count, add, rescale, and fill the stage's y."""
        _count(self)
        first = 0
        for number, matrix in enumerate(self.stage.matrices):
            _add(self, number, matrix, first)
            first += len(matrix.weight)


def plan_groups(stage: Stage) -> GroupPlan:
    """Divide the work of a stage whose matrices have groups, and allocate memory."""
    num_tokens, device = len(stage.x), stage.x.device
    packed = tuple(packed_of(matrix) for matrix in stage.matrices)
    per_split, partial, arrived = [], [], []
    for weights in packed:
        per_split.append(cdiv(len(weights.scale), _MOST_SHARES))
        shares = cdiv(len(weights.scale), per_split[-1])
        partial.append(torch.empty(num_tokens, shares, weights.scale.shape[1], device=device))
        tiles = weights.rows.shape[1] // _WORDS
        arrived.append(torch.zeros(num_tokens, tiles, dtype=torch.int32, device=device))
    count = torch.empty(num_tokens, len(packed[0].rows), dtype=torch.int32, device=device)
    threshold = torch.empty(num_tokens, dtype=torch.float32, device=device)
    return GroupPlan(stage, packed, count, threshold, tuple(partial), tuple(arrived), tuple(per_split))


def run(stage: Stage) -> None:
    """Fill the y of a stage, a portion of its tokens at a time."""
    for first in range(0, len(stage.x), _PORTION):
        part = slice(first, first + _PORTION)
        failed = None if stage.failed is None else stage.failed[part]
        with torch.cuda.device_of(stage.x):  # Triton launches on the current GPU
            plan_groups(stage._replace(x=stage.x[part], y=stage.y[part], failed=failed)).run()


def _count(plan: GroupPlan) -> None:
    stage, (num_tokens, num_inputs) = plan.stage, plan.counts.shape
    block = min(power_of_two(num_inputs), 4096)
    norm, eps = stage.norm or (stage.x, 0.0)
    count_channels[num_tokens, cdiv(num_inputs, _CHANNELS)](
        stage.x,
        norm,
        stage.x if stage.seen is None else stage.seen,
        plan.counts,
        plan.threshold,
        plan.arrived[0] if stage.failed is None else stage.failed,
        num_inputs,
        eps,
        *stage.rule.parameters,
        RULE=stage.rule.number,
        SOURCE=stage.source,
        SEEN=stage.seen is not None,
        CHANNELS=_CHANNELS,
        BLOCK=block,
        BLOCKS=cdiv(num_inputs, block),
        num_warps=1 if interpreting() else 8,
        enable_fp_fusion=False,
    )


def _add(plan: GroupPlan, number: int, matrix: Matrix, first: int) -> None:
    stage, weights = plan.stage, plan.packed[number]
    num_tokens, shares = plan.partial[number].shape[:2]
    scale = weights.scale
    add_groups[weights.rows.shape[1] // _WORDS, shares, num_tokens](
        plan.counts,
        plan.threshold,
        weights.rows,
        scale,
        scale if weights.minimum is None else weights.minimum,
        plan.threshold if matrix.bias is None else matrix.bias,
        stage.y[:, first:],
        plan.partial[number],
        plan.arrived[number],
        plan.counts.shape[1],
        weights.rows.shape[1],
        len(matrix.weight),
        stage.y.shape[1],
        len(scale),
        plan.per_split[number],
        BITS=weights.bits,
        LIFT=weights.lift,
        MINIMUM=weights.minimum is not None,
        BIAS=matrix.bias is not None,
        RESIDUAL=stage.residual,
        SIZE=weights.size,
        GROUP=power_of_two(weights.size),
        WORDS=_WORDS,
        ONE=shares == 1,
        num_warps=1,
        enable_fp_fusion=False,
    )
