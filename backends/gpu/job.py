"""What the kernels for GPUs get to do."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from ...neuro import NO_RULE, CountBounds, KernelRule
from ..base import MAX_WEIGHT

# Which counts read upper bits of their rows: pairs (up_to, dropped); see `Backend.knows_upper_bits`.
Reads: TypeAlias = tuple[tuple[int, int], ...]
# Input channels of a weight group that `grouped.py` adds up at a time.
MOST_GROUPED = 256
# Most tokens of a call that is recorded (`replay.py`): recordings take memory for inputs and outputs of each layer.
MOST_RECORDED = 32


class Matrix(NamedTuple):
    """A matrix that is added up, with what its sums are rescaled by.

    Attributes:
        weight: int8, [outputs, inputs].
        scale: float32, [outputs, groups]; None for sums.
        bias: [outputs], or None.
        minimum: float32, [outputs, groups], or None.
        group_size: input channels of a group; None for one group of all.
        upper: which counts read upper bits of their rows; see `Backend.knows_upper_bits`. Only with scales.
    """

    weight: Tensor
    scale: Tensor | None = None
    bias: Tensor | None = None
    minimum: Tensor | None = None
    group_size: int | None = None
    upper: Reads = ()

    @property
    def has_groups(self) -> bool:
        """Return whether `grouped.py` adds it up."""
        return self.group_size is not None or self.minimum is not None


class Job(NamedTuple):
    """A layer to run, or counts to accumulate.

    Attributes:
        x: activations, or int32 counts where there is no rule; [tokens, inputs], contiguous.
        weight: int8, [outputs, inputs].
        y: filled with rescaled sums, or with int32 sums where there is no rule; [tokens, outputs].
        high_capacity: room in each token's list of counts beyond INT8; more than there can be.
        rule: of the neuron that counts.
        bounds: of its counts.
        scale: float32, [outputs, 1].
        bias: [outputs].
        failed: int32, [tokens], filled with 1 where a token's counts might not fit (its output is NaN), else with 0.
        upper: as of `Matrix`.
        source: the caller's tensor that x is a view of, by which `one_pass` knows it again.
    """

    x: Tensor
    weight: Tensor
    y: Tensor
    high_capacity: int
    rule: KernelRule = NO_RULE
    bounds: CountBounds | None = None
    scale: Tensor | None = None
    bias: Tensor | None = None
    failed: Tensor | None = None
    upper: Reads = ()
    source: Tensor | None = None

    @property
    def num_inputs(self) -> int:
        """Input channels."""
        return self.x.shape[1]

    @property
    def kind(self) -> str:
        """What the fastest launch settings depend on."""
        tokens = f"{power_of_two(len(self.x))} tokens"
        return f"{tuple(self.weight.shape)}, {tokens}, {self.x.dtype}{kind_of_counts(self.bounds, self.upper)}"


def layer_job(
    x: Tensor,
    matrix: Matrix,
    y: Tensor,
    rule: KernelRule,
    bounds: CountBounds,
    failed: Tensor,
    source: Tensor,
) -> Job:
    """Return the job of a layer without weight groups; arguments are as of `Job`."""
    high_capacity = int(bounds.mean * x.shape[1] / (MAX_WEIGHT - 1)) + 1
    weight, scale, bias, upper = matrix.weight, matrix.scale, matrix.bias, matrix.upper
    return Job(x, weight, y, high_capacity, rule, bounds, scale, bias, failed, upper, source)


def are_large(bounds: CountBounds | None) -> bool:
    """Return whether counts are so large on average that many would be beyond a digit of 8; see `list.py`."""
    return bounds is not None and bounds.mean >= 5


def kind_of_counts(bounds: CountBounds | None, upper: Reads) -> str:
    """Return what of its counts the fastest launch settings of a layer depend on, as the end of a key."""
    return f"{', large counts' if are_large(bounds) else ''}{', upper bits' if upper else ''}"


def power_of_two(number: int) -> int:
    """Return the smallest power of two that is at least that large."""
    return 1 << max(number - 1, 0).bit_length()


def cdiv(a: int, b: int) -> int:
    """Return a / b, rounded up."""
    return -(-a // b)


def num_processors(device: torch.device) -> int:
    """Return the multiprocessors of a GPU; Triton's interpreter on a CPU has one."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
