"""The adaptive-threshold neuron with prices: a count is chosen for its error and for what its spikes cost."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import InputError
from .adaptive_threshold import AdaptiveThreshold, check_numbers, count_by_mean
from .base import NEURONS, CountBounds, CountTable, KernelRule
from .spike_count import SpikeCount

# Prices up to here are allowed. `_REACH` and `_TABLE` follow from them.
_MOST_SPIKE_PRICE, _MOST_READ_PRICE = 8.0, 1000.0
# No count is farther than this from the rounded ratio, unless it is 0. At a distance d the error grows by d^2 - d at
# least, and the digits become at most those of d fewer (the form has the fewest digits there are, so digits(n) <=
# digits(m) + digits(n - m)). d^2 - d <= 8 digits(d) holds for d = 1, 2 and 3 only.
_REACH = 3
# Ratios up to here are looked up. Beyond, 0 is never chosen: its error is above `_TABLE`^2.
_TABLE = 1024
# Places of the compiled table per unit of the ratio.
_CELLS = 4


@NEURONS.register("rate-distortion")
@dataclass(frozen=True)
class RateDistortionThreshold(AdaptiveThreshold):
    """count = argmin over integers n of (ratio - n)^2 + spike_price * digits(n) + read_price * [n != 0].

    ratio = x / threshold, threshold = mean|x| / k, and digits(n) is how many spikes n takes in the signed-digit code.
    Errors are in units of the threshold. So 7 = 8 - 1 may become 8, which has one spike in the place of two, and 1 may
    become 0, which also saves reading the channel's weights. Of equally good counts the smallest is taken. With prices
    of 0 only ties differ from `AdaptiveThreshold`. With a spike price of 1 a channel has as many spikes as at half the
    k without prices (but for ties), and a smaller error.

    The best n never falls as ratio grows, so a table of borders gives it: those of the lower convex hull of the points
    (n, n^2 + price of n). They are computed in exact fractions and rounded down to the ratio's dtype, which leaves
    every comparison as it is. Beyond |ratio| = 1024 the candidates around the rounded ratio are compared in float64.
    Kernels on a CPU run it; on a GPU it runs by the separate steps.

    Attributes:
        k: the mean |x| divided by the threshold; larger means finer steps.
        floor: smallest threshold, in the unit of x; makes an all-zero token silent.
        ceiling: largest threshold, in the unit of x.
        spike_price: of a spike, in squared thresholds, 0 to 8.
        read_price: of a channel that is not silent, in squared thresholds, 0 to 1000.

    Source:
        Threshold: SpikingBrain (arXiv:2509.05276), section 3.3.1, eq. 19 to 21. The choice by error + price * rate is
        rate-distortion optimised quantisation, with a number of spikes as the rate; for scalar quantisers see G. J.
        Sullivan, Efficient scalar quantization of exponential and Laplacian random variables, IEEE Transactions on
        Information Theory 42 (1996).

    >>> ratios = torch.tensor([[0.9, 1.1, 2.9, 7.2, -11.2, 0.0]])  # the floor makes the threshold 1
    >>> RateDistortionThreshold(k=1e3, floor=1.0)(ratios).count.tolist()
    [[0, 1, 2, 8, -12, 0]]
    """

    k: float = 8.0
    spike_price: float = 1.0
    read_price: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, "spike_price", "read_price")
        for name, most in (("spike_price", _MOST_SPIKE_PRICE), ("read_price", _MOST_READ_PRICE)):
            if not 0 <= getattr(self, name) <= most:
                raise InputError(
                    f"{type(self).__name__}.{name}: expected a number from 0 to {most:g}, in squared thresholds, got "
                    f"{getattr(self, name)}. A lower k saves spikes, too."
                )

    def step(self, x: Float[Tensor, "*shape"], state: None = None) -> tuple[SpikeCount, None]:
        """Count the spikes of one activation tensor; see `AdaptiveThreshold.step`."""
        return count_by_mean(self, x, self._cheapest), None

    def cpu_rule(self) -> KernelRule:
        """Return the rule of `AdaptiveThreshold` with a table of counts; see `Neuron.cpu_rule`."""
        return AdaptiveThreshold.kernel_rule(self)._replace(table=_table(self.spike_price, self.read_price))

    def count_bounds(self, num_channels: int) -> CountBounds:
        """Return the bounds of `AdaptiveThreshold`, with the farthest that a count can be above |ratio|.

        Beside the rounded ratio, at most 1/2 away, a count saves the digits of their distance at most: 1 up to a
        distance of 2, and 2 at 3, which is chosen from a price of 3 on.
        """
        farthest = (0.25 + self.spike_price * (1 if self.spike_price < 3 else 2)) ** 0.5
        return CountBounds(self.k * num_channels + farthest + 0.5, self.k + farthest)

    def compares_per_channel(self) -> int:
        """Return the steps of a binary search in the table."""
        return len(_borders(self.spike_price, self.read_price, torch.float32)[1]).bit_length()

    def _cheapest(self, ratio: Tensor) -> Tensor:
        """Return the counts of x / threshold; on a CPU by `rate_distortion_numba`, which gives the same."""
        if ratio.is_cpu and ratio.dtype == torch.float32:
            return self._cheapest_compiled(ratio)
        return self._cheapest_plain(ratio)

    def _cheapest_compiled(self, ratio: Tensor) -> Tensor:
        from .rate_distortion_numba import choose_counts  # noqa: PLC0415 - numba takes a while to import

        table, count = _table(self.spike_price, self.read_price), torch.empty(ratio.shape, dtype=torch.int32)
        given = (ratio.contiguous().view(-1), table.choices, table.borders, table.first)
        numbers = (table.cells, table.reach, table.spike_price)
        choose_counts(*(part.numpy() for part in given), *numbers, count.view(-1).numpy())
        return count

    def _cheapest_plain(self, ratio: Tensor) -> Tensor:
        magnitude = ratio.abs()
        counts, borders = (part.to(ratio.device) for part in _borders(self.spike_price, self.read_price, ratio.dtype))
        count = counts[torch.bucketize(magnitude, borders)]  # at a border itself, the smaller
        far = magnitude > _TABLE
        if bool(far.any()):
            count[far] = self._cheapest_near(magnitude[far].double())
        return torch.where(ratio < 0, -count, count)

    def _cheapest_near(self, magnitude: Tensor) -> Tensor:
        """Return the best of the candidates around the rounded magnitudes, smaller ones first."""
        start = magnitude.round().long() - _REACH
        candidates = start + torch.arange(2 * _REACH + 1, device=start.device)[:, None]
        costs = (magnitude - candidates) ** 2 + self.spike_price * num_digits(candidates)
        return (start + costs.argmin(0)).int()


def num_digits(count: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    """Return how many digits of counts >= 0, int64, are not 0 in the signed-digit code: those of c xor 3c."""
    rest, found = count ^ (3 * count), torch.zeros_like(count)
    while bool(rest.any()):
        found += rest & 1
        rest = rest >> 1
    return found


@functools.lru_cache(maxsize=64)
def _borders(spike_price: float, read_price: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the counts that can be chosen, ascending int32, and the |ratio| beyond which each next one is better."""
    # Costs as integers: multiples of 1 / unit, which is a power of 2.
    (spike, spike_unit), (read, read_unit) = (float(price).as_integer_ratio() for price in (spike_price, read_price))
    unit = max(spike_unit, read_unit)
    spike, read = spike * (unit // spike_unit), read * (unit // read_unit)
    points: list[tuple[int, int]] = []
    for n in range(_TABLE + _REACH + 1):
        point = n, unit * n * n + spike * (n ^ 3 * n).bit_count() + (read if n else 0)
        while len(points) > 1 and not _is_below(points[-2], points[-1], point):
            points.pop()
        points.append(point)
    numbers = np.float64 if dtype == torch.float64 else np.float32
    exact = [Fraction(b - a, 2 * unit * (n - m)) for (m, a), (n, b) in itertools.pairwise(points)]
    borders = [_rounded_down(border, numbers) for border in exact]
    return torch.tensor([n for n, _ in points], dtype=torch.int32), torch.tensor(borders, dtype=dtype)


@functools.cache  # for good: compiled decoders hold the addresses
def _table(spike_price: float, read_price: float) -> CountTable:
    """Return the counts that can be chosen and their borders, as compiled code takes them."""
    choices, borders = _borders(spike_price, read_price, torch.float32)
    first = torch.searchsorted(borders, torch.arange(_CELLS * _TABLE + 1, dtype=torch.float32) / _CELLS).int()
    borders = torch.cat([borders, torch.tensor([torch.inf])])
    return CountTable(choices, borders, first, _CELLS, _REACH, float(spike_price))


def _is_below(low: tuple[int, int], point: tuple[int, int], high: tuple[int, int]) -> bool:
    """Return whether a point is below the line between its neighbours; if not, it is never better than both."""
    return (point[1] - low[1]) * (high[0] - point[0]) < (high[1] - point[1]) * (point[0] - low[0])


def _rounded_down(number: Fraction, numbers: type[np.floating]) -> float:
    near = numbers(float(number))
    return float(near if Fraction(float(near)) <= number else np.nextafter(near, numbers(-np.inf)))
