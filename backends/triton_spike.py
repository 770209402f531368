"""Triton kernels of mode `spike`: weight rows of the channels that spike are added, and nothing is multiplied.

`list_events` counts (or takes counts), and writes for every split of the input channels the rows to add, ordered by
digit; `add_events` adds them. It uses that the sum over digits d of d * (rows of digit d) is the sum over j = 1, 2, ...
of all rows with d >= j: rows come with falling digit into a running sum, and every time the digit drops by one, the
running sum is added to a total. A row of |count| <= 8 is read and added once.

Weights are read as 32-bit words of four and lifted by 128 to 0 ... 255, so that two of them fit the 16-bit halves of a
word, and one addition adds two weights. A negative count adds the complement 255 - (w + 128) = 127 - w instead. What
was added too much is known from the list and subtracted at the end.
"""

# ruff: noqa: PLR0915 - a kernel is one function
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportOperatorIssue=false
# pyright: reportIndexIssue=false, reportAttributeAccessIssue=false, reportCallIssue=false

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..coding.kernels import interpreting
from ..errors import InputError
from .base import INT32
from .triton_job import Job, cdiv, power_of_two
from .triton_weights import rows_of


class Settings(NamedTuple):
    """Launch settings of mode `spike`."""

    rows: int  # of weights a program visits at a time
    words: int  # of four weights, per row
    warps: int
    stages: int  # tiles of weights under way


_CANDIDATES = [
    Settings(16, 32, 1, 3),
    Settings(16, 64, 1, 4),
    Settings(8, 64, 1, 3),
    Settings(16, 32, 1, 6),
    Settings(16, 64, 2, 4),
]
# Integers of a list's head: tiles, what to subtract, channels in the high list, the weight 2^shift of that list.
_HEAD = tl.constexpr(4)
# Tokens at a time: the lists of a token take about 40 bytes per input channel.
_PORTION = 256
# Input channels of a split for every row of a tile. See `list_events` for what the 16-bit totals allow: 27.
_CHANNELS_PER_ROW = 16


def settings_for(num_tokens: int) -> list[Settings]:
    """Return the launch settings to choose from."""
    return [Settings(32, 128, 1, 1)] if interpreting() else _CANDIDATES


def run(settings: Settings, job: Job) -> None:
    """Fill job.y.

    Raises:
        InputError: the layer's weights take more than 8 GiB.
    """
    rows = rows_of(job.weight).view(torch.int32)
    if rows.numel() > INT32.max:
        raise InputError(f"Triton: expected weights of at most 8 GiB in a layer, got {tuple(job.weight.shape)}.")
    for first in range(0, len(job.x), _PORTION):
        part = slice(first, first + _PORTION)
        _run(settings, job._replace(x=job.x[part], y=job.y[part]), rows)


def _run(settings: Settings, job: Job, rows: Tensor) -> None:
    x, weight, y, _, neuron, scale, bias, failed = job
    (num_tokens, num_inputs), num_outputs = x.shape, len(weight)
    channels = settings.rows * _CHANNELS_PER_ROW
    splits, tiles = cdiv(num_inputs, channels), cdiv(rows.shape[1], settings.words)
    num_sums = tiles * (4 * settings.words + 1)
    length = 8 * channels + 10 * settings.rows  # places: 8 a channel at most, and padding
    lists = num_tokens * splits
    sizes = [lists * length, lists * channels, lists * _HEAD.value, num_tokens * num_sums]
    places, high, head, sums = torch.empty(sum(sizes), dtype=torch.int32, device=x.device).split(sizes)
    threshold = torch.empty(num_tokens, dtype=torch.float32, device=x.device)
    k, floor, ceiling = (neuron.k, neuron.floor, neuron.ceiling) if neuron else (1.0, 1.0, 1.0)
    list_events[num_tokens, splits](
        x,
        places,
        high,
        head,
        threshold,
        head if failed is None else failed,
        sums,
        num_inputs,
        num_sums,
        rows.shape[1],
        k,
        floor,
        ceiling,
        COUNTED=neuron is None,
        CHANNELS=channels,
        ROWS=settings.rows,
        LENGTH=length,
        BLOCK=min(power_of_two(num_inputs), 8192),
        num_warps=8,
        enable_fp_fusion=False,
    )
    add_events[tiles, splits, num_tokens](
        places,
        high,
        head,
        threshold,
        rows,
        threshold if scale is None else scale,
        threshold if bias is None else bias,
        y,
        sums,
        num_sums,
        rows.shape[1],
        num_outputs,
        rows.shape[1],
        RESCALE=neuron is not None,
        BIAS=bias is not None,
        CHANNELS=channels,
        ROWS=settings.rows,
        WORDS=settings.words,
        LENGTH=length,
        STAGES=settings.stages,
        num_warps=settings.warps,
        enable_fp_fusion=False,
    )


@triton.jit
def threshold_of(mean_sum, num_inputs, k, floor, ceiling):
    """Return the threshold of a token and whether its counts are sure to fit: its input is finite, no ceiling binds."""
    ratio = tl.div_rn((mean_sum / num_inputs).to(tl.float32), k)
    return tl.minimum(tl.maximum(ratio, floor), ceiling), ratio <= ceiling


@triton.jit
def rounded(ratio):
    """Return the nearest integer, half to even, of |ratio| < 2^22: float32 has no fraction left at 1.5 * 2^23."""
    return (ratio + 12582912.0).to(tl.int32, bitcast=True) - 0x4B400000


@triton.jit
def list_events(
    x_ptr,  # activations or int32 counts, [tokens, inputs]
    list_ptr,  # int32, [tokens, splits, LENGTH]
    high_ptr,  # int32, [tokens, splits, CHANNELS]
    head_ptr,  # int32, [tokens, splits, _HEAD]
    threshold_ptr,  # float32, [tokens]
    failed_ptr,  # int32, [1]
    sums_ptr,  # int32, [tokens, num_sums], which this kernel sets to zero
    num_inputs,
    num_sums,
    word_stride,
    k,
    floor,
    ceiling,
    COUNTED: tl.constexpr,
    CHANNELS: tl.constexpr,
    ROWS: tl.constexpr,
    LENGTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """List the rows that each split of a token adds; grid [tokens, splits]."""
    token = tl.program_id(0)
    split = tl.program_id(1)
    splits = tl.num_programs(1)
    x_row = x_ptr + token.to(tl.int64) * num_inputs
    local = tl.arange(0, CHANNELS)
    channel = split * CHANNELS + local
    x = tl.load(x_row + channel, mask=channel < num_inputs, other=0)
    if COUNTED:
        count = x
    else:
        part = tl.zeros([BLOCK], tl.float64)
        for start in range(0, num_inputs, BLOCK):
            at = start + tl.arange(0, BLOCK)
            every = tl.load(x_row + at, mask=at < num_inputs, other=0)
            part += tl.abs(every.to(tl.float32)).to(tl.float64)
        threshold, fits = threshold_of(tl.sum(part, 0), num_inputs, k, floor, ceiling)
        count = tl.where(fits, rounded(tl.div_rn(x.to(tl.float32), threshold)), 0)
        if split == 0:
            tl.store(threshold_ptr + token, tl.where(fits, threshold, float("nan")))
            if not fits:
                tl.store(failed_ptr, 1)
    share = tl.cdiv(num_sums, splits)
    for start in range(0, share, CHANNELS):
        at = start + local
        place = split * share + at
        here = sums_ptr + token.to(tl.int64) * num_sums + place
        tl.store(here, tl.zeros([CHANNELS], tl.int32), mask=(at < share) & (place < num_sums))

    magnitude = tl.abs(count)
    negative = (count < 0).to(tl.int32)
    # |count| = 8 * eights + digit, up to 63; what is above is in the high list.
    eights = (magnitude & 63) >> 3
    digit = magnitude & 7
    # Ranks of the channels of each digit, three 10-bit counters to a word.
    ones = tl.where((digit >= 1) & (digit <= 3), 1 << (10 * (digit - 1)), 0)
    fours = tl.where((digit >= 4) & (digit <= 6), 1 << (10 * (digit - 4)), 0)
    sevens = (digit == 7).to(tl.int32) | (eights << 16)
    upto1, upto4, upto7 = tl.cumsum(ones, 0), tl.cumsum(fours, 0), tl.cumsum(sevens, 0)
    num1, num4, num7 = tl.sum(ones, 0), tl.sum(fours, 0), tl.sum(sevens, 0)
    # Places of each digit, at least ROWS: then a slot (every ROWS-th place) never drops by two digits at a time.
    size7 = tl.maximum(num7 & 1023, ROWS)
    size6 = tl.maximum(num4 >> 20, ROWS)
    size5 = tl.maximum(num4 >> 10 & 1023, ROWS)
    size4 = tl.maximum(num4 & 1023, ROWS)
    size3 = tl.maximum(num1 >> 20, ROWS)
    size2 = tl.maximum(num1 >> 10 & 1023, ROWS)
    size1 = tl.maximum(num1 & 1023, ROWS)
    below8 = 7 * size7 + 6 * size6 + 5 * size5 + 4 * size4 + 3 * size3 + 2 * size2 + size1
    # A slot adds up to 255 * (its digits) in 16 bits, so its digits may sum to 257. It holds at most size / ROWS + 1
    # places of a digit, hence the bound; if it fails, all above the digit goes to the high list. Then the sum is at
    # most 7 * CHANNELS / ROWS + 8 + 21 + 36, which is below 257 for CHANNELS <= 27 * ROWS.
    crowded = 8 * tl.maximum(num7 >> 16, ROWS) + below8 + 36 * ROWS > 257 * ROWS
    eights = tl.where(crowded, 0, eights)
    size8 = tl.maximum(tl.where(crowded, 0, num7 >> 16), ROWS)
    end8 = size8
    end7 = end8 + size7
    end6 = end7 + size6
    end5 = end6 + size5
    end4 = end5 + size4
    end3 = end4 + size3
    end2 = end3 + size2
    end1 = end2 + size1
    num_places = tl.cdiv(end1, ROWS) * ROWS
    place_in_list = (token * splits + split).to(tl.int64)
    places = list_ptr + place_in_list * LENGTH
    # A place holds the offset of the row, a multiple of four words; bit 1: the digit drops in this slot after it;
    # bit 0: the row is subtracted. Negative offsets are empty places.
    for start in range(0, num_places, CHANNELS):
        at = start + local
        end = tl.where(at < end3, end3, tl.where(at < end2, end2, 1 << 30))
        end = tl.where(at < end5, end5, tl.where(at < end4, end4, end))
        end = tl.where(at < end7, end7, tl.where(at < end6, end6, end))
        end = tl.where(at < end8, end8, end)
        tl.store(places + at, -4 | (at + ROWS >= end).to(tl.int32) << 1, mask=at < num_places)
    tl.debug_barrier()
    event = channel * word_stride | negative
    first = tl.where(digit == 3, end4, tl.where(digit == 2, end3, end2))
    first = tl.where(digit == 5, end6, tl.where(digit == 4, end5, first))
    first = tl.where(digit == 7, end8, tl.where(digit == 6, end7, first))
    end = tl.where(digit == 3, end3, tl.where(digit == 2, end2, 1 << 30))
    end = tl.where(digit == 5, end5, tl.where(digit == 4, end4, end))
    end = tl.where(digit == 7, end7, tl.where(digit == 6, end6, end))
    rank = tl.where(digit <= 3, upto1 >> 10 * (digit - 1), upto4 >> 10 * (digit - 4))
    rank = tl.where(digit == 7, upto7, rank) & 1023
    at = first + rank - 1
    tl.store(places + at, event | (at + ROWS >= end).to(tl.int32) << 1, mask=digit > 0)
    at = (upto7 >> 16) - eights
    for _ in range(0, tl.max(eights, 0)):
        tl.store(places + at, event | (at + ROWS >= end8).to(tl.int32) << 1, mask=eights > 0)
        at += 1
        eights -= 1
    high = tl.where(crowded, magnitude >> 3, magnitude >> 6)
    is_high = (high > 0).to(tl.int32)
    num_high = tl.sum(is_high, 0)
    if num_high > 0:
        at = tl.cumsum(is_high, 0) - is_high
        tl.store(high_ptr + place_in_list * CHANNELS + at, high << 11 | local << 1 | negative, mask=is_high > 0)
    # Every place adds 128 too much, or 127 if its row is subtracted, times its digit.
    low = tl.where(crowded, digit, magnitude & 63)
    lifted = 128 * (8 * size8 + below8 + num_places - end1) - tl.sum(negative * low, 0)
    head = head_ptr + place_in_list * _HEAD
    tl.store(head, num_places // ROWS)
    tl.store(head + 1, lifted)
    tl.store(head + 2, num_high)
    tl.store(head + 3, tl.where(crowded, 3, 6))


@triton.jit
def add_events(
    list_ptr,  # as above
    high_ptr,
    head_ptr,
    threshold_ptr,
    rows_ptr,  # weights, int32 words of four int8, [inputs, words]
    scale_ptr,  # float32, [outputs]
    bias_ptr,  # [outputs], or scale_ptr again
    y_ptr,  # [tokens, outputs]: int32 sums, or rescaled activations
    sums_ptr,  # int32, zeros, [tokens, num_sums]: 4 * WORDS sums per tile, then a counter per tile
    num_sums,
    num_words,
    num_outputs,
    word_stride,
    RESCALE: tl.constexpr,
    BIAS: tl.constexpr,
    CHANNELS: tl.constexpr,
    ROWS: tl.constexpr,
    WORDS: tl.constexpr,
    LENGTH: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Add the listed rows, 4 * WORDS columns of a split of a token; grid [tiles, splits, tokens]."""
    tile = tl.program_id(0)
    split = tl.program_id(1)
    token = tl.program_id(2)
    splits = tl.num_programs(1)
    lane = tl.arange(0, WORDS)
    word = tile * WORDS + lane
    is_word = word < num_words
    place_in_list = (token * splits + split).to(tl.int64)
    places = list_ptr + place_in_list * LENGTH + tl.arange(0, ROWS)
    head = head_ptr + place_in_list * _HEAD
    # All loaded here, so that nothing waits for them at the end.
    num_tiles, lifted = tl.load(head), tl.load(head + 1)
    num_high, high_shift = tl.load(head + 2), tl.load(head + 3)
    # Weights of even and odd columns, two to a word: running sums and totals.
    even = tl.zeros([ROWS, WORDS], tl.int32)
    odd = tl.zeros([ROWS, WORDS], tl.int32)
    even_total = tl.zeros([ROWS, WORDS], tl.int32)
    odd_total = tl.zeros([ROWS, WORDS], tl.int32)
    for i in tl.range(0, num_tiles, num_stages=STAGES):
        place = tl.load(places + i * ROWS)
        row = tl.multiple_of((place & -4)[:, None], [1, 4])
        w = tl.load(rows_ptr + (row + word[None, :]), mask=(place >= 0)[:, None] & is_word[None, :], other=0)
        lift = (-2139062144 ^ -(place & 1))[:, None]  # 0x80 in each byte adds 128; 0x7F complements as well
        drops = (-(place >> 1 & 1))[:, None]
        even += (w ^ lift) & 0x00FF00FF
        odd += (w >> 8 ^ lift) & 0x00FF00FF
        even_total += even & drops
        odd_total += odd & drops
    even_total += even
    odd_total += odd
    sum0 = tl.sum(even_total & 0xFFFF, 0) - lifted
    sum1 = tl.sum(odd_total & 0xFFFF, 0) - lifted
    sum2 = tl.sum(even_total >> 16 & 0xFFFF, 0) - lifted
    sum3 = tl.sum(odd_total >> 16 & 0xFFFF, 0) - lifted
    # Large counts are rare: a row at a time, shifted for every binary digit.
    for i in range(0, num_high):
        event = tl.load(high_ptr + place_in_list * CHANNELS + i)
        row = (split * CHANNELS + (event >> 1 & 1023)).to(tl.int64) * word_stride
        sign = -(event & 1)
        w = tl.load(rows_ptr + row + word, mask=is_word, other=0)
        rest = event >> 11
        shift = high_shift
        while rest > 0:
            if rest & 1:
                sum0 += ((w << 24 >> 24 ^ sign) - sign) << shift
                sum1 += ((w << 16 >> 24 ^ sign) - sign) << shift
                sum2 += ((w << 8 >> 24 ^ sign) - sign) << shift
                sum3 += ((w >> 24 ^ sign) - sign) << shift
            rest = rest >> 1
            shift += 1
    token_sums = sums_ptr + token.to(tl.int64) * num_sums
    here = token_sums + tile * (4 * WORDS) + lane
    tl.atomic_add(here, sum0, sem="relaxed")
    tl.atomic_add(here + WORDS, sum1, sem="relaxed")
    tl.atomic_add(here + 2 * WORDS, sum2, sem="relaxed")
    tl.atomic_add(here + 3 * WORDS, sum3, sem="relaxed")
    # The program that comes last to a tile finds all sums there.
    tl.debug_barrier()
    num_arrived = tl.atomic_add(token_sums + tl.num_programs(0) * (4 * WORDS) + tile, 1, sem="acq_rel")
    if num_arrived == splits - 1:
        for column in tl.static_range(4):
            total = tl.load(here + column * WORDS, cache_modifier=".cg")
            output = 4 * word + column
            is_output = output < num_outputs
            if RESCALE:
                scale = tl.load(scale_ptr + output, mask=is_output, other=0)
                total = total.to(tl.float32) * scale * tl.load(threshold_ptr + token)
                if BIAS:
                    total += tl.load(bias_ptr + output, mask=is_output, other=0).to(tl.float32)
            here_y = y_ptr + token.to(tl.int64) * num_outputs + output
            tl.store(here_y, total.to(y_ptr.dtype.element_ty), mask=is_output)
