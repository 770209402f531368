"""Accumulation on NVIDIA GPUs, by kernels written in Triton; exact in both modes."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from ..coding import Encoder
from ..errors import InputError
from ..neuro import AdaptiveThreshold, Neuron
from .base import BACKENDS, INT32, LOSSLESS, MAX_WEIGHT, Backend
from .tuning import fastest

# Counts up to here fit every code of ours, zero point included (a rate code has up to 2^20 timesteps).
_MAX_COUNT = 2**19
# Bits of a digit where counts are too large for 32-bit sums and are accumulated digit by digit.
_DIGIT_BITS = 8
_ALIGNMENT = 16  # bytes that a row starts at, for loads of 16 bytes


class _Spike(NamedTuple):
    """Launch settings of mode `spike`."""

    rows: int  # of weights a program visits at a time
    words: int  # of four weights, per row
    warps: int
    stages: int  # tiles of weights under way


class _Count(NamedTuple):
    """Launch settings of mode `count`: the block that a program computes."""

    tokens: int
    outputs: int
    inputs: int
    warps: int
    stages: int


_SPIKE = (_Spike(8, 64, 1, 3), _Spike(16, 64, 2, 4), _Spike(16, 32, 1, 6), _Spike(8, 64, 1, 6), _Spike(16, 32, 1, 3))
_COUNT = (_Count(128, 256, 128, 8, 4), _Count(256, 128, 128, 8, 4), _Count(128, 128, 128, 8, 4))
_COUNT_FEW = (_Count(64, 64, 128, 4, 5), _Count(64, 128, 128, 4, 5), _Count(64, 32, 256, 4, 4))


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
        if self.mode not in ("spike", "count"):
            raise InputError(f'Triton.mode: expected "spike" or "count", got {self.mode!r}.')

    def why_unavailable(self, device: torch.device) -> str | None:
        """Return a reason if there is no Triton, or the tensors are not on a GPU that it serves."""
        if importlib.util.find_spec("triton") is None:
            return "Triton is not installed. On Linux it comes with PyTorch: pip install triton."
        if _interpreting():
            return None if device.type == "cpu" else f"Triton's interpreter works on a CPU, the tensors are on {device}."
        if device.type != "cuda" or torch.version.hip is not None:
            return f"the tensors are on {device}; this backend works on an NVIDIA GPU only."
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
            or self.why_unavailable(x.device) is not None
            # |count| <= k * N + 1/2 and the sum of |count| <= (k + 1/2) * N, unless the ceiling binds.
            or neuron.k * num_inputs + 1 > _MAX_COUNT
            or MAX_WEIGHT * (neuron.k + 0.5) * num_inputs > INT32.max
            or not 1e-30 < neuron.floor <= neuron.ceiling < 1e30
        ):
            return None
        flat = x.detach().reshape(-1, num_inputs).contiguous()
        failed = torch.zeros(1, dtype=torch.int32, device=x.device)
        y = torch.empty(len(flat), len(weight), dtype=x.dtype, device=x.device)
        most_high = int((neuron.k + 0.5) * num_inputs / (MAX_WEIGHT - 1)) + 1
        self._launch(flat, weight, y, failed, most_high, neuron, scale, bias)
        capturing = x.device.type == "cuda" and torch.cuda.is_current_stream_capturing()
        if not capturing and int(failed):
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
        self._launch(times.to(torch.int32).contiguous(), weight, sums, None, most_high)
        return sums

    def _launch(self, x: Tensor, weight: Tensor, y: Tensor, failed: Tensor | None, most_high: int, *layer: Any) -> None:
        """Fill y from activations (of a layer: neuron, scale, bias) or from int32 counts."""
        shape = f"{self.mode} {tuple(weight.shape)}, {_power_of_two(len(x))} tokens, {x.dtype}"
        if self.mode == "spike":
            run, settings = _run_spike, _SPIKE
        else:
            run, settings = _run_count, _COUNT if len(x) > _COUNT_FEW[0].tokens else _COUNT_FEW
        if _interpreting():
            settings = (_Spike(32, 128, 1, 1),) if self.mode == "spike" else (_Count(32, 128, 128, 1, 1),)
        arguments = (x, weight, y, failed, most_high, *(layer or (None, None, None)))
        run(fastest(shape, settings, lambda candidate: run(candidate, *arguments), x.device), *arguments)


# Inputs whose digits add up to less than 2^31: times 2^7 for a digit and 2^7 for a weight.
_MOST_DIGITS = 2**16


def _run_spike(
    settings: _Spike,
    x: Tensor,
    weight: Tensor,
    y: Tensor,
    failed: Tensor | None,
    most_high: int,
    neuron: AdaptiveThreshold | None,
    scale: Tensor | None,
    bias: Tensor | None,
) -> None:
    from . import triton_spike as kernels  # noqa: PLC0415 - imports Triton

    (num_tokens, num_inputs), num_outputs = x.shape, len(weight)
    rows = _rows(weight).view(torch.int32)
    if rows.numel() > INT32.max:
        raise InputError(f"Triton: expected weights of at most 8 GiB in a layer, got {tuple(weight.shape)}.")
    channels = settings.rows * kernels.CHANNELS_PER_ROW
    splits, tiles = _cdiv(num_inputs, channels), _cdiv(rows.shape[1], settings.words)
    num_sums = tiles * (4 * settings.words + 1)
    length = kernels.list_length(channels, settings.rows)
    lists = num_tokens * splits
    sizes = [lists * length, lists * channels, lists * kernels.HEAD.value, num_tokens * num_sums]
    places, high, head, sums = torch.empty(sum(sizes), dtype=torch.int32, device=x.device).split(sizes)
    threshold = torch.empty(num_tokens, dtype=torch.float32, device=x.device)
    k, floor, ceiling = (neuron.k, neuron.floor, neuron.ceiling) if neuron else (1.0, 1.0, 1.0)
    overlapping = _overlapping(x.device)
    more = {"launch_pdl": True} if overlapping else {}
    kernels.list_events[num_tokens, splits](
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
        BLOCK=min(_power_of_two(num_inputs), 8192),
        PDL=overlapping,
        num_warps=8,
        enable_fp_fusion=False,
        **more,
    )
    kernels.add_events[tiles, splits, num_tokens](
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
        PDL=overlapping,
        num_warps=settings.warps,
        enable_fp_fusion=False,
        **more,
    )


def _run_count(
    settings: _Count,
    x: Tensor,
    weight: Tensor,
    y: Tensor,
    failed: Tensor | None,
    most_high: int,
    neuron: AdaptiveThreshold | None,
    scale: Tensor | None,
    bias: Tensor | None,
) -> None:
    from triton.tools.tensor_descriptor import TensorDescriptor  # noqa: PLC0415

    from . import triton_count as kernels  # noqa: PLC0415 - imports Triton

    (num_tokens, num_inputs), num_outputs = x.shape, len(weight)
    rows, columns = _rows(weight), _columns(weight)
    stride = columns.shape[1]
    low = torch.empty(num_tokens, stride, dtype=torch.int8, device=x.device)
    threshold = torch.empty(num_tokens, dtype=torch.float32, device=x.device)
    num_high = torch.empty(num_tokens, dtype=torch.int32, device=x.device)
    channel, high = torch.empty(2, num_tokens, most_high, dtype=torch.int32, device=x.device)
    k, floor, ceiling = (neuron.k, neuron.floor, neuron.ceiling) if neuron else (1.0, 1.0, 1.0)
    block = _power_of_two(stride)
    kernels.count_spikes[num_tokens,](
        x,
        low,
        threshold,
        num_high,
        channel,
        high,
        num_high if failed is None else failed,
        num_inputs,
        stride,
        most_high,
        k,
        floor,
        ceiling,
        COUNTED=neuron is None,
        FMA=not _interpreting(),  # the interpreter's fma rounds twice
        BLOCK=block,
        num_warps=2 if block <= 4096 else 16,
        enable_fp_fusion=False,
    )
    blocks = _cdiv(num_tokens, settings.tokens) * _cdiv(num_outputs, settings.outputs)
    num_programs = min(blocks, _num_processors(x.device))
    kernels.multiply[num_programs,](
        TensorDescriptor.from_tensor(low, [settings.tokens, settings.inputs]),
        TensorDescriptor.from_tensor(columns, [settings.outputs, settings.inputs]),
        rows,
        threshold,
        threshold if scale is None else scale,
        threshold if bias is None else bias,
        num_high,
        channel,
        high,
        y,
        num_tokens,
        num_outputs,
        stride,
        rows.shape[1],
        most_high,
        num_programs,
        RESCALE=neuron is not None,
        BIAS=bias is not None,
        TOKENS=settings.tokens,
        OUTPUTS=settings.outputs,
        INPUTS=settings.inputs,
        num_warps=settings.warps,
        num_stages=settings.stages,
        enable_fp_fusion=False,
    )


# Copies of weights in the order and padding that a kernel needs, made where the weights themselves are not in it.
_row_copies: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
_column_copies: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def _rows(weight: Tensor) -> Tensor:
    """Return the weights with those of an input channel side by side: int8, [inputs, outputs padded to 16]."""
    return _aligned(weight.t(), weight, _row_copies)


def _columns(weight: Tensor) -> Tensor:
    """Return the weights with those of an output side by side: int8, [outputs, inputs padded to 16]."""
    return _aligned(weight, weight, _column_copies)


def _aligned(matrix: Tensor, weight: Tensor, copies: WeakTensorKeyDictionary) -> Tensor:
    if matrix.is_contiguous() and matrix.shape[1] % _ALIGNMENT == 0 and matrix.data_ptr() % _ALIGNMENT == 0:
        return matrix
    version = None if weight.is_inference() else weight._version
    found = copies.get(weight)
    if found is None or found[0] != version:
        padded = matrix.new_zeros(matrix.shape[0], _cdiv(matrix.shape[1], _ALIGNMENT) * _ALIGNMENT)
        padded[:, : matrix.shape[1]] = matrix
        found = copies[weight] = (version, padded)
    return found[1]


def _overlapping(device: torch.device) -> bool:
    """Whether a kernel can be launched before the one in front of it ends: from Hopper on."""
    from . import triton_spike as kernels  # noqa: PLC0415

    return (
        kernels.gdc_wait is not None and device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)
    )


def _num_processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


def _power_of_two(number: int) -> int:
    return 1 << max(number - 1, 0).bit_length()


def _cdiv(a: int, b: int) -> int:
    return -(-a // b)


def _interpreting() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"
