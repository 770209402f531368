"""Accumulation on NVIDIA GPUs, by kernels written in Triton; exact in both modes."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ...coding import Encoder
from ...coding.kernels import interpreting
from ...neuro import AdaptiveThreshold, Neuron
from ..base import BACKENDS, INT32, LOSSLESS, MAX_WEIGHT, MOST_COUNT, Backend, check_mode
from .job import Job, power_of_two
from .tuning import fastest

# Bits of a digit where counts are too large for 32-bit sums and are accumulated digit by digit.
_DIGIT_BITS = 8
# Inputs whose digits add up to less than 2^31: times 2^7 for a digit and 2^7 for a weight.
_MOST_DIGITS = 2**16


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

    def __post_init__(self) -> None:
        check_mode(self, self.mode)

    def why_unavailable(self, device: torch.device) -> str | None:
        """Return a reason if there is no Triton, or the tensors are not on a GPU that it serves."""
        if importlib.util.find_spec("triton") is None:
            return "Triton is not installed. On Linux it comes with PyTorch: pip install triton."
        if interpreting():
            return None if device.type == "cpu" else f"Triton's interpreter works on a CPU, not on {device}."
        if device.type != "cuda" or torch.version.hip is not None:
            return f"the tensors are on {device}; this backend works on an NVIDIA GPU only."
        if not torch.cuda.is_available():
            return "PyTorch finds no CUDA GPU."
        if torch.cuda.get_device_capability(device) < (8, 0):
            return f"{torch.cuda.get_device_name(device)} is older than compute capability 8.0, which it needs."
        return None

    def fused(
        self, x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, neuron: Neuron, encoder: Encoder
    ) -> Tensor | None:
        """Run the whole layer in two kernels; see `Backend.fused`.

        While a CUDA graph is captured nothing can raise. Then the output of a token is NaN where its input is not
        finite or the neuron's ceiling binds, so that its counts may not fit.
        """
        num_inputs = weight.shape[1]
        if (
            type(neuron) is not AdaptiveThreshold
            or type(encoder) not in LOSSLESS
            or x.dtype not in (torch.float32, torch.bfloat16, torch.float16)
            or not x.numel()
            or not weight.numel()
            or not x.device == weight.device == scale.device
            or (bias is not None and bias.device != x.device)
            or self.why_unavailable(x.device) is not None
            # |count| <= k * N + 1/2 and the sum of |count| <= (k + 1/2) * N, unless the ceiling binds.
            or neuron.k * num_inputs + 1 > MOST_COUNT
            or MAX_WEIGHT * (neuron.k + 0.5) * num_inputs > INT32.max
            or not 1e-30 < neuron.floor <= neuron.ceiling < 1e30
        ):
            return None
        flat = x.detach().reshape(-1, num_inputs).contiguous()
        failed = torch.empty(len(flat), dtype=torch.int32, device=x.device)
        y = torch.empty(len(flat), len(weight), dtype=x.dtype, device=x.device)
        most_high = int((neuron.k + 0.5) * num_inputs / (MAX_WEIGHT - 1)) + 1
        self._run(Job(flat, weight, y, most_high, neuron, scale, bias, failed))
        capturing = x.device.type == "cuda" and torch.cuda.is_current_stream_capturing()
        if not capturing and bool(failed.any()):
            return None
        return y.reshape(*x.shape[:-1], len(weight))

    def _accumulate(self, spikes: Tensor, timestep_weight: Tensor, weight: Tensor) -> Tensor:
        times = torch.zeros(spikes.shape[1:], dtype=torch.int64, device=spikes.device)
        for spike_weight, plane in zip(timestep_weight.tolist(), spikes, strict=True):
            times.add_(plane, alpha=spike_weight)
        if not times.numel() or not weight.numel():
            return torch.zeros(len(times), len(weight), dtype=torch.int32, device=spikes.device)
        if self._fits(times):
            return self._accumulate_narrow(times, weight)
        total = torch.zeros(len(times), len(weight), dtype=torch.int64, device=spikes.device)
        shift = 0
        while bool(times.any()):
            digit = ((times + 2 ** (_DIGIT_BITS - 1)) & (2**_DIGIT_BITS - 1)) - 2 ** (_DIGIT_BITS - 1)
            times = (times - digit) >> _DIGIT_BITS
            for first in range(0, times.shape[1], _MOST_DIGITS):
                part = slice(first, first + _MOST_DIGITS)
                sums = self._accumulate_narrow(digit[:, part], weight[:, part])
                total += sums.to(torch.int64) << shift
            shift += _DIGIT_BITS
        return total

    @staticmethod
    def _fits(times: Tensor) -> bool:
        return MAX_WEIGHT * int(times.abs().sum(1).max()) <= INT32.max

    def _accumulate_narrow(self, times: Tensor, weight: Tensor) -> Tensor:
        """Accumulate int64 counts whose sums fit 32 bits."""
        most_high = int((times.abs() >= MAX_WEIGHT).sum(1).max()) + 1
        sums = torch.empty(len(times), len(weight), dtype=torch.int32, device=times.device)
        self._run(Job(times.to(torch.int32).contiguous(), weight, sums, most_high))
        return sums

    def _run(self, job: Job) -> None:
        kernels = importlib.import_module(f".{self.mode}", __package__)  # imports Triton
        key = f"{self.mode} {tuple(job.weight.shape)}, {power_of_two(len(job.x))} tokens, {job.x.dtype}"
        candidates = kernels.settings_for(len(job.x))
        with torch.cuda.device_of(job.x):  # Triton launches on the current GPU
            kernels.run(fastest(key, candidates, lambda settings: kernels.run(settings, job), job.x.device), job)
