"""The CPU backend: adds the weight rows of the channels that spike and reads no others; or multiplies counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from ...coding import Encoder
from ...coding.base import MAX_LOSSLESS_COUNT
from ...coding.kernels.threads import pool
from ...compiled import compiled
from ...neuro import KernelRule, Neuron
from ...neuro.checks import spikes_of
from ..base import BACKENDS, INT32, MAX_WEIGHT, NARROW, Backend, ExpertWeights, Memo, ScaleUnits, check_mode
from .events import DIGITS_WEIGH, LARGEST_DIGIT, add_events, num_digits
from .experts import run_experts
from .kept import rows_for
from .layer import run_layer
from .projection import run_tiles
from .tiles import Rows

# Outputs per pass. Short passes keep the buckets in the first-level cache; long ones read memory in long runs, which
# is faster once the weights do not fit the caches.
_SHORT_PASS, _LONG_PASS = 2048, 32768
_CACHED_BYTES = 4 * 2**20
# Weights times tokens from which a second thread saves more than waking it costs: a Python thread, and one of PyTorch's
# team.
_WORTH_THREADS, _WORTH_TEAM = 2**22, 2**16
# Inputs whose INT8 products add up within 32 bits. With one input torch._int_mm gives wrong integers (torch 2.14.1).
_PRODUCT_INPUTS = range(2, INT32.max // (MAX_WEIGHT * MAX_WEIGHT) + 1)


@BACKENDS.register("cpu")
@dataclass(frozen=True)
class Cpu(Backend):
    """Adds rows of INT8 weights, only those of channels that spike; or, for many tokens, multiplies counts.

    Tokens (or the channels, if there are fewer tokens than threads) are divided over `torch.get_num_threads()` threads.
    The sums are integers, so the number of threads does not change them.

    Attributes:
        mode: "spike" is event-driven and adds only. "count" collapses the spikes into INT8 counts and multiplies them
            with all weights, silent channels included; what a count has beyond INT8 is rare and added as events.
            Both give the same integers.
    """

    knows_upper_bits: ClassVar[bool] = True
    knows_units: ClassVar[bool] = True
    remembers: ClassVar[bool] = True

    mode: Literal["spike", "count"] = "spike"

    def __post_init__(self) -> None:
        check_mode(self, self.mode)

    def why_unavailable(self, device: torch.device) -> str | None:
        """Return a reason if the device is no CPU."""
        return None if device.type == "cpu" else f"It works on a CPU only, not on {device}."

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
        units: ScaleUnits | None = None,
        memo: Memo | None = None,
    ) -> Tensor | None:
        """Run a whole layer in one kernel; see `Backend.fused`, and for `upper`, `units` and `memo` its flags."""
        rule = neuron.cpu_rule()
        if rule is None or not encoder.lossless:
            return None
        num_outputs = weight.shape[0]
        # Most layers pass the first test, which takes less time.
        by_channel = weight.stride() == (1, num_outputs) or weight.t().is_contiguous()
        fits = by_channel and scale.is_contiguous()
        on_cpu = x.is_cpu and weight.is_cpu and scale.is_cpu and (bias is None or bias.is_cpu)
        if not (fits and on_cpu and x.dtype in NARROW) or x.numel() == 0 or num_outputs == 0:
            return None
        in_tiles = minimum is not None or group_size is not None or bool(upper)
        if in_tiles and self.mode != "count" and (minimum is None or minimum.is_cpu):
            rows = rows_for(memo, weight, scale, minimum, group_size, units, upper)
            return _run_tiles(x, rows, bias, rule, upper)
        if in_tiles or scale.numel() != num_outputs:
            return None
        if self.mode == "count":
            return _count_layer(x, weight, scale, bias, neuron)
        worth_threads = x.numel() * num_outputs >= _WORTH_TEAM
        y = run_layer(
            _as_float32(x),
            weight,
            scale,
            None if bias is None else _as_float32(bias),
            rule,
            torch.get_num_threads() if worth_threads else 1,
            _pass_outputs(weight),
        )
        return y if y is None or x.dtype == torch.float32 else y.to(x.dtype)

    def experts(
        self,
        x: Tensor,
        row: Tensor,
        starts: Sequence[int],
        experts: Sequence[Sequence[ExpertWeights]],
        neuron: Neuron,
        encoder: Encoder,
    ) -> list[Tensor] | None:
        """Run all experts in one kernel; see `Backend.experts`. In mode "count" they run one by one."""
        rule, every = neuron.cpu_rule(), [one for expert in experts for one in expert]
        if self.mode == "count" or rule is None or not encoder.lossless or x.numel() == 0 or len(row) == 0:
            return None
        tensors = [part for one in every for part in one[:4] if part is not None]
        if not all(part.is_cpu for part in (x, *tensors)) or x.dtype not in NARROW:
            return None
        if not all(one.weight.t().is_contiguous() and one.scale.is_contiguous() and len(one.weight) for one in every):
            return None
        floats = [
            [one._replace(bias=None if one.bias is None else _as_float32(one.bias)) for one in expert]
            for expert in experts
        ]
        worth_threads = len(row) * every[0].weight.numel() >= _WORTH_TEAM
        num_threads = torch.get_num_threads() if worth_threads else 1
        found = run_experts(_as_float32(x), row.contiguous(), starts, floats, rule, num_threads)
        return found if found is None else [y.to(x.dtype) for y in found]

    def _accumulate(self, spikes: Tensor, timestep_weight: Tensor, weight: Tensor) -> Tensor:
        num_tokens, (num_outputs, num_inputs) = spikes.shape[1], weight.shape
        rows = weight.t().contiguous().numpy()
        count = np.empty((num_tokens, rows.shape[0]), np.int64)
        charge = _gather(spikes.contiguous().numpy(), timestep_weight.numpy(), count)
        if self.mode == "count" and num_inputs in _PRODUCT_INPUTS and min(num_tokens, num_outputs) > 0:
            return _multiply(torch.from_numpy(count), weight)
        return _add(count, rows, charge, _pass_outputs(weight))


def _run_tiles(
    x: Tensor, rows: Rows, bias: Tensor | None, rule: KernelRule, upper: Sequence[tuple[int, int]]
) -> Tensor | None:
    bias = None if bias is None else _as_float32(bias)
    y = run_tiles(_as_float32(x), rows, bias, rule, torch.get_num_threads(), upper)
    return y if y is None else y.to(x.dtype)


def _as_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float32 and x.is_contiguous() else x.detach().to(torch.float32).contiguous()


def _add(count: np.ndarray, rows: np.ndarray, charge: int, pass_outputs: int) -> Tensor:
    """Return count @ rows by additions.

    Args:
        count: int64, [tokens, in].
        rows: weights, int8, [in, out].
        charge: at least the sum of |count| of each token.
        pass_outputs: outputs visited together.
    Returns:
        Sums, int32 or int64, [tokens, out].
    """
    narrow = DIGITS_WEIGH * MAX_WEIGHT * charge <= INT32.max
    dtype = np.int32 if narrow else np.int64
    num_tokens, num_outputs = len(count), rows.shape[1]
    num_threads = torch.get_num_threads() if num_tokens * rows.size >= _WORTH_THREADS else 1
    by_token = num_tokens >= num_threads
    bounds = np.linspace(0, num_tokens if by_token else len(rows), num_threads + 1).astype(int).tolist()

    def work(part: int) -> np.ndarray:
        share = slice(bounds[part], bounds[part + 1])
        mine, read = (count[share], rows) if by_token else (count[:, share], rows[share])
        total = np.zeros((len(mine), num_outputs), dtype)
        _add_tokens(mine, read, pass_outputs, total)
        return total

    others = [pool().submit(work, part) for part in range(1, num_threads)]
    totals = [work(0), *(other.result() for other in others)]
    return torch.from_numpy(np.concatenate(totals) if by_token else sum(totals[1:], totals[0]))


def _multiply(count: Tensor, weight: Tensor) -> Tensor:
    """Return count @ weight.t(): the low byte of each count by an INT8 product, the rest, which is rare, as events."""
    low = count.to(torch.int8)  # wraps, so that count - low is a multiple of 256
    int_mm = getattr(torch, "_int_mm")  # noqa: B009 - private, and unknown to type checkers
    total = int_mm(low, weight.t())
    rest = count - low
    rare = rest.any(1).nonzero().flatten()
    if len(rare):
        events = rest[rare].to(torch.int64)
        charge = int(events.abs().sum(1).max())
        high = _add(events.numpy(), weight.t().contiguous().numpy(), charge, _pass_outputs(weight))
        total = total.to(torch.int64)
        total[rare] += high
    return total


def _count_layer(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, neuron: Neuron) -> Tensor | None:
    """Run a whole layer on collapsed counts; return None where the separate steps must raise or need wider sums."""
    if weight.shape[1] not in _PRODUCT_INPUTS:
        return None
    with torch.no_grad():
        spikes = spikes_of(neuron, x)
        count = spikes.count.reshape(-1, weight.shape[1])
        low, high = (int(v) for v in count.aminmax())
        if max(-low, high) > MAX_LOSSLESS_COUNT:
            return None
        total = _multiply(count, weight)
        if total.dtype != torch.int32 and not INT32.min <= int(total.min()) <= int(total.max()) <= INT32.max:
            return None
        y = (total.to(torch.int32) * scale.t()).mul_(spikes.threshold.reshape(-1, 1))
        if bias is not None:
            y += bias.to(y.dtype)
        return y.reshape(*x.shape[:-1], -1).to(x.dtype)


def _pass_outputs(weight: Tensor) -> int:
    return _SHORT_PASS if weight.numel() <= _CACHED_BYTES else _LONG_PASS


@compiled
def _add_tokens(count, rows, pass_outputs, total):  # pragma: no cover - compiled
    """Add count @ rows to total, token by token; see `add_events`. count: int64 [tokens, in]."""
    num_buckets = 0
    for token in range(count.shape[0]):
        num_buckets = max(num_buckets, LARGEST_DIGIT * num_digits(count[token]))
    buckets = np.zeros((num_buckets, min(pass_outputs, total.shape[1])), np.int16)
    for token in range(count.shape[0]):
        add_events(count[token], rows, pass_outputs, buckets, total[token])


@compiled
def _gather(planes, weights, count):  # pragma: no cover - compiled
    """Collapse a train into counts; return the largest sum of |count| of a token.

    planes: int8 [T, tokens, in]; weights: int64 [T]; count: int64 [tokens, in], filled.
    """
    largest = 0
    for token in range(count.shape[0]):
        mine = count[token]
        mine[:] = 0
        for t in range(planes.shape[0]):
            plane, weight = planes[t, token], weights[t]
            for channel in range(mine.shape[0]):
                # Without branches, so that the compiler uses vector registers.
                mine[channel] += (weight if plane[channel] > 0 else 0) - (weight if plane[channel] < 0 else 0)
        charge = 0
        for channel in range(mine.shape[0]):
            charge += abs(mine[channel])
        largest = max(largest, charge)
    return largest
