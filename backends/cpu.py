"""Event-driven accumulation on the CPU: the weight rows of the channels that spike are added, and no others are read."""

from __future__ import annotations

import os

import numba
import numpy as np
import torch
from torch import Tensor

from ..coding import BidirectionalBitwise, Binary, Bitwise, Encoder, SignedDigit, Ternary, TwosComplement
from ..neuro import AdaptiveThreshold, Neuron
from .base import BACKENDS, INT32, MAX_WEIGHT, Backend
from .cpu_events import DIGITS_WEIGH, LARGEST_DIGIT, add_events, num_digits
from .cpu_layer import run_layer
from .team import pool

# Outputs per pass. Short passes keep the buckets in the first-level cache; long ones read memory in long runs, which
# is faster once the weights do not fit the caches.
_SHORT_PASS, _LONG_PASS = 2048, 32768
_CACHED_BYTES = 4 * 2**20
# Weights times tokens from which a second thread saves more than waking it costs: a thread of Python's, and one of
# PyTorch's team.
_WORTH_THREADS, _WORTH_TEAM = 2**22, 2**16
# Codes known to unroll every count that fits without loss, so that their counts can be added up without unrolling them.
_LOSSLESS = (BidirectionalBitwise, Binary, Bitwise, SignedDigit, Ternary, TwosComplement)


@BACKENDS.register("cpu")
class Cpu(Backend):
    """Adds rows of INT8 weights, those of channels that spike and no others.

    Tokens (or the channels, if there are fewer tokens) are divided over `torch.get_num_threads()` threads; integers
    make the result the same for any number of them.
    """

    def why_unavailable(self, device: torch.device) -> str | None:
        """Return a reason if the tensors are not in main memory."""
        return None if device.type == "cpu" else f"the tensors are on {device}; this backend works on a CPU only."

    def fused(
        self,
        x: Tensor,
        weight: Tensor,
        scale: Tensor,
        bias: Tensor | None,
        neuron: Neuron,
        encoder: Encoder,
    ) -> Tensor | None:
        """Run a whole layer in one kernel; see `Backend.fused`."""
        if type(neuron) is not AdaptiveThreshold or type(encoder) not in _LOSSLESS:
            return None
        num_outputs, num_inputs = weight.shape
        fits = weight.t().is_contiguous() and scale.is_contiguous() and scale.shape == (num_outputs, 1)
        on_cpu = x.is_cpu and weight.is_cpu and scale.is_cpu and (bias is None or bias.is_cpu)
        narrow = x.dtype in (torch.float32, torch.bfloat16, torch.float16)
        if not (fits and on_cpu and narrow) or x.numel() == 0 or num_outputs == 0:
            return None
        worth_threads = x.numel() * num_outputs >= _WORTH_TEAM
        y = run_layer(
            x.detach().to(torch.float32).contiguous() if x.dtype != torch.float32 or not x.is_contiguous() else x,
            weight.t(),
            scale,
            None if bias is None else bias.detach().to(torch.float32).contiguous(),
            neuron,
            torch.get_num_threads() if worth_threads else 1,
            _pass_outputs(weight),
        )
        return y if y is None or x.dtype == torch.float32 else y.to(x.dtype)

    def _accumulate(self, spikes: Tensor, timestep_weight: Tensor, weight: Tensor) -> Tensor:
        num_tokens, num_outputs = spikes.shape[1], weight.shape[0]
        rows = weight.t().contiguous().numpy()
        times = np.empty((num_tokens, rows.shape[0]), np.int64)
        charge = _gather(spikes.contiguous().numpy(), timestep_weight.numpy(), times)
        narrow = DIGITS_WEIGH * MAX_WEIGHT * charge <= INT32.max
        dtype = np.int32 if narrow else np.int64
        num_threads = torch.get_num_threads() if num_tokens * rows.size >= _WORTH_THREADS else 1
        by_token = num_tokens >= num_threads
        bounds = np.linspace(0, num_tokens if by_token else len(rows), num_threads + 1).astype(int).tolist()
        pass_outputs = _pass_outputs(weight)

        def work(part: int) -> np.ndarray:
            share = slice(bounds[part], bounds[part + 1])
            mine, read = (times[share], rows) if by_token else (times[:, share], rows[share])
            total = np.zeros((len(mine), num_outputs), dtype)
            _add_tokens(mine, read, pass_outputs, total)
            return total

        others = [pool(num_threads, os.getpid()).submit(work, part) for part in range(1, num_threads)]
        totals = [work(0), *(other.result() for other in others)]
        return torch.from_numpy(np.concatenate(totals) if by_token else sum(totals[1:], totals[0]))


def _pass_outputs(weight: Tensor) -> int:
    return _SHORT_PASS if weight.numel() <= _CACHED_BYTES else _LONG_PASS


@numba.njit(nogil=True, cache=True)
def _add_tokens(times, rows, pass_outputs, total):  # pragma: no cover - compiled
    """Add times @ rows to total, token by token; see `add_events`. times: int64 [tokens, in]."""
    num_buckets = 0
    for token in range(times.shape[0]):
        num_buckets = max(num_buckets, LARGEST_DIGIT * num_digits(times[token]))
    buckets = np.zeros((num_buckets, min(pass_outputs, total.shape[1])), np.int16)
    for token in range(times.shape[0]):
        add_events(times[token], rows, pass_outputs, buckets, total[token])


@numba.njit(nogil=True, cache=True)
def _gather(planes, weights, times):  # pragma: no cover - compiled
    """Fill times, int64 [tokens, in], with how often each row counts; return the largest sum of |times| of a token.

    planes: int8 [T, tokens, in]; weights: int64 [T].
    """
    largest = 0
    for token in range(times.shape[0]):
        counted = times[token]
        counted[:] = 0
        for t in range(planes.shape[0]):
            plane, weight = planes[t, token], weights[t]
            for channel in range(counted.shape[0]):
                # Without branches, so that the compiler uses vector registers.
                counted[channel] += (weight if plane[channel] > 0 else 0) - (weight if plane[channel] < 0 else 0)
        charge = 0
        for channel in range(counted.shape[0]):
            charge += abs(counted[channel])
        largest = max(largest, charge)
    return largest
