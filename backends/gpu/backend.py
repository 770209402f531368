"""Accumulation on NVIDIA GPUs, by kernels written in Triton; exact in both modes."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ...coding import Encoder
from ...coding.base import MAX_LOSSLESS_COUNT
from ...coding.kernels import interpreting
from ...neuro import CountBounds, KernelRule, Neuron
from ..base import BACKENDS, INT32, MAX_WEIGHT, NARROW, Backend, ExpertWeights, Memo, check_mode
from .job import MOST_GROUPED, MOST_RECORDED, Job, Matrix, layer_job
from .one_pass import any_failed
from .tuning import fastest_of

# Bits of a digit where counts are too large for 32-bit sums and are accumulated digit by digit.
_DIGIT_BITS = 8
# Inputs whose digits add up to less than 2^31: times 2^7 for a digit and 2^7 for a weight.
_MOST_DIGITS = 2**16


# GPUs that were found to be served.
_served: set[torch.device] = set()


@BACKENDS.register("triton")
@dataclass(frozen=True)
class Triton(Backend):
    """Runs on an NVIDIA GPU.

    Attributes:
        mode: "spike" is event-driven: rows of weights of channels that spike are read and added, no others, and nothing
            is multiplied; for one token and a few. "count" multiplies collapsed counts with INT8 weights on tensor
            cores; for many tokens. It keeps a second copy of the weights, which tensor cores want in the other
            order: one more byte per weight, made at the first call.

    Source:
        SpikingBrain (arXiv:2509.05276), section 3.3.2; `count` is its eq. 23 with the sum over timesteps done first.
    """

    mode: Literal["spike", "count"] = "spike"

    knows_upper_bits: ClassVar[bool] = True
    rescales_in_order: ClassVar[bool] = False
    remembers: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_mode(self, self.mode)

    def why_unavailable(self, device: torch.device) -> str | None:
        """Return a reason if there is no Triton, or the device is no GPU that it serves."""
        if device in _served:  # asked at every call of a layer
            return None
        if not _has_triton():
            return "Triton is not installed. On Linux it comes with PyTorch: pip install triton."
        if interpreting():
            return None if device.type == "cpu" else f"Triton's interpreter works on a CPU, not on {device}."
        if not torch.cuda.is_available() or torch.version.hip is not None:
            return "PyTorch finds no NVIDIA GPU."
        if device.type != "cuda":
            return f"It works on an NVIDIA GPU only, not on {device}."
        reason = _why_too_old(device)
        if reason is None:
            _served.add(device)
        return reason

    def fused(
        self,
        x: Tensor,
        weight: Tensor,
        scale: Tensor,
        bias: Tensor | None,
        neuron: Neuron,
        encoder: Encoder,
        *,
        minimum: Tensor | None = None,
        group_size: int | None = None,
        upper: Sequence[tuple[int, int]] = (),
        memo: Memo | None = None,
    ) -> Tensor | None:
        """Run the whole layer in two kernels; see `Backend.fused`. With weight groups, floats are equal to rounding.

        Upper bits are known in mode "spike"; in the other, the separate steps run.

        While a CUDA graph is captured nothing can raise. Then the output of a token is NaN where its input is not
        finite or the threshold's upper limit binds, so that its counts may not fit.
        """
        num_inputs = weight.shape[1]
        matrix = Matrix(weight, scale, bias, minimum, group_size, tuple(upper))
        rule, bounds = neuron.kernel_rule(), neuron.count_bounds(num_inputs)
        if (
            rule is None
            or bounds is None
            or self.why_not_fused(neuron, encoder, weight, group_size, upper=bool(upper)) is not None
            or (upper and self.mode != "spike")
            or x.dtype not in NARROW
            or not x.numel()
            or not weight.numel()
            or not x.device == weight.device == scale.device
            or any(part is not None and part.device != x.device for part in (bias, minimum))
            or (minimum is not None and group_size is None)
            or self.why_unavailable(x.device) is not None
        ):
            return None
        flat = x.detach().reshape(-1, num_inputs).contiguous()
        failed = torch.empty(len(flat), dtype=torch.int32, device=x.device)
        y = torch.empty(len(flat), len(weight), dtype=x.dtype, device=x.device)
        recorded = memo is not None and x.is_cuda and len(flat) <= MOST_RECORDED
        recorded = recorded and not torch.cuda.is_current_stream_capturing()
        if matrix.has_groups:
            self._run_groups(matrix, flat, y, rule, bounds, failed)
        else:
            # What is recorded at its next call is tuned then.
            self._run(layer_job(flat, matrix, y, rule, bounds, failed, x), tunes=not recorded)
        if any_failed(failed):
            return None
        if recorded:
            call = (x, weight, scale, bias, minimum, neuron, encoder, group_size, tuple(upper))
            _replay().keep(memo, call, self.mode, rule, bounds)
        return y.reshape(*x.shape[:-1], len(weight))

    def experts(
        self,
        x: Tensor,
        row: Tensor,
        starts: Sequence[int],
        experts: Sequence[Sequence[ExpertWeights]],
        neuron: Neuron,
        encoder: Encoder,
    ) -> list[Tensor] | None:
        """Run all experts in one kernel a projection; see `Backend.experts` and, for failures in graphs, `fused`."""
        every = [one for expert in experts for one in expert]
        rule = neuron.kernel_rule()
        if (
            rule is None
            or any(self.why_not_fused(neuron, encoder, one.weight) is not None for one in every)
            or any(one.minimum is not None or one.group_size is not None for one in every)
            or any(part is not None and part.device != x.device for one in every for part in one[:3])
            or any(not one.weight.numel() or not one.scale.is_contiguous() for one in every)
            or len({None if one.bias is None else one.bias.dtype for one in every}) > 1
            or x.dtype not in NARROW
            or not x.numel()
            or not len(row)
            or self.why_unavailable(x.device) is not None
        ):
            return None
        kernels = importlib.import_module(".experts", __package__)  # imports Triton
        with torch.cuda.device_of(x):  # Triton launches on the current GPU
            counted = kernels.count_once(x.detach().contiguous(), rule)
            outputs = []
            for weights in zip(*experts, strict=True):
                y = torch.empty(len(row), len(weights[0].weight), dtype=x.dtype, device=x.device)
                kernels.run_routes(self.mode, counted, row.contiguous(), starts, weights, y)
                outputs.append(y)
        return None if any_failed(counted.failed) else outputs

    @staticmethod
    def why_not_fused(
        neuron: Neuron,
        encoder: Encoder,
        weight: Tensor,
        group_size: int | None = None,
        *,
        upper: bool = False,
    ) -> str | None:
        """Return why there are no kernels for whole layers with this neuron, code and weights, or None if there are.

        Args:
            neuron: of the layer.
            encoder: of the layer.
            weight: of the layer, int8 [outputs, inputs].
            group_size: input channels that share a scale; None for all.
            upper: whether small counts read upper bits.
        """
        if group_size is not None and group_size > MOST_GROUPED:
            return f"has weight groups of {group_size} channels, more than {MOST_GROUPED}"
        rule, bounds = neuron.kernel_rule(), neuron.count_bounds(weight.shape[1])
        if rule is None or bounds is None:
            return f"has a neuron without a kernel, {neuron!r}"
        if not encoder.lossless:
            return f"has the encoder {encoder!r}, whose spikes must be added"
        largest = MAX_WEIGHT * (2 if upper else 1)  # sums of upper bits are in halves
        if bounds.largest > MAX_LOSSLESS_COUNT or largest * bounds.mean * weight.shape[1] > INT32.max:
            return f"has sums that may not fit 32 bits with {neuron!r}"
        if not 1e-30 < rule.threshold_range[0] <= rule.threshold_range[1] < 1e30:
            return f"has thresholds of {neuron!r} outside 1e-30 to 1e30"
        return None

    def _accumulate(self, spikes: Tensor, timestep_weight: Tensor, weight: Tensor) -> Tensor:
        count = torch.zeros(spikes.shape[1:], dtype=torch.int64, device=spikes.device)
        for spike_weight, plane in zip(timestep_weight.tolist(), spikes, strict=True):
            count.add_(plane, alpha=spike_weight)
        if not count.numel() or not weight.numel():
            return torch.zeros(len(count), len(weight), dtype=torch.int32, device=spikes.device)
        if self._fits(count):
            return self._accumulate_narrow(count, weight)
        total = torch.zeros(len(count), len(weight), dtype=torch.int64, device=spikes.device)
        shift = 0
        while bool(count.any()):
            digit = ((count + 2 ** (_DIGIT_BITS - 1)) & (2**_DIGIT_BITS - 1)) - 2 ** (_DIGIT_BITS - 1)
            count = (count - digit) >> _DIGIT_BITS
            for first in range(0, count.shape[1], _MOST_DIGITS):
                part = slice(first, first + _MOST_DIGITS)
                sums = self._accumulate_narrow(digit[:, part], weight[:, part])
                total += sums.to(torch.int64) << shift
            shift += _DIGIT_BITS
        return total

    @staticmethod
    def _fits(count: Tensor) -> bool:
        return MAX_WEIGHT * int(count.abs().sum(1).max()) <= INT32.max

    def _accumulate_narrow(self, count: Tensor, weight: Tensor) -> Tensor:
        """Accumulate int64 counts whose sums fit 32 bits."""
        high_capacity = int((count.abs() >= MAX_WEIGHT).sum(1).max()) + 1
        sums = torch.empty(len(count), len(weight), dtype=torch.int32, device=count.device)
        self._run(Job(count.to(torch.int32).contiguous(), weight, sums, high_capacity))
        return sums

    @staticmethod
    def _run_groups(
        matrix: Matrix, x: Tensor, y: Tensor, rule: KernelRule, bounds: CountBounds, failed: Tensor
    ) -> None:
        spike, groups = (importlib.import_module(f".{name}", __package__) for name in ("spike", "groups"))
        groups.run(spike.Stage(x, (matrix,), y, rule, bounds, failed))

    def _run(self, job: Job, *, tunes: bool = True) -> None:
        kernels = importlib.import_module(f".{self.mode}", __package__)  # imports Triton
        with torch.cuda.device_of(job.x):  # Triton launches on the current GPU
            kernels.run(fastest_of(kernels, self.mode, job) if tunes else kernels.settings_for(job)[0], job)


@functools.cache
def _replay() -> Any:
    return importlib.import_module(".replay", __package__)  # imports Triton


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


@functools.cache
def _why_too_old(device: torch.device) -> str | None:
    if torch.cuda.get_device_capability(device) < (8, 0):
        return f"{torch.cuda.get_device_name(device)} is older than compute capability 8.0, which it needs."
    return None
