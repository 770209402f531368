"""Event-driven accumulation on the CPU: visits only spikes, adds and subtracts rows of INT8 weights."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import torch
from torch import Tensor

from .base import BACKENDS, INT32, Backend

# Outputs per pass: one accumulator block of 4 bytes each stays in the first-level cache.
_BLOCK = 2048


@BACKENDS.register("cpu")
class Cpu(Backend):
    """Lists the spikes of each token, then adds the weight row of every +1 and subtracts that of every -1.

    Timesteps of equal weight share one sum, which is shifted into the total once: no multiplication anywhere. Tokens
    (or the outputs, if there are fewer tokens) are divided over `torch.get_num_threads()` threads; integers make the
    result the same for any number of them.
    """

    def why_unavailable(self, device: torch.device) -> str | None:
        """Return a reason if the tensors are not in main memory."""
        return None if device.type == "cpu" else f"the tensors are on {device}; this backend works on a CPU only."

    def _accumulate(self, spikes: Tensor, timestep_weight: Tensor, weight: Tensor, bound: float) -> Tensor:
        num_tokens, num_outputs = spikes.shape[1], weight.shape[0]
        total = torch.empty(num_tokens, num_outputs, dtype=torch.int32 if bound <= INT32.max else torch.int64)
        planes, rows = spikes.contiguous().numpy(), weight.t().contiguous().numpy()
        plane_weight, plane_group = np.unique(timestep_weight.numpy(), return_inverse=True)
        num_threads = torch.get_num_threads()
        by_token = num_tokens >= num_threads
        bounds = np.linspace(0, num_tokens if by_token else num_outputs, num_threads + 1).astype(int).tolist()

        def work(part: int) -> None:
            low, high = bounds[part], bounds[part + 1]
            tokens, outputs = ((low, high), (0, num_outputs)) if by_token else ((0, num_tokens), (low, high))
            _add_events(planes, plane_group, plane_weight, rows, tokens, outputs, total.numpy())

        if num_threads == 1:
            work(0)
        else:
            with ThreadPoolExecutor(num_threads) as pool:
                list(pool.map(work, range(num_threads)))
        return total


@numba.njit(nogil=True, cache=True)
def _add_events(planes, plane_group, plane_weight, rows, tokens, outputs, total):  # pragma: no cover - compiled
    """Fill total[tokens, outputs] with sum over t of weight[t] * (rows^T planes[t]).

    planes: int8 [T, tokens, in]; plane_group: int [T], index into plane_weight; plane_weight: int64 [G];
    rows: int8 [in, out]; tokens, outputs: half-open ranges; total: int32 or int64 [tokens, out].
    """
    num_timesteps, _, num_inputs = planes.shape
    num_groups = plane_weight.shape[0]
    # Events of one token and group: channels of +1 spikes fill their row from the front, those of -1 from the back.
    capacity = num_inputs * np.bincount(plane_group).max()
    channels = np.empty((num_groups, capacity), np.int32)
    num_plus = np.empty(num_groups, np.int64)
    num_minus = np.empty(num_groups, np.int64)
    partial = np.empty(min(_BLOCK, outputs[1] - outputs[0]), total.dtype)
    for token in range(tokens[0], tokens[1]):
        num_plus[:] = 0
        num_minus[:] = 0
        for t in range(num_timesteps):
            g = plane_group[t]
            plus, minus = num_plus[g], num_minus[g]
            for channel in range(num_inputs):
                spike = planes[t, token, channel]
                if spike > 0:
                    channels[g, plus] = channel
                    plus += 1
                elif spike < 0:
                    minus += 1
                    channels[g, capacity - minus] = channel
            num_plus[g], num_minus[g] = plus, minus
        for start in range(outputs[0], outputs[1], _BLOCK):
            stop = min(start + _BLOCK, outputs[1])
            block = total[token, start:stop]
            block[:] = 0
            for g in range(num_groups):
                if num_plus[g] + num_minus[g] == 0:
                    continue
                sums = partial[: stop - start]
                sums[:] = 0
                _add_rows(rows, channels[g, capacity - num_minus[g] :], start, stop, sums)
                for i in range(stop - start):
                    sums[i] = -sums[i]
                _add_rows(rows, channels[g, : num_plus[g]], start, stop, sums)
                _add_shifted(sums, plane_weight[g], block)


@numba.njit(nogil=True, cache=True)
def _add_rows(rows, channels, start, stop, sums):  # pragma: no cover - compiled
    """Add rows[c, start:stop] to sums for every c in channels, four at a time to load and store sums less often."""
    fours = channels.shape[0] // 4 * 4
    for e in range(0, fours, 4):
        a = rows[channels[e], start:stop]
        b = rows[channels[e + 1], start:stop]
        c = rows[channels[e + 2], start:stop]
        d = rows[channels[e + 3], start:stop]
        for i in range(stop - start):
            # Four INT8 weights stay within 16 bits.
            sums[i] += np.int16(np.int16(a[i]) + np.int16(b[i])) + np.int16(np.int16(c[i]) + np.int16(d[i]))
    for e in range(fours, channels.shape[0]):
        a = rows[channels[e], start:stop]
        for i in range(stop - start):
            sums[i] += a[i]


@numba.njit(nogil=True, cache=True)
def _add_shifted(sums, weight, block):  # pragma: no cover - compiled
    """Add weight * sums to block by shifts: one addition for each binary digit of |weight|."""
    magnitude, bit = abs(weight), 0
    while magnitude >> bit:
        if (magnitude >> bit) & 1:
            if weight > 0:
                for i in range(block.shape[0]):
                    block[i] += sums[i] << bit
            else:
                for i in range(block.shape[0]):
                    block[i] -= sums[i] << bit
        bit += 1
