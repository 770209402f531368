"""Mode `spike` on a GPU: weight rows of the channels that spike are added, and nothing is multiplied.

`list_events` counts (or takes counts), and lists the rows to add, ordered by digit; `add_events` adds them. It uses
that the sum over digits d of d * (rows of digit d) is the sum over j = 1, 2, ... of all rows with d >= j: rows come
with falling digit into a running sum, and every time the digit drops by one, the running sum is added to a total. The
digits go up to 8, and up to 16 where counts are large; a row of a |count| up to that is read and added once.

A list is divided into shares of equally many tiles. A program is one warp and has a share for each of its slots: as
many threads as read 4 * words outputs of a row, 16 bytes each. A thread adds up `rows` rows of a tile in its
registers, so that running sums and totals are kept once per thread, for any size of a tile.

Where small counts read upper bits, and these are the upper half, such a row is read from a plane that holds no more
than them (`upper.py`).

Weights are read as 32-bit words of four and lifted by 128 to 0 ... 255, so that two of them fit the 16-bit halves of a
word, and one addition adds two weights. A negative count adds the complement 255 - (w + 128) = 127 - w instead. What
was added too much is known from the list and subtracted at the end.
"""

# pyright: reportArgumentType=false, reportIndexIssue=false, reportCallIssue=false

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...coding.kernels import interpreting
from ...errors import InputError
from ..base import INT32, MAX_WEIGHT
from .add import add_events
from .job import Job, Matrix, are_large, cdiv, num_processors, power_of_two
from .list import HEAD, THREADS, list_events
from .narrow import NarrowPlan, NarrowSettings, narrow_settings_for
from .stage import Stage, three
from .tuning import fastest
from .upper import have_planes, planes_of, upper_bits
from .weights import rows_of


class Settings(NamedTuple):
    """Launch settings of mode `spike`."""

    rows: int  # of weights that a thread adds up at a time
    words: int  # of four weights, per row
    stages: int  # tiles of weights under way, 2 or 3
    programs: int  # of `add_events`, about, per multiprocessor
    prefetch: int  # the least |count| whose row `list_events` already fetches into the L2 cache, at k = 3; 0 for none
    channels: int = 256  # of a list
    planes: bool = False  # whether rows are as of `planes_of`

    @property
    def slots(self) -> int:
        """Rows that a warp adds side by side: a thread reads 16 bytes of a row, or of a plane, at a time."""
        return 32 // (self.words // (8 if self.planes else 4))


_CANDIDATES = [
    Settings(8, 32, 3, 8, 6),
    Settings(8, 32, 2, 8, 6),
    Settings(4, 32, 2, 8, 5),
    Settings(8, 32, 2, 4, 5),
]
# The same where digits go up to 16: long lists have less padding.
_LARGE_CANDIDATES = [
    Settings(8, 32, 2, 8, 6, 512),
    Settings(8, 32, 2, 8, 6),
    Settings(4, 32, 2, 12, 5),
]
# Beside those above, where small counts read no more than a plane.
_PLANE_CANDIDATES = [
    Settings(8, 64, 2, 8, 6, 512, planes=True),
    Settings(4, 64, 2, 8, 6, planes=True),
]
# Rows that are added up in 16 bits: 255 * 257 < 2^16.
_MOST_ROWS = 256
# Two sums below it, and the number of programs, fit 64 bits.
_PAIRED_SUMS, _PAIRED_PROGRAMS = 2**25, 2**11
# Tokens at a time: the lists of a token take about 40 bytes per input channel.
_PORTION = 256


def settings_for(work: Stage | Job) -> list[Settings | NarrowSettings]:
    """Return the launch settings to choose from; those of the kernel for narrow layers, for one token, last."""
    alone = narrow_settings_for(work.num_inputs) if len(work.x) == 1 else []
    return [*two_kernel_settings(work), *alone]


def two_kernel_settings(work: Stage | Job) -> list[Settings]:
    """Return the launch settings of the two kernels that list and add."""
    with_planes = have_planes(work.upper)
    if interpreting():
        small = Settings(8, 64, 2, 1, 0)
        return [small, small._replace(planes=True, channels=512)] if with_planes else [small]
    whole = _LARGE_CANDIDATES if are_large(work.bounds) else _CANDIDATES
    return [*whole, *_PLANE_CANDIDATES] if with_planes else whole


def run(settings: Settings | NarrowSettings, job: Job) -> None:
    """Fill job.y.

    Raises:
        InputError: the layer's weights take more than 8 GiB.
    """
    matrices = (Matrix(job.weight, job.scale, job.bias, upper=job.upper),)
    for first in range(0, len(job.x), _PORTION):
        part = slice(first, first + _PORTION)
        failed = None if job.failed is None else job.failed[part]
        plan_for(settings, Stage(job.x[part], matrices, job.y[part], job.rule, job.bounds, failed)).run()


def tuned(stage: Stage) -> Settings | NarrowSettings:
    """Return the launch settings with which a stage is fastest; it runs many times, unless they are known."""

    def run_stage(settings: Settings | NarrowSettings) -> None:
        plan_for(settings, stage).run()

    return fastest(f"stage {stage.kind}", settings_for(stage), run_stage, stage.x.device)


class Plan(NamedTuple):
    """How a stage is divided, and the memory that its kernels share; `list.py` says what is in it."""

    settings: Settings
    stage: Stage
    rows: tuple[Tensor, ...]  # weights of each matrix, int32 words of four, [inputs, words]
    lists: int  # of a token
    shares: int  # of a list
    top: int  # the largest digit
    prefetch: int  # the least |count| whose row `list_events` fetches into the L2 cache; 0 for none
    pairs: bool  # whether two sums share 64 bits
    length: int  # of a list
    grid: tuple[int, int, int]  # of `add_events`
    places: Tensor
    high: Tensor
    head: Tensor
    sums: Tensor
    threshold: Tensor

    def run(self) -> None:
        """List, add, rescale, and fill the stage's y."""
        list_rows(self)
        add_rows(self)


def plan_for(settings: Settings | NarrowSettings, stage: Stage) -> Plan | NarrowPlan:
    """Divide the work and allocate memory.

    Raises:
        InputError: the weights of a matrix take more than 8 GiB.
    """
    planes = isinstance(settings, Settings) and settings.planes
    rows = tuple((planes_of if planes else rows_of)(matrix.weight).view(torch.int32) for matrix in stage.matrices)
    for matrix, words in zip(stage.matrices, rows, strict=True):
        if words.numel() > INT32.max:
            shape = tuple(matrix.weight.shape)
            raise InputError(f"Triton: expected weights of at most 8 GiB in a layer, got {shape}.")
    if isinstance(settings, NarrowSettings):
        return NarrowPlan(settings, stage, rows)
    num_tokens, num_inputs, device, channels = len(stage.x), len(rows[0]), stage.x.device, settings.channels
    lists, tiles = cdiv(num_inputs, channels), sum(cdiv(words.shape[1], settings.words) for words in rows)
    mean_count = stage.bounds.mean if stage.bounds else 1.5
    top = 16 if are_large(stage.bounds) else 8
    prefetch = round(settings.prefetch * max(mean_count / 3.5, 1))
    # A channel takes one place, and one more for every `top` of its |count|.
    num_places = int(channels * (1 + mean_count / top)) + top * settings.rows
    wanted = settings.programs * num_processors(device) * settings.slots // (tiles * lists * num_tokens)
    shares = power_of_two(max(cdiv(num_places, _MOST_ROWS - settings.rows), wanted))
    programs = cdiv(lists * shares, settings.slots)
    largest = MAX_WEIGHT * (2 if stage.upper else 1)  # sums of upper bits are in halves
    fit_pairs = stage.bounds is not None and largest * stage.bounds.mean * num_inputs < _PAIRED_SUMS
    pairs = fit_pairs and programs < _PAIRED_PROGRAMS
    length = 64 // top * channels + top * settings.rows  # places, and padding
    sizes = [num_tokens * lists * size for size in (length, 2 * channels, HEAD.value)]
    places, high, head = torch.empty(sum(sizes), dtype=torch.int32, device=device).split(sizes)
    num_sums = tiles * settings.words * (2 if pairs else 4)
    sums = torch.empty(num_tokens, num_sums, dtype=torch.int64, device=device)
    threshold = torch.empty(num_tokens, dtype=torch.float32, device=device)
    grid = (tiles, programs, num_tokens)
    return Plan(
        settings,
        stage,
        rows,
        lists,
        shares,
        top,
        prefetch,
        pairs,
        length,
        grid,
        places,
        high,
        head,
        sums,
        threshold,
    )


def list_rows(plan: Plan) -> None:
    """Find the thresholds, list the rows to add, and set the sums to zero."""
    settings, stage, upper = plan.settings, plan.stage, upper_bits(plan.stage.upper, 8)
    num_tokens = len(stage.x)
    norm, eps = stage.norm or (stage.x, 0.0)
    # Rows of several tokens overlap: those of the first bring most of the others' into the cache.
    prefetch = plan.prefetch if num_tokens == 1 and _can_prefetch(stage.x.device) else 0
    # One program per multiprocessor, if that leaves enough of them to fetch rows ahead and to clear the sums.
    processors = num_processors(stage.x.device)
    helpers = max(processors - plan.lists, processors // 4, 1)
    list_events[num_tokens, plan.lists + helpers](
        stage.x,
        norm,
        stage.x if stage.seen is None else stage.seen,
        *three(plan.rows),
        plan.places,
        plan.high,
        plan.head,
        plan.threshold,
        plan.head if stage.failed is None else stage.failed,
        plan.sums,
        stage.num_inputs,
        plan.sums.shape[1],
        *three([rows.shape[1] for rows in plan.rows]),
        plan.lists,
        plan.shares * (_MOST_ROWS - settings.rows),
        eps,
        *stage.rule.numbers,
        upper.edge0,
        upper.edge1,
        upper.middle0,
        upper.middle1,
        **stage.reading(),
        MATRICES=len(plan.rows),
        UPPER=bool(stage.upper),
        PLANES=settings.planes,
        CHANNELS=settings.channels,
        ROWS=settings.rows,
        TOP=plan.top,
        LENGTH=plan.length,
        PREFETCH=prefetch,
        num_warps=THREADS.value // 32,
        enable_fp_fusion=False,
    )


def add_rows(plan: Plan) -> None:
    """Add the listed rows, rescale, and fill the stage's y."""
    settings, stage, upper = plan.settings, plan.stage, upper_bits(plan.stage.upper, 8)
    scales = [plan.threshold if matrix.scale is None else matrix.scale for matrix in stage.matrices]
    biases = [plan.threshold if matrix.bias is None else matrix.bias for matrix in stage.matrices]
    add_events[plan.grid](
        plan.places,
        plan.high,
        plan.head,
        plan.threshold,
        stage.y,
        plan.sums,
        *three(plan.rows),
        *three(scales),
        *three(biases),
        *three([rows.shape[1] for rows in plan.rows]),
        *three([len(matrix.weight) for matrix in stage.matrices]),
        plan.sums.shape[1],
        plan.lists,
        upper.keep0,
        upper.keep1,
        MATRICES=len(plan.rows),
        UPPER=bool(stage.upper),
        MASKED=bool(stage.upper) and not (settings.planes and upper.is_plane),
        PLANES=settings.planes,
        RESCALE=stage.matrices[0].scale is not None,
        BIAS=stage.matrices[0].bias is not None,
        RESIDUAL=stage.residual,
        CHANNELS=settings.channels,
        ROWS=settings.rows,
        TOP=plan.top,
        SHARES=plan.shares,
        SLOTS=settings.slots,
        WORDS=settings.words,
        LENGTH=plan.length,
        STAGES=settings.stages,
        PAIRS=plan.pairs,
        num_warps=1,
        enable_fp_fusion=False,
    )


def _can_prefetch(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)
