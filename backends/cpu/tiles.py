"""Adds rows of 2-, 4- and 8-bit weights, a block of input channels and a tile of outputs at a time.

The rows of a block (a group with a scale of its own, or 32 channels) are added with their sums in vector registers:
bytes for weights of less than 8 bits, 16-bit words for INT8, as they are unsigned and few enough of them share a place
(see `digits.py`). 2-bit weights first come together in halves of bytes, five rows at a time. Sums of places come
together in 16 bits, or in 32 where the block's counts need it. Then the block's exact sums are rescaled, by float32
operations in a fixed order, whatever the number of threads.

Where small counts read only the upper bits of their rows, the lower ones are masked as a row is added. Such an integer
stands for the middle of all that have these upper bits, so a block's sums are kept in halves: twice the sum of what was
added, and 2^dropped - 1 for each count that drops so many bits.

A row's bytes are unsigned: INT8 weights are read with 128 added, signed ones of 4 or 2 bits stored with 8 or 2 added.
To subtract a row, its complement is added. `Digits` has the sums that both are corrected by.

Rows of less than 8 bits are packed tile by tile, so that memory is read in order: tiles have rows of 64 bytes, and the
last ones half or a quarter of that. INT8 rows are read where they lie, 64 bytes at a time.
"""

# Type checkers do not know that numba passes an intrinsic its first argument.
# pyright: reportCallIssue=false

from __future__ import annotations

import functools
from collections.abc import Sequence
from ctypes import c_int64

import numba
import numpy as np
import torch
from numba.np.numpy_support import carray
from torch import Tensor
from torch.nn import functional as F

from ...compiled import compiled
from ..base import ScaleUnits
from .digits import list_digits
from .memory import at, record_of
from .rule import LARGEST_CHARGE
from .simd import (
    LINE,
    alternate_first,
    alternate_second,
    as_bytes,
    as_longs,
    as_numbers,
    as_words,
    fitted,
    halves_to_floats,
    has_halves,
    int32_at,
    load,
    no_bytes_16,
    no_bytes_32,
    no_bytes_64,
    no_floats,
    no_numbers,
    no_small_integers,
    no_words,
    num_lanes,
    prefetch,
    same,
    store,
    to_floats,
    uint8_at,
    zeros,
)

# Channels of a block where all channels share a scale.
BLOCK = 32
# Outputs of a tile, by the bits of a weight; those of the narrowest tile, of which rows have whole numbers.
TILE = {2: 256, 4: 128, 8: 64}
NARROW_TILE = 64
MOST_OUTPUTS = max(TILE.values())
# Outputs at whose multiples threads divide a layer of INT8 rows.
SHARE = 128
# Rows of one place that are added in 8 bits, 85 * 3 = 17 * 15 = 255, or in 16 bits, 256 * 255 < 2^16; and rows of
# 2-bit weights that are added in 4 bits.
LONGEST_RUN = {2: 85, 4: 17, 8: 256}
LONGEST_RUN_2, LONGEST_RUN_4, LONGEST_RUN_8 = LONGEST_RUN.values()
_IN_HALF_BYTES = 5
_WIDEST_SUM = 2**15 - 1
# How many outputs ahead of the additions rows are prefetched: a line with each row that is added, since a machine has
# few lines under way at a time, and would wait for them in front of a tile.
_OUTPUTS_AHEAD = 1024

# Rows and what rescales their sums. Addresses and numbers.
FIELDS: dict[str, type] = dict.fromkeys(
    (
        "rows",  # rows of 2 or 4 bits as `pack` gives them, or INT8 [inputs, width]
        "scale",  # float32, float16 or int8 [groups, width]
        "minimum",  # the same, or 0
        "unit",  # float32 [width], of which int8 scales are multiples
        "minimum_unit",  # the same of minima
        "num_inputs",
        "num_outputs",
        "width",  # outputs that rows, scale and minimum have memory for: whole narrow tiles
        "bits",
        "tile",  # outputs of a tile that is not narrow
        "offset",  # was added to weights of 2 or 4 bits to make them unsigned
        "block",  # channels of a block
        "grouped",  # 1 if every block has a scale, 0 if all blocks share one
        "scale_bytes",  # 4, 2 or 1, of a scale and of a minimum
        "edge_0",  # counts of magnitudes up to this one do not read the lowest `dropped_0` bits; 0 if all read all
        "dropped_0",
        "edge_1",  # nor others up to this one, larger than `edge_0`, the lowest `dropped_1` bits; or 0
        "dropped_1",
        "seen_sums",  # int32 [groups, outputs] to fill with the sums, or 0; for checks
    ),
    c_int64,
)
ROWS, _ = record_of(FIELDS)


def pack(weight: Tensor, group_size: int, bits: int, offset: int) -> Tensor:
    """Return weights of 4 or 2 bits, several in a byte, in the order in which the kernel reads them.

    Args:
        weight: int8 [out, in], from -offset to 2^bits - 1 - offset.
        group_size: channels of a block; missing ones are filled with 0.
        bits: 4 or 2.
        offset: 0 or 2^(bits - 1).
    Returns:
        uint8: for each block, tile and channel a row of the tile's outputs. A row of w words of 16 bits has, in its
        word i, output i of the tile in the lowest bits of the first byte, i + w in those of the second, i + 2w in the
        next bits of the first, and so on.
    """
    num_outputs, num_inputs = weight.shape
    num_blocks, fields = -(-num_inputs // group_size), 8 // bits
    width = -(-num_outputs // NARROW_TILE) * NARROW_TILE
    rows = np.zeros((num_blocks * group_size, width), np.uint8)
    rows[:num_inputs, :num_outputs] = weight.t().numpy() + np.int8(offset)
    parts, start = [], 0
    tile = TILE[bits]
    while start < width:
        stop = start + (width - start) // tile * tile  # as many tiles of this width as there are
        num_tiles = (stop - start) // tile
        columns = rows[:, start:stop].reshape(num_blocks, group_size, num_tiles, fields, 2, tile // (2 * fields))
        columns = columns.transpose(0, 2, 1, 5, 4, 3)  # block, tile, channel, word, byte, field
        packed = functools.reduce(np.bitwise_or, (columns[..., i] << bits * i for i in range(fields)))
        parts.append(packed.reshape(num_blocks, num_tiles * group_size * tile * bits // 8))
        start, tile = stop, tile // 2
    # A copy, since PyTorch's memory begins at a cache line, and so does a row of 64 bytes then.
    return torch.from_numpy(np.concatenate(parts, 1)).clone()


class Rows:
    """Memory with a layer's weights as the kernel reads them.

    Attributes:
        fields: the `FIELDS` of a record, but for `seen_sums`.
        most_charge: sum of |count| of a token up to which all sums fit 32 bits.
    """

    def __init__(
        self,
        weight: Tensor,
        scale: Tensor,
        minimum: Tensor | None,
        group_size: int | None,
        weight_bits: int,
        units: ScaleUnits | None = None,
    ) -> None:
        """Read INT8 rows where they lie, pack those of 4 bits, and order scales by group.

        Args:
            weight: int8 [out, in], of which weight.t() is contiguous.
            scale: float32 [out, groups].
            minimum: float32 [out, groups], or None.
            group_size: channels of a group; None for all.
            weight_bits: 8, 4 or 2; the integers of the latter start at 0 with a minimum, else at -2^(weight_bits - 1).
            units: of scale and minimum, if groups are to be added up in integers.
        """
        num_outputs, num_inputs = weight.shape
        grouped = group_size is not None or minimum is not None
        block = (group_size or num_inputs) if grouped else BLOCK
        missing = -num_outputs % NARROW_TILE
        offset = 0 if minimum is not None else 2 ** (weight_bits - 1)
        if weight_bits < 8:
            rows = pack(weight, block, weight_bits, offset)
        else:
            rows = F.pad(weight.t(), (0, missing)) if missing else weight.t()
        of_groups = (scale, minimum) if units is None else (units.steps, units.minimum_steps)
        scales = [None if one is None else F.pad(one.t(), (0, missing)).contiguous() for one in of_groups]
        of_outputs = (None, None) if units is None else (units.unit, units.minimum_unit)
        scales += [None if one is None else F.pad(one, (0, missing)) for one in of_outputs]
        self.most_charge = LARGEST_CHARGE if units is None else min(LARGEST_CHARGE, units.most_charge)
        if units is None and grouped and has_halves() and all(one is None or _are_halves(one) for one in scales):
            scales = [None if one is None else one.half() for one in scales]
        self._kept = (rows, *scales)
        addresses = [0 if one is None else one.data_ptr() for one in self._kept]
        self.fields = {
            **dict(zip(("rows", "scale", "minimum", "unit", "minimum_unit"), addresses, strict=True)),
            "num_inputs": num_inputs,
            "num_outputs": num_outputs,
            "width": num_outputs + missing,
            "bits": weight_bits,
            "tile": TILE[weight_bits],
            "offset": offset,
            "block": block,
            "grouped": int(grouped),
            "scale_bytes": 4 if scales[0] is None else scales[0].element_size(),
        }


def reading(upper: Sequence[tuple[int, int]]) -> dict[str, int]:
    """Return the `FIELDS` that say which counts read upper bits.

    Args:
        upper: pairs (edge, dropped), two at most: counts of magnitudes up to the edge, and beyond the edge before, read
            weights without that many of their lowest bits. Edges rise.
    """
    return {
        f"{name}_{i}": number
        for i, pair in enumerate(upper)
        for name, number in zip(("edge", "dropped"), pair, strict=True)
    }


def _are_halves(numbers: Tensor) -> bool:
    """Return whether float16 has all of these float32 numbers exactly, as it has the scales of a GGUF file."""
    return torch.equal(numbers.half().float(), numbers)


@compiled
def list_for(projection, count, digits):  # pragma: no cover - compiled
    """List the events of an input for a projection, and for all with the same block and bits.

    Args:
        projection: a record with the `FIELDS`.
        count: int32 [inputs].
        digits: a `Digits`, filled.
    """
    block, edges = projection.block, (projection.edge_0, projection.edge_1)
    every = (1 << projection.bits) - 1
    masks = (every << projection.dropped_0) & every, (every << projection.dropped_1) & every, every
    if projection.bits == 2:
        list_digits(count, block, LONGEST_RUN_2, 0, edges, masks, 85, digits)
    elif projection.bits == 4:
        list_digits(count, block, LONGEST_RUN_4, 0, edges, masks, 17, digits)
    else:
        list_digits(count, block, LONGEST_RUN_8, 128, edges, masks, 1, digits)


@compiled
def add_tiles(projection, digits, start, stop, sums, totals, y):  # pragma: no cover - compiled
    """Fill y, or totals if all channels share a scale, with the sums of outputs `start` to before `stop`.

    Args:
        projection: a record with the `FIELDS`.
        digits: the input's `Digits`, from `list_for`.
        start: a multiple of a tile's outputs.
        stop: a multiple of a tile's outputs, or all outputs.
        sums: int32 [MOST_OUTPUTS], scratch memory.
        totals: int32 [stop - start + 63 or more].
        y: float32 [stop - start + 63 or more]: the sum over groups g of scale[g] * S[g] + minimum[g] * C[g], each
            operation rounded, the groups one after the other from the first on. With `edge_0`, S is twice a sum,
            and half of the scale is taken.
    """
    largest, subtracted, lifted = 128, 255, 128
    if projection.bits < 8:
        subtracted, lifted = (1 << projection.bits) - 1, projection.offset
        largest = max(subtracted - lifted, lifted)
    end = (stop + 63) // 64 * 64
    totals[: end - start] = 0
    y[: end - start] = 0
    to_sums, to_totals, to_y = sums.ctypes.data, totals.ctypes.data, y.ctypes.data
    ends, shifts, channels, flips, masks = (
        digits.end.ctypes.data,
        digits.shift.ctypes.data,
        digits.channel.ctypes.data,
        digits.flip.ctypes.data,
        digits.mask.ctypes.data,
    )
    ahead = 0, start
    for _ in range(_OUTPUTS_AHEAD // projection.tile):
        lines, ahead = _lines_of(projection, digits, ahead, start, end)
        _fetch_all(lines)
    for b in range((projection.num_inputs + projection.block - 1) // projection.block):
        first = np.int64(digits.first[b])
        num_runs = digits.first[b + 1] - first
        runs = ends + 4 * first, shifts + 4 * first
        events = channels, flips, np.int64(digits.end[first - 1]) if first > 0 else 0
        correction = subtracted * digits.negative[b] + lifted * digits.total[b]
        if projection.edge_0 > 0:
            correction -= digits.masked[b]
        wide = digits.charge[b] * largest > _WIDEST_SUM
        change = correction, digits.lift[b]
        output = start
        while output < end:
            lines, ahead = _lines_of(projection, digits, ahead, start, end)
            width = _tile_width(projection, output)
            rows, stride = _place(projection, b, output)
            kind = projection.bits, width
            if projection.edge_0 > 0:
                _add_upper(kind, rows, stride, runs, num_runs, events, masks, lines, change, wide, to_sums)
            elif wide:
                _add_tile(kind, rows, stride, runs, num_runs, events, None, lines, correction, np.int32(0), to_sums)
            else:
                _add_tile(kind, rows, stride, runs, num_runs, events, None, lines, correction, np.int16(0), to_sums)
            done = 4 * (output - start)
            into = to_totals + done, to_y + done
            tile = b, output, width
            output += width
            if projection.grouped == 0:
                _add_up(to_sums, width, into[0])
                continue
            _take_group(projection, tile, to_sums, digits.total[b], into)
            if projection.seen_sums != 0:
                _show(projection, b, tile[1], min(width, stop - tile[1]), sums)
    if projection.scale_bytes == 1:
        _in_floats(projection, start, end, to_totals, to_y)
    if projection.grouped == 0 and projection.seen_sums != 0:
        _show(projection, 0, start, stop - start, totals)


@compiled(forceinline=True)
def _take_group(projection, tile, sums, total, into):  # pragma: no cover - compiled
    """Add the scaled sums of a tile in a group: to y as floats, or to totals and y as integers.

    Args:
        projection: a record with the `FIELDS`.
        tile: group, first output, and number of outputs.
        sums: address of the tile's sums.
        total: sum of the group's counts.
        into: addresses of totals and of y.
    """
    group, output, width = tile
    first = group * projection.width + output
    if projection.scale_bytes == 1:
        _add_scaled(projection, first, sums, width, total, into)
    else:
        _rescale(projection, first, sums, width, np.float32(total), into[1])


@compiled(forceinline=True)
def _tile_width(projection, output):  # pragma: no cover - compiled
    """Return the outputs of the tile that begins with an output."""
    width = projection.tile
    while width > projection.width - output:
        width //= 2
    return width


@compiled(forceinline=True)
def _add_tile(
    kind, rows, stride, runs, num_runs, events, masks, lines, correction, zero, out
):  # pragma: no cover - compiled
    """Call the kernel for rows of so many bits and outputs; see `_add_nibbles` for the rest."""
    bits, width = kind
    row_bytes = bits * width // 8
    if bits == 8:
        rest = _add_bytes(rows, stride, runs, num_runs, events, masks, lines, correction, zero, out)
    elif bits == 4 and row_bytes == 64:
        rest = _add_nibbles(rows, stride, runs, num_runs, events, masks, lines, correction, no_bytes_64(), zero, out)
    elif bits == 4:
        rest = _add_nibbles(rows, stride, runs, num_runs, events, masks, lines, correction, no_bytes_32(), zero, out)
    elif row_bytes == 64:
        rest = _add_pairs(rows, stride, runs, num_runs, events, lines, correction, no_bytes_64(), zero, out)
    elif row_bytes == 32:
        rest = _add_pairs(rows, stride, runs, num_runs, events, lines, correction, no_bytes_32(), zero, out)
    else:
        rest = _add_pairs(rows, stride, runs, num_runs, events, lines, correction, no_bytes_16(), zero, out)
    _fetch_all(rest)


@compiled
def _add_upper(
    kind, rows, stride, runs, num_runs, events, masks, lines, change, wide, out
):  # pragma: no cover - compiled
    """Add a tile where small counts read upper bits: double the sums, and add the `lift` of `change` to each."""
    correction, lift = change
    if wide:
        _add_tile(kind, rows, stride, runs, num_runs, events, masks, lines, correction, np.int32(0), out)
    else:
        _add_tile(kind, rows, stride, runs, num_runs, events, masks, lines, correction, np.int16(0), out)
    for place in range(out, out + 4 * kind[1], 128):
        once = load(place, no_numbers())
        store(place, once + once + same(lift, no_numbers()))


@compiled(forceinline=True)
def _add_up(sums, width, totals):  # pragma: no cover - compiled
    for place in range(0, 4 * width, 128):
        store(totals + place, load(totals + place, no_numbers()) + load(sums + place, no_numbers()))


@compiled(forceinline=True)
def _rescale(projection, first, sums, width, total, y):  # pragma: no cover - compiled
    """Add scale * sum + minimum * total to y, for `width` outputs whose scale and minimum is number `first` on."""
    scale, minimum, size = projection.scale, projection.minimum, projection.scale_bytes
    for i in range(0, width, 32):
        place = 4 * i
        steps = _floats_at(scale + size * (first + i), size)
        if projection.edge_0 > 0:
            steps = steps * same(np.float32(0.5), no_floats())
        term = to_floats(load(sums + place, no_numbers())) * steps
        if minimum != 0:
            term = term + same(total, no_floats()) * _floats_at(minimum + size * (first + i), size)
        store(y + place, load(y + place, no_floats()) + term)


@compiled
def _add_scaled(projection, first, sums, width, total, into):  # pragma: no cover - compiled
    """Add integer scale * sum and integer minimum * total to the integers at the addresses `into`; see `_rescale`."""
    totals, of_minima = into
    for i in range(0, width, 32):
        place = 4 * i
        steps = as_numbers(load(projection.scale + first + i, no_small_integers()))
        term = load(sums + place, no_numbers()) * steps
        store(totals + place, load(totals + place, no_numbers()) + term)
        if projection.minimum != 0:
            steps = as_numbers(load(projection.minimum + first + i, no_small_integers()))
            term = same(total, no_numbers()) * steps
            store(of_minima + place, load(of_minima + place, no_numbers()) + term)


@compiled
def _in_floats(projection, start, end, totals, y):  # pragma: no cover - compiled
    """Turn the integers of outputs into floats: those at `totals`, and those of minima, which y has so far."""
    for output in range(start, end, 32):
        place = 4 * (output - start)
        unit = load(projection.unit + 4 * output, no_floats())
        if projection.edge_0 > 0:
            unit = unit * same(np.float32(0.5), no_floats())
        found = to_floats(load(totals + place, no_numbers())) * unit
        if projection.minimum != 0:
            unit = load(projection.minimum_unit + 4 * output, no_floats())
            found = found + to_floats(load(y + place, no_numbers())) * unit
        store(y + place, found)


@compiled(forceinline=True)
def _floats_at(address, size):  # pragma: no cover - compiled
    """Return 32 numbers of 2 or 4 bytes as float32."""
    if size == 2:
        return halves_to_floats(load(address, no_words()))
    return load(address, no_floats())


@compiled
def _show(projection, group, start, num, sums):  # pragma: no cover - compiled
    seen = carray(at(projection.seen_sums + 4 * group * projection.num_outputs, numba.int32), projection.num_outputs)
    seen[start : start + num] = sums[:num]


@compiled(forceinline=True)
def _place(projection, b, output):  # pragma: no cover - compiled
    """Return the address of a tile's rows in a block, and the bytes from a row to the next."""
    if projection.bits == 8:
        return projection.rows + b * projection.block * projection.width + output, projection.width
    stride = projection.bits * _tile_width(projection, output) // 8
    return projection.rows + projection.block * (b * projection.width + output) * projection.bits // 8, stride


@compiled(forceinline=True)
def _lines_of(projection, digits, tile, start, stop):  # pragma: no cover - compiled
    """Return what a tile will read, no more, and the tile after it; prefetch its scales.

    Args:
        projection: a record with the `FIELDS`.
        digits: the input's `Digits`.
        tile: its block and its first output.
        start: first output of the block's first tile.
        stop: end of its last tile.
    Returns:
        Lines for `_fetch_line`, and the block and the first output of the next tile.
    """
    b, output = tile
    rows, stride = _place(projection, b, output)
    if b * projection.block >= projection.num_inputs:
        return (0, 0, rows, stride), tile
    active = digits.active.ctypes.data
    first, last = np.int64(digits.first_active[b]), np.int64(digits.first_active[b + 1])
    width, size = _tile_width(projection, output), projection.scale_bytes
    if projection.grouped:
        for place in range(0, size * width, LINE):
            here = size * (b * projection.width + output) + place
            prefetch(projection.scale + here)
            if projection.minimum != 0:
                prefetch(projection.minimum + here)
    output += width
    lines = active + 4 * first, active + 4 * last, rows, stride
    return lines, ((b, output) if output < stop else (b + 1, start))


@compiled(forceinline=True)
def _fetch_line(lines):  # pragma: no cover - compiled
    """Prefetch the first of some lines, if there is one, and return the others.

    Args:
        lines: addresses of the first line's channel in `Digits.active`, and of the end of these channels; address of
            channel 0's line, and bytes from a channel's line to the next.
    """
    active, end, rows, stride = lines
    if active < end:
        prefetch(rows + int32_at(active) * stride)
        active += 4
    return active, end, rows, stride


@compiled(forceinline=True)
def _fetch_all(lines):  # pragma: no cover - compiled
    while lines[0] < lines[1]:
        lines = _fetch_line(lines)


@compiled
def _add_nibbles(
    rows, stride, runs, num_runs, events, masks, lines, correction, nothing, zero, out
):  # pragma: no cover - compiled
    """Write the sums of a tile of 4-bit weights as int32 to the address `out`.

    Args:
        rows: address of the tile's rows in a block.
        stride: bytes from a row to the next.
        runs: addresses of the block's first `Digits.end` and `Digits.shift`.
        num_runs: of the block.
        events: addresses of the first of all `Digits.channel` and `Digits.flip`, and number of the block's first event.
        masks: address of the first of all `Digits.mask`, or None where all bits are added.
        lines: of a later tile, one of which is prefetched with each event; see `_fetch_line`.
        correction: is subtracted from all sums.
        nothing: a vector of zero bytes as long as a row.
        zero: of the type in which places come together, int16 or int32.
        out: address.
    Returns:
        The lines that are left.
    """
    low, low_byte, eight = same(15, nothing), same(255, as_words(nothing)), same(8, as_words(nothing))
    half_byte = same(4, as_longs(nothing))
    t0 = zeros(as_words(nothing), zero)
    t1, t2, t3 = t0, t0, t0
    channels, flips, event = events
    for run in range(num_runs):
        end = np.int64(int32_at(runs[0] + 4 * run))
        lows, shifted = nothing, as_longs(nothing)
        while event < end:
            row = load(rows + int32_at(channels + 4 * event) * stride, nothing)
            lines = _fetch_line(lines)
            row = row ^ same(uint8_at(flips + event), nothing)
            if masks is not None:
                row = row & same(uint8_at(masks + event), nothing)
            lows = lows + (row & low)
            shifted = shifted + (as_longs(row) >> half_byte)
            event += 1
        highs = _without_lows(shifted, lows)
        shift = same(int32_at(runs[1] + 4 * run), t0)
        t0 = (t0 + fitted(as_words(lows) & low_byte, t0)) << shift
        t1 = (t1 + fitted(as_words(lows) >> eight, t0)) << shift
        t2 = (t2 + fitted(as_words(highs) & low_byte, t0)) << shift
        t3 = (t3 + fitted(as_words(highs) >> eight, t0)) << shift
    too_much, step = same(correction, t0), num_lanes(nothing)
    store(out, as_numbers(t0 - too_much))
    store(out + 2 * step, as_numbers(t1 - too_much))
    store(out + 4 * step, as_numbers(t2 - too_much))
    store(out + 6 * step, as_numbers(t3 - too_much))
    return lines


@compiled(forceinline=True)
def _without_lows(shifted, lows):  # pragma: no cover - compiled
    """Return the sums of the upper halves of rows' bytes, as bytes.

    Args:
        shifted: sums of rows as 64-bit numbers, shifted by 4 bits: byte i has the upper half of byte i of the row, and
            above it the lower half of byte i + 1. That saves a mask for each row.
        lows: sums of the lower halves, as bytes.
    """
    lows = as_longs(lows)
    eight, half_byte = same(8, lows), same(4, lows)
    return as_bytes(shifted - ((lows >> eight) << half_byte))


@compiled
def _add_pairs(
    rows, stride, runs, num_runs, events, lines, correction, nothing, zero, out
):  # pragma: no cover - compiled
    """Write the sums of a tile of 2-bit weights as int32 to the address `out`; arguments as of `_add_nibbles`.

    Each half of a byte of `even` and `odd` has room for the sum of five weights, which then moves to a byte.
    """
    pairs, low = same(0x33, nothing), same(15, nothing)
    two, four = same(2, as_words(nothing)), same(4, as_words(nothing))
    low_byte, eight = same(255, as_words(nothing)), same(8, as_words(nothing))
    t0 = zeros(as_words(nothing), zero)
    t1, t2, t3, t4, t5, t6, t7 = t0, t0, t0, t0, t0, t0, t0
    channels, flips, event = events
    for run in range(num_runs):
        end = np.int64(int32_at(runs[0] + 4 * run))
        b0, b1, b2, b3 = nothing, nothing, nothing, nothing
        while event < end:
            even, odd = nothing, nothing
            stop = min(event + _IN_HALF_BYTES, end)
            while event < stop:
                row = load(rows + int32_at(channels + 4 * event) * stride, nothing)
                lines = _fetch_line(lines)
                row = row ^ same(uint8_at(flips + event), nothing)
                even = even + (row & pairs)
                odd = odd + (as_bytes(as_words(row) >> two) & pairs)
                event += 1
            b0 = b0 + (even & low)
            b1 = b1 + (odd & low)
            b2 = b2 + (as_bytes(as_words(even) >> four) & low)
            b3 = b3 + (as_bytes(as_words(odd) >> four) & low)
        shift = same(int32_at(runs[1] + 4 * run), t0)
        t0 = (t0 + fitted(as_words(b0) & low_byte, t0)) << shift
        t1 = (t1 + fitted(as_words(b0) >> eight, t0)) << shift
        t2 = (t2 + fitted(as_words(b1) & low_byte, t0)) << shift
        t3 = (t3 + fitted(as_words(b1) >> eight, t0)) << shift
        t4 = (t4 + fitted(as_words(b2) & low_byte, t0)) << shift
        t5 = (t5 + fitted(as_words(b2) >> eight, t0)) << shift
        t6 = (t6 + fitted(as_words(b3) & low_byte, t0)) << shift
        t7 = (t7 + fitted(as_words(b3) >> eight, t0)) << shift
    too_much, step = same(correction, t0), 2 * num_lanes(nothing)
    store(out, as_numbers(t0 - too_much))
    store(out + step, as_numbers(t1 - too_much))
    store(out + 2 * step, as_numbers(t2 - too_much))
    store(out + 3 * step, as_numbers(t3 - too_much))
    store(out + 4 * step, as_numbers(t4 - too_much))
    store(out + 5 * step, as_numbers(t5 - too_much))
    store(out + 6 * step, as_numbers(t6 - too_much))
    store(out + 7 * step, as_numbers(t7 - too_much))
    return lines


@compiled
def _add_bytes(
    rows, stride, runs, num_runs, events, masks, lines, correction, zero, out
):  # pragma: no cover - compiled
    """Write the sums of 64 outputs of INT8 weights as int32 to the address `out`; arguments as of `_add_nibbles`."""
    nothing = no_bytes_64()
    eight, low_byte = same(8, as_words(nothing)), same(255, as_words(nothing))
    even = zeros(as_words(nothing), zero)
    odd = even
    channels, flips, event = events
    for run in range(num_runs):
        end = np.int64(int32_at(runs[0] + 4 * run))
        lows, highs = as_words(nothing), as_words(nothing)
        while event < end:
            row = load(rows + int32_at(channels + 4 * event) * stride, nothing)
            lines = _fetch_line(lines)
            row = row ^ same(uint8_at(flips + event), nothing)
            if masks is not None:
                row = row & same(uint8_at(masks + event), nothing)
            words = as_words(row)
            lows = lows + (words & low_byte)
            highs = highs + (words >> eight)
            event += 1
        shift = same(int32_at(runs[1] + 4 * run), even)
        even = (even + fitted(lows, even)) << shift
        odd = (odd + fitted(highs, even)) << shift
    too_much = same(correction, even)
    evens, odds = as_numbers(even - too_much), as_numbers(odd - too_much)
    store(out, alternate_first(evens, odds))
    store(out + 128, alternate_second(evens, odds))
    return lines
