"""Mode `spike` on a GPU for narrow layers: one kernel counts and adds, so that launches do not bound a small model.

`spike.py` lists the rows to add in one kernel and adds them in another; programs share work and sums through memory.
In a narrow layer that takes longer than the work. Here a program has a few outputs to itself: it counts the whole
input, as every other program does, adds its part of the rows of the channels that fire, and rescales. Other rows are
not read, and nothing is multiplied.

Weights are read as 32-bit words of four and lifted by 128 to 0 ... 255, so that two of them fit the 16-bit halves of a
word. A negative count adds the complement 127 - w instead. Each binary digit of |count| adds the halves once, shifted
to its place, for four digits at a time: of at most MOST_CHUNKS channels, as 17 * 255 * 15 < 2^16. What was added too
much is known from the counts and subtracted at the end.
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
from ...neuro.threshold_triton import COUNTED, count_of
from .add import matrix_of
from .job import cdiv
from .list import GATED, NORM, input_at, inverse_rms, token_threshold
from .stage import Stage, three
from .upper import bits_of, middles_of, upper_bits

# Portions of the input channels: a thread adds one row of each in 16 bits.
MOST_CHUNKS = 17


class NarrowSettings(NamedTuple):
    """Launch settings of the kernel for narrow layers."""

    words: int  # of four weights, that a program reads of a row
    channels: int  # that a program reads at a time
    warps: int


_CANDIDATES = [NarrowSettings(4, 128, 4), NarrowSettings(4, 256, 8)]


def narrow_settings_for(num_inputs: int) -> list[NarrowSettings]:
    """Return the launch settings to choose from; none for many input channels."""
    candidates = [NarrowSettings(8, 32, 1)] if interpreting() else _CANDIDATES
    return [settings for settings in candidates if num_inputs <= MOST_CHUNKS * settings.channels]


class NarrowPlan(NamedTuple):
    """How a narrow stage is launched."""

    settings: NarrowSettings
    stage: Stage
    rows: tuple[Tensor, ...]  # as of `Plan`

    def run(self) -> None:
        """Count, add, rescale, and fill the stage's y."""
        settings, stage, rows = self.settings, self.stage, self.rows
        norm, eps = stage.norm or (stage.x, 0.0)
        has_scale, has_bias = stage.matrices[0].scale is not None, stage.matrices[0].bias is not None
        tiles = sum(cdiv(words.shape[1], settings.words) for words in rows)
        run_narrow[tiles, len(stage.x)](
            stage.x,
            norm,
            stage.x if stage.seen is None else stage.seen,
            stage.x if stage.failed is None else stage.failed,
            stage.y,
            *three(rows),
            *three([matrix.scale if has_scale else stage.x for matrix in stage.matrices]),
            *three([matrix.bias if has_bias else stage.x for matrix in stage.matrices]),
            *three([words.shape[1] for words in rows]),
            *three([len(matrix.weight) for matrix in stage.matrices]),
            stage.num_inputs,
            eps,
            *stage.rule.numbers,
            *upper_bits(stage.upper, 8),
            **stage.reading(),
            UPPER=bool(stage.upper),
            FAILED=stage.failed is not None,
            MATRICES=len(rows),
            RESCALE=has_scale,
            BIAS=has_bias,
            RESIDUAL=stage.residual,
            CHANNELS=settings.channels,
            CHUNKS=cdiv(stage.num_inputs, settings.channels),
            WORDS=settings.words,
            num_warps=settings.warps,
            enable_fp_fusion=False,
        )


@triton.jit
def added(halves, count, w, digit):
    """Add four digits, from `digit` on, of a portion's rows to even and odd halves.

    Args:
        halves: even and odd ones, [channels, words].
        count: [channels].
        w: words of the rows, [channels, words].
        digit: the place of the lowest of the digits.
    """
    even, odd = halves
    # 0x80 in each byte adds 128; 0x7F complements as well.
    lift = (-2139062144 ^ (count >> 31))[:, None]
    low, high = (w ^ lift) & 0x00FF00FF, (w >> 8 ^ lift) & 0x00FF00FF
    digits = tl.abs(count) >> digit
    for place in tl.static_range(4):
        mask = -(digits >> place & 1)[:, None]
        even += (low & mask) << place
        odd += (high & mask) << place
    return even, odd


@triton.jit
def run_narrow(
    x_ptr,  # activations or int32 counts, [tokens, inputs], or twice as many where SOURCE is GATED
    norm_ptr,  # where SOURCE is NORM: weight of the norm, [inputs]
    seen_ptr,  # filled with the input if SEEN, [tokens, inputs]
    failed_ptr,  # int32, [tokens], if FAILED
    y_ptr,  # [tokens, all outputs]: int32 sums, or rescaled activations
    rows0_ptr,  # weights, int32 words of four int8, [inputs, words], of up to three matrices that read this input
    rows1_ptr,
    rows2_ptr,
    scale0_ptr,  # float32, [outputs], if RESCALE
    scale1_ptr,
    scale2_ptr,
    bias0_ptr,  # [outputs], if BIAS
    bias1_ptr,
    bias2_ptr,
    words0,
    words1,
    words2,
    outputs0,
    outputs1,
    outputs2,
    num_inputs,
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
    RULE: tl.constexpr,  # COUNTED if x holds counts
    SOURCE: tl.constexpr,
    SEEN: tl.constexpr,
    UPPER: tl.constexpr,  # whether small counts read upper bits
    FAILED: tl.constexpr,
    MATRICES: tl.constexpr,
    RESCALE: tl.constexpr,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    CHANNELS: tl.constexpr,
    CHUNKS: tl.constexpr,
    WORDS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """Run 4 * WORDS outputs of a token; grid [tiles of all matrices, tokens]."""
    tile, token = tl.program_id(0), tl.program_id(1).to(tl.int64)
    rows_ptr, scale_ptr, bias_ptr, num_words, num_outputs, first_tile, first_output, all_outputs = matrix_of(
        tile, rows0_ptr, rows1_ptr, rows2_ptr, scale0_ptr, scale1_ptr, scale2_ptr, bias0_ptr, bias1_ptr, bias2_ptr,
        words0, words1, words2, outputs0, outputs1, outputs2, MATRICES, WORDS,
    )  # fmt: skip
    output = (tile - first_tile) * 4 * WORDS + tl.arange(0, 4 * WORDS)
    is_output = output < num_outputs
    here = y_ptr + token * all_outputs + first_output + output
    # What does not depend on the counts is on its way meanwhile.
    if RESCALE:
        scale = tl.load(scale_ptr + output, mask=is_output, other=0)
        if UPPER:
            scale = scale * 0.5  # sums are in halves
    if BIAS:
        bias = tl.load(bias_ptr + output, mask=is_output, other=0).to(tl.float32)
    if RESIDUAL:
        before = tl.load(here, mask=is_output, other=0).to(tl.float32)

    x_row = x_ptr + token * num_inputs * (2 if SOURCE == GATED else 1)
    inverse, threshold, fits = 1.0, 1.0, True
    if SOURCE == NORM:
        inverse = inverse_rms(x_row, num_inputs, eps, BLOCK, BLOCKS)
    if RULE != COUNTED:
        threshold, fits = token_threshold(x_row, norm_ptr, num_inputs, inverse, a, b, c, RULE, SOURCE, BLOCK, BLOCKS)
    word = (tile - first_tile) * WORDS + tl.arange(0, WORDS)
    counts, rows = (), ()
    none = tl.zeros([CHANNELS], tl.int32)
    largest, lifted, middle = none, none, none
    for chunk in tl.static_range(CHUNKS):
        channel = chunk * CHANNELS + tl.arange(0, CHANNELS)
        count = input_at(x_row, norm_ptr, channel, num_inputs, inverse, SOURCE)
        if SEEN:
            if tile == 0:
                tl.store(seen_ptr + token * num_inputs + channel, count, mask=channel < num_inputs)
        if RULE != COUNTED:
            count = tl.where(fits, count_of(count, threshold, quiet, SMALL=True, FMA=False), 0)
        largest = tl.maximum(largest, tl.abs(count))
        # Every row that is added is 128 too much, or 127 if it is subtracted.
        lifted += (tl.abs(count) << 7) - tl.maximum(-count, 0)
        offset = tl.multiple_of(channel[:, None] * num_words, [1, 4]) + word[None, :]
        w = tl.load(rows_ptr + offset, mask=(count != 0)[:, None] & (word < num_words)[None, :], other=0)
        if UPPER:
            middle += middles_of(count, edge0, edge1, middle0, middle1)
            w = w & bits_of(count, edge0, edge1, keep0, keep1)[:, None]
        counts, rows = counts + (count,), rows + (w,)  # noqa: RUF005 - Triton unpacks no tuples
    none = tl.zeros([CHANNELS, WORDS], tl.int32)
    sum0, sum1, sum2, sum3 = none, none, none, none
    digit, most = 0, tl.max(largest, 0)
    while most >> digit > 0:
        halves = none, none
        for chunk in tl.static_range(CHUNKS):
            halves = added(halves, counts[chunk], rows[chunk], digit)
        even, odd = halves
        sum0 += (even & 0xFFFF) << digit
        sum1 += (odd & 0xFFFF) << digit
        sum2 += (even >> 16 & 0xFFFF) << digit
        sum3 += (odd >> 16 & 0xFFFF) << digit
        digit += 4
    if UPPER:
        sum0, sum1, sum2, sum3 = sum0 << 1, sum1 << 1, sum2 << 1, sum3 << 1
        lifted = (lifted << 1) - middle
    lifted = lifted[:, None]
    sums = tl.interleave(
        tl.interleave(sum0 - lifted, sum2 - lifted), tl.interleave(sum1 - lifted, sum3 - lifted)
    )  # [CHANNELS, 4 * WORDS]
    total = tl.sum(sums, 0)
    if RESCALE:
        total = total.to(tl.float32) * scale * tl.where(fits, threshold, float("nan"))
        if BIAS:
            total += bias
        if RESIDUAL:
            total = before + total.to(y_ptr.dtype.element_ty).to(tl.float32)
    tl.store(here, total.to(y_ptr.dtype.element_ty), mask=is_output)
    if FAILED and RULE != COUNTED:
        if tile == 0:
            tl.store(failed_ptr + token, (fits == 0).to(tl.int32))
