"""Triton kernel for narrow layers with weight groups of 4 bits: what `narrow.py` is beside `spike.py`.

A program has a few outputs to itself. It counts the whole input, adds its part of the rows of the channels that fire,
rescales each group's exact sum, and adds up the groups. A word of a row holds the integers of eight outputs, made
positive. Split into bytes, each holds at most 15, so four binary digits of |count|, shifted to their places, fit: 15 *
15 < 2^8. The sums of a group are kept in halves of a word: 256 * 225 < 2^16. Where a count is negative, complements are
added, and what they are too much is taken off at the end.
"""

# ruff: noqa: PLR0912, PLR0915, SIM102 - a kernel is one function
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportOperatorIssue=false
# pyright: reportIndexIssue=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportPossiblyUnboundVariable=false

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from ...coding.kernels import interpreting
from ...neuro.threshold_triton import count_of
from .job import Matrix, cdiv, power_of_two
from .list import GATED, NORM, input_at, inverse_rms, token_threshold
from .packed import Packed, format_of
from .stage import Stage
from .upper import bits_of, middles_of, upper_bits

# Input channels of a layer that is narrow.
_MOST_INPUTS = 2176


class NarrowGroupSettings(NamedTuple):
    """Launch settings of the kernel for narrow layers with groups."""

    words: int  # of eight outputs, of a program
    channels: int  # that a program reads at a time
    warps: int


_CANDIDATES = [NarrowGroupSettings(4, 128, 4), NarrowGroupSettings(4, 256, 8)]


def narrow_group_settings_for(matrices: tuple[Matrix, ...]) -> list[NarrowGroupSettings]:
    """Return the launch settings to choose from; none for many input channels, 8 bits, and groups of odd sizes."""
    size, num_inputs = matrices[0].group_size or 0, matrices[0].weight.shape[1]
    fits = num_inputs <= _MOST_INPUTS and 8 <= size <= 128 and power_of_two(size) == size
    if not fits or any(format_of(matrix)[0] != 4 for matrix in matrices):
        return []
    return [NarrowGroupSettings(2, 128, 1)] if interpreting() else _CANDIDATES


class NarrowGroupPlan(NamedTuple):
    """How a narrow stage with weight groups of 4 bits is launched."""

    settings: NarrowGroupSettings
    stage: Stage
    packed: Packed
    size: int  # input channels of a group
    bias: Tensor | None  # of all matrices
    first: Tensor  # as of `run_narrow_groups`
    end: Tensor
    failed: Tensor

    def run(self) -> None:
        """Count, add, rescale, and fill the stage's y."""
        settings, stage, packed = self.settings, self.stage, self.packed
        norm, eps = stage.norm or (stage.x, 0.0)
        run_narrow_groups[len(self.first), len(stage.x)](
            stage.x,
            norm,
            stage.x if stage.seen is None else stage.seen,
            self.failed,
            stage.y,
            packed.rows,
            packed.scale,
            packed.scale if packed.minimum is None else packed.minimum,
            packed.scale if self.bias is None else self.bias,
            self.first,
            self.end,
            stage.num_inputs,
            packed.rows.stride(0),
            packed.scale.stride(0),
            stage.y.shape[1],
            eps,
            *stage.rule.numbers,
            *upper_bits(stage.upper, packed.bits),
            **stage.reading(),
            UPPER=bool(stage.upper),
            BIAS=self.bias is not None,
            RESIDUAL=stage.residual,
            MINIMUM=packed.minimum is not None,
            LIFT=packed.lift,
            SIZE=self.size,
            GROUPS=settings.channels // self.size,
            CHUNKS=cdiv(stage.num_inputs, settings.channels),
            WORDS=settings.words,
            num_warps=settings.warps,
            enable_fp_fusion=False,
        )


@triton.jit
def group_sums(count, w, digit, GROUPS: tl.constexpr, SIZE: tl.constexpr, WORDS: tl.constexpr):
    """Return the sums of four digits, from `digit` on, of the groups of a portion: int32 [groups, 8 * words].

    Args:
        count: [groups * size].
        w: words of the rows, [groups * size, words].
        digit: the place of the lowest of the digits.
        GROUPS: of a portion.
        SIZE: channels of a group.
        WORDS: of a row.
    """
    flip = ((count >> 31) & 0x0F0F0F0F)[:, None]
    even, odd = (w & 0x0F0F0F0F) ^ flip, (w >> 4 & 0x0F0F0F0F) ^ flip
    digits = tl.abs(count) >> digit
    even_bytes, odd_bytes = tl.zeros_like(w), tl.zeros_like(w)
    for place in tl.static_range(4):
        mask = -(digits >> place & 1)[:, None]
        even_bytes += (even & mask) << place
        odd_bytes += (odd & mask) << place
    # Fields 0 and 4, 2 and 6, 1 and 5, 3 and 7 of a word.
    sum04 = tl.sum(tl.reshape(even_bytes & 0x00FF00FF, (GROUPS, SIZE, WORDS)), 1)
    sum26 = tl.sum(tl.reshape(even_bytes >> 8 & 0x00FF00FF, (GROUPS, SIZE, WORDS)), 1)
    sum15 = tl.sum(tl.reshape(odd_bytes & 0x00FF00FF, (GROUPS, SIZE, WORDS)), 1)
    sum37 = tl.sum(tl.reshape(odd_bytes >> 8 & 0x00FF00FF, (GROUPS, SIZE, WORDS)), 1)
    evens = tl.interleave(
        tl.interleave(sum04 & 0xFFFF, sum04 >> 16 & 0xFFFF), tl.interleave(sum26 & 0xFFFF, sum26 >> 16 & 0xFFFF)
    )
    odds = tl.interleave(
        tl.interleave(sum15 & 0xFFFF, sum15 >> 16 & 0xFFFF), tl.interleave(sum37 & 0xFFFF, sum37 >> 16 & 0xFFFF)
    )
    return tl.interleave(evens, odds)


@triton.jit
def run_narrow_groups(
    x_ptr,  # activations, [tokens, inputs], or twice as many where SOURCE is GATED
    norm_ptr,  # where SOURCE is NORM: weight of the norm, [inputs]
    seen_ptr,  # filled with the input if SEEN, [tokens, inputs]
    failed_ptr,  # int32, [tokens]
    y_ptr,  # [tokens, all outputs]
    rows_ptr,  # int32 words of eight neighbouring outputs, [inputs, words]
    scale_ptr,  # [groups, scale_stride]
    minimum_ptr,  # the same, if MINIMUM
    bias_ptr,  # [all outputs], if BIAS
    first_ptr,  # int32, [programs]: the first output in y of each
    end_ptr,  # int32, [programs]: the output after the last one of its matrix
    num_inputs,
    num_words,
    scale_stride,
    all_outputs,
    eps,  # of the norm
    a,  # the rule's numbers
    b,
    c,
    quiet,
    edge0,  # this and the next five as of `UpperBits`
    edge1,
    keep0,
    keep1,
    middle0,
    middle1,
    RULE: tl.constexpr,
    SOURCE: tl.constexpr,
    SEEN: tl.constexpr,
    UPPER: tl.constexpr,  # whether small counts read upper bits
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    MINIMUM: tl.constexpr,
    LIFT: tl.constexpr,  # what the packed integers are too much
    SIZE: tl.constexpr,  # channels of a group, a power of two
    GROUPS: tl.constexpr,  # that are added at a time
    CHUNKS: tl.constexpr,
    WORDS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """Run 8 * WORDS outputs of a token; grid [programs, tokens]."""
    program, token = tl.program_id(0), tl.program_id(1).to(tl.int64)
    CHANNELS: tl.constexpr = GROUPS * SIZE
    output = tl.load(first_ptr + program) + tl.arange(0, 8 * WORDS)
    is_output = output < tl.load(end_ptr + program)
    here = y_ptr + token * all_outputs + output
    # What does not depend on the counts is on its way meanwhile.
    if BIAS:
        bias = tl.load(bias_ptr + output, mask=is_output, other=0).to(tl.float32)
    if RESIDUAL:
        before = tl.load(here, mask=is_output, other=0).to(tl.float32)
    x_row = x_ptr + token * num_inputs * (2 if SOURCE == GATED else 1)
    inverse = 1.0
    if SOURCE == NORM:
        inverse = inverse_rms(x_row, num_inputs, eps, BLOCK, BLOCKS)
    threshold, fits = token_threshold(x_row, norm_ptr, num_inputs, inverse, a, b, c, RULE, SOURCE, BLOCK, BLOCKS)
    word = program * WORDS + tl.arange(0, WORDS)
    counts, rows, largest = (), (), tl.zeros([CHANNELS], tl.int32)
    for chunk in tl.static_range(CHUNKS):
        channel = chunk * CHANNELS + tl.arange(0, CHANNELS)
        x = input_at(x_row, norm_ptr, channel, num_inputs, inverse, SOURCE)
        if SEEN:
            if program == 0:
                tl.store(seen_ptr + token * num_inputs + channel, x, mask=channel < num_inputs)
        count = tl.where(fits, count_of(x, threshold, quiet, SMALL=True, FMA=False), 0)
        largest = tl.maximum(largest, tl.abs(count))
        offset = tl.multiple_of(channel[:, None] * num_words, [1, WORDS]) + word[None, :]
        w = tl.load(rows_ptr + offset, mask=(count != 0)[:, None], other=0)
        if UPPER:
            w = w & bits_of(count, edge0, edge1, keep0, keep1)[:, None]
        counts, rows = counts + (count,), rows + (w,)  # noqa: RUF005 - Triton unpacks no tuples
    most = tl.max(largest, 0)
    lane = program * 8 * WORDS + tl.arange(0, 8 * WORDS)
    y = tl.zeros([GROUPS, 8 * WORDS], tl.float32)
    for chunk in tl.static_range(CHUNKS):
        of_group = tl.reshape(counts[chunk], (GROUPS, SIZE))
        total, negative = tl.sum(of_group, 1), tl.sum(tl.maximum(-of_group, 0), 1)
        sums = group_sums(counts[chunk], rows[chunk], 0, GROUPS, SIZE, WORDS)
        digit = 4
        while most >> digit > 0:
            sums += group_sums(counts[chunk], rows[chunk], digit, GROUPS, SIZE, WORDS) << digit
            digit += 4
        # A complement is 15 too much.
        sums -= (15 * negative + LIFT * total)[:, None]
        group = chunk * GROUPS + tl.arange(0, GROUPS)
        at, is_group = group[:, None] * scale_stride + lane[None, :], (group * SIZE < num_inputs)[:, None]
        scale = tl.load(scale_ptr + at, mask=is_group, other=0).to(tl.float32)
        if UPPER:  # sums in halves
            middle = tl.sum(middles_of(of_group, edge0, edge1, middle0, middle1), 1)
            sums, scale = (sums << 1) + middle[:, None], scale * 0.5
        y += sums.to(tl.float32) * scale
        if MINIMUM:
            minimum = tl.load(minimum_ptr + at, mask=is_group, other=0).to(tl.float32)
            y += total.to(tl.float32)[:, None] * minimum
    y = tl.sum(y, 0) * tl.where(fits, threshold, float("nan"))
    if BIAS:
        y += bias
    if RESIDUAL:
        y = before + y.to(y_ptr.dtype.element_ty).to(tl.float32)
    tl.store(here, y.to(y_ptr.dtype.element_ty), mask=is_output)
    if program == 0:
        tl.store(failed_ptr + token, (fits == 0).to(tl.int32))
