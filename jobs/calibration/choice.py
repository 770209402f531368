"""The best setting of each unit under a budget: least loss, by a price for what the budget counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ...coding import Encoder
from ...energy import DigitalEnergy
from ...energy.count_spiking import count_spiking_layer
from ...energy.counts import ModelCounts
from ...energy.recode import Recoded
from ...models import LayerRecord
from ...models.recording import WeightReads
from ...models.recording.layer_record import scale_bytes_of
from .units import LARGEST, Unit

# A channel may fall silent, or read coarse rows, below so many times the token's mean |x|.
_MOST_SILENT, _MOST_SMALL = 0.6, 1.6


class Option(NamedTuple):
    """A setting of a unit: k, and the largest |count| that is silent, and that reads coarse rows (0 for none)."""

    k: float
    silent: int
    small: int


@dataclass
class Table:
    """All settings of a unit, with what each loses and costs.

    Attributes:
        options: the settings.
        error: squared error of the outputs, float64 [options].
        cost: what the budget counts, in its unit, for all tokens that were seen, float64 [options].
    """

    options: list[Option]
    error: Tensor
    cost: Tensor

    def at(self, option: Option) -> int:
        """Return the place of a setting."""
        return self.options.index(option)


def table_of(unit: Unit, counts: str, model: DigitalEnergy, encoder: Encoder) -> Table:
    """Return what the settings of a unit lose and cost.

    Args:
        unit: with its sums.
        counts: what the budget counts: "read" (bytes of weights, scales and minima), "spikes" or "energy" (pJ).
        model: of the energy.
        encoder: the code.
    """
    options: list[Option] = []
    errors, costs = [], []
    for k, sums in unit.sums.items():
        zero = torch.zeros(1, dtype=torch.float64)
        below = {name: torch.cat([zero, getattr(sums, name).cumsum(0)]) for name in vars(sums)}
        total = {name: values[-1] for name, values in below.items()}
        price = _Prices.of(unit, k, counts, model, encoder)
        for silent in range(int(_MOST_SILENT * k - 0.5) + 1):
            s = silent + 1
            for small in (0, *range(s, min(int(_MOST_SMALL * k) + 1, LARGEST))):
                c = max(small + 1, s)
                fine, coarse = (
                    {n: total[n] - v[c] for n, v in below.items()},
                    {n: v[c] - v[s] for n, v in below.items()},
                )
                options.append(Option(k, silent, small))
                errors.append(below["silenced"][s] + fine["rounded"] + coarse["rounded"] + coarse["coarse"])
                costs.append(price.of_rows(fine, coarse if small else None))
    return Table(options, torch.stack(errors), torch.stack(costs))


class _Prices(NamedTuple):
    """What a unit costs: a constant, and what each spike and each row adds; of its own rows and of coarse ones."""

    own: tuple[float, float, float]
    coarse: tuple[float, float, float]

    @classmethod
    def of(cls, unit: Unit, k: float, counts: str, model: DigitalEnergy, encoder: Encoder) -> _Prices:
        found = []
        for is_coarse in (False, True):
            # From the first spike on: without any, no sum is shifted.
            one, more, row = (_cost(unit, k, counts, model, encoder, is_coarse, *at) for at in ((1, 0), (2, 0), (1, 1)))
            found.append((one - (more - one), more - one, row - one))
        return cls(*found)

    def of_rows(self, fine: dict[str, Tensor], coarse: dict[str, Tensor] | None) -> Tensor:
        cost = self.own[0] + self.own[1] * fine["spikes"] + self.own[2] * fine["channels"]
        if coarse is not None:
            cost = cost + self.coarse[0] + self.coarse[1] * coarse["spikes"] + self.coarse[2] * coarse["channels"]
        return cost


def _cost(
    unit: Unit, k: float, counts: str, model: DigitalEnergy, encoder: Encoder, is_coarse: bool, spikes: int, rows: int
) -> float:
    """Return what all layers of a unit cost with so many spikes and rows, by the rules of a recorded run."""
    if counts == "spikes":
        return float(spikes * len(unit.weights))
    total = 0.0
    n, steps = unit.num_tokens, encoder.timesteps_for(LARGEST)
    for name, weights in unit.weights.items():
        num_out, num_in = weights.weight.shape
        record = LayerRecord(
            name,
            num_in,
            num_out,
            num_tokens=n,
            num_active_channels=rows,
            weight_reads=[WeightReads(64, 1, n, rows, 0)],
            num_scales=weights.scale.shape[1],
            weight_bits=unit.coarse_bits if is_coarse else weights.weight_bits,
            largest_weight=2**weights.weight_bits - 1 if weights.minimum is not None else 127,
            has_minimum=is_coarse or weights.minimum is not None,
            scale_bytes=scale_bytes_of(weights.scale, weights.minimum),
            is_coarse=is_coarse,
            shares_scales=is_coarse and weights.minimum is not None,
            mean_count_bound=k + 0.5,
        )
        recoded = Recoded(spikes, spikes, rows, steps * n * num_in, steps, 0)
        layer = count_spiking_layer(record, recoded, 64, 1)
        if counts == "read":
            total += layer.spiking.weight_channel_bytes + layer.spiking.parameter_bytes
        else:
            total += model.estimate(ModelCounts({name: layer}, num_tokens=n)).total_pj
    return total


def choose(tables: Sequence[Table], sensitivity: Sequence[float], budget: float) -> list[int]:
    """Return the setting of each unit with the least sum of sensitivity * error whose costs keep a budget.

    A price for the cost is found by bisection; each unit then takes what is best at that price (Lagrange). So settings
    that lie above the lower hull of error and cost are never taken.

    Args:
        tables: of the units.
        sensitivity: of the model to the error of each unit.
        budget: for the sum of the costs. If even the cheapest settings exceed it, these are returned.
    """
    low, high = 1e-30, 1e30
    for _ in range(200):
        price = (low * high) ** 0.5
        if _total(tables, _at(tables, sensitivity, price)) > budget:
            low = price
        else:
            high = price
    return _at(tables, sensitivity, high)


def _at(tables: Sequence[Table], sensitivity: Sequence[float], price: float) -> list[int]:
    return [int((s * t.error + price * t.cost).argmin()) for t, s in zip(tables, sensitivity, strict=True)]


def _total(tables: Sequence[Table], chosen: Sequence[int]) -> float:
    return sum(float(table.cost[i]) for table, i in zip(tables, chosen, strict=True))


def predicted(tables: Sequence[Table], sensitivity: Sequence[float], chosen: Sequence[int]) -> float:
    """Return the loss that the settings are expected to have, as the sum of what each unit alone would have."""
    return sum(s * float(t.error[i]) for t, s, i in zip(tables, sensitivity, chosen, strict=True))
