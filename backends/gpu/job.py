"""What the kernels for GPUs are asked to do."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...neuro import AdaptiveThreshold


class Job(NamedTuple):
    """A layer to run, or counts to accumulate.

    Attributes:
        x: activations, or, without a neuron, int32 counts; [tokens, inputs], contiguous.
        weight: int8, [outputs, inputs].
        y: filled with rescaled sums, or, without a neuron, with int32 sums; [tokens, outputs].
        most_high: more than the channels of a token whose count is beyond INT8.
        neuron: counts.
        scale: float32, [outputs, 1].
        bias: [outputs].
        failed: int32, [tokens], filled with 1 where a token's counts are not sure to fit, whose output is NaN, else 0.
    """

    x: Tensor
    weight: Tensor
    y: Tensor
    most_high: int
    neuron: AdaptiveThreshold | None = None
    scale: Tensor | None = None
    bias: Tensor | None = None
    failed: Tensor | None = None


def power_of_two(number: int) -> int:
    """Return the smallest power of two that is at least that large."""
    return 1 << max(number - 1, 0).bit_length()


def cdiv(a: int, b: int) -> int:
    """Return a / b, rounded up."""
    return -(-a // b)


def num_processors(device: torch.device) -> int:
    """Return the multiprocessors of a GPU; Triton's interpreter on a CPU has one."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
