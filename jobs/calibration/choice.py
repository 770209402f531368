"""The best setting of each unit under a budget: least loss, by a price for what the budget counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ...coding import Encoder
from ...energy import DigitalEnergy
from ...energy.count_spiking import count_spiking_layer
from ...energy.counts import LayerCounts, ModelCounts
from ...energy.recode import Recoded
from ...models.recording import WeightReads
from .units import LARGEST, Rule, Unit

# A channel may fall silent, or read coarse rows, below so many times the token's mean |x|.
_MOST_SILENT, _MOST_SMALL = 0.6, 3.0


class Option(NamedTuple):
    """A setting of a unit: its rule, and the largest |count| that is silent, or reads coarse rows (0 for none)."""

    rule: Rule
    silent: int = 0
    small: int = 0

    def to_dict(self) -> dict[str, float]:
        """Return the setting as a file has it."""
        return {**self.rule._asdict(), "silent": self.silent, "small": self.small}


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
    for rule in unit.sums:
        price = Prices.of(unit, rule, counts, model, encoder)
        # Prices decide by themselves what is silent.
        most_silent = 0 if rule.has_prices else int(_MOST_SILENT * rule.k - 0.5)
        for silent in range(most_silent + 1):
            most_small = min(int(_MOST_SMALL * rule.k), LARGEST - 1) if unit.has_coarse_rows else 0
            for small in (0, *range(silent + 1, most_small + 1)):
                options.append(Option(rule, silent, small))
                errors.append(error_of(unit, options[-1]))
                costs.append(price.of_option(unit, options[-1]))
    return Table(options, torch.tensor(errors, dtype=torch.float64), torch.tensor(costs, dtype=torch.float64))


def error_of(unit: Unit, option: Option) -> float:
    """Return the squared error of a unit's outputs with a setting, from its sums."""
    sums = unit.sums[option.rule]
    fires, own = option.silent + 1, max(option.small, option.silent) + 1
    return _sum(sums.silenced, 0, fires) + _sum(sums.rounded, fires) + _sum(sums.coarse, fires, own)


def _sum(values: Tensor, start: int, stop: int = LARGEST + 1) -> float:
    return float(values[start:stop].sum())


class Prices(NamedTuple):
    """What a unit costs: a constant, and what each spike and each row adds; of its own rows and of coarse ones."""

    own: tuple[float, float, float]
    coarse: tuple[float, float, float]

    @classmethod
    def of(cls, unit: Unit, rule: Rule, counts: str, model: DigitalEnergy, encoder: Encoder) -> Prices:
        """Return the prices of a unit by the rules of a recorded run; arguments as of `table_of`."""
        found = []
        for is_coarse in (False, True):
            layers = [_layers(unit, rule, encoder, is_coarse, *at) for at in ((1, 0), (2, 0), (1, 1))]
            # From the first spike on: without any, no sum is shifted.
            one, more, row = (_cost(counts, some, "spiking", model) for some in layers)
            found.append((one - (more - one), more - one, row - one))
        return cls(*found)

    def of_option(self, unit: Unit, option: Option) -> float:
        """Return what the tokens in a unit's sums cost with a setting."""
        sums = unit.sums[option.rule]
        fires, own = option.silent + 1, max(option.small, option.silent) + 1
        constant, spike, row = self.own
        cost = constant + spike * _sum(sums.spikes, own) + row * _sum(sums.channels, own)
        if option.small > option.silent:
            constant, spike, row = self.coarse
            cost += constant + spike * _sum(sums.spikes, fires, own) + row * _sum(sums.channels, fires, own)
        return cost


def dense_cost(unit: Unit, counts: str, model: DigitalEnergy, encoder: Encoder) -> float:
    """Return what the value of a budget is a share of: dense INT8 layers, or for spikes all channels."""
    if counts == "spikes":
        return float(unit.num_tokens * unit.num_inputs * len(unit.layers))
    return _cost(counts, _layers(unit, Rule(1.0), encoder, False, 0, 0), "int8", model)


def _cost(counts: str, layers: dict[str, LayerCounts], system: str, model: DigitalEnergy) -> float:
    if counts == "energy":
        report = model.estimate(ModelCounts(layers))
        return report.total_pj if system == "spiking" else report.int8_total_pj
    done = [getattr(layer, system) for layer in layers.values()]
    if counts == "spikes":
        return float(sum(one.num_spikes for one in done))
    return float(sum(one.weight_channel_bytes + one.weight_bytes + one.parameter_bytes for one in done))


def _layers(
    unit: Unit, rule: Rule, encoder: Encoder, is_coarse: bool, spikes: int, rows: int
) -> dict[str, LayerCounts]:
    """Return what the layers of a unit count with so many spikes and rows."""
    found = {}
    n, steps, neuron = unit.num_tokens, encoder.timesteps_for(LARGEST), rule.neuron()
    for coarse, own in unit.records:
        record = replace(
            coarse if is_coarse else own,
            num_tokens=n,
            num_active_channels=rows,
            weight_reads=[WeightReads(64, 1, n, rows, 0)],
            mean_count_bound=neuron.count_bounds(unit.num_inputs).mean,
            compares_per_channel=neuron.compares_per_channel(),
        )
        recoded = Recoded(spikes, spikes, rows, steps * n * record.in_features, steps, 0)
        found[record.name] = count_spiking_layer(record, recoded, 64, 1)
    return found


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
