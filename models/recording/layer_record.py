"""What one spiking layer did while its model ran, in memory that does not grow with the text."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from ...registry import label
from ..layers.compact import scale_bytes_of
from ..layers.graded_linear import GradedLinear
from ..layers.observing import Step
from ..layers.spike_linear import SpikeLinear
from .weight_reads import WeightReads, row_bytes

# Counting into bins is ten times faster than sorting, as long as the bins fit the cache.
_MAX_BINS = 2**20


@dataclass
class LayerRecord:
    """What one layer did: exact integers, from which every statistic follows.

    Attributes:
        name: of the layer in the model.
        in_features: channels whose activations are counted and spike, per token.
        out_features: outputs that each spike reaches.
        num_tokens: tokens that passed.
        count_histogram: how many channels (over all tokens) had each signed spike count. Of the levels of a
            `GradedLinear` each channel is in one: that whose rows it reads, or the last if it is silent.
        num_spikes: spikes of either sign in the trains as they ran.
        num_slots: places for a spike in those trains: timesteps x channels x tokens, summed over the trains.
        num_timesteps: length of the longest train.
        num_weighted_spikes: spikes in timesteps whose weight is not 1 or -1; each of them needs a shift.
        num_active_channels: channels with at least one spike, summed over tokens: rows of weights that were needed.
        zero_point: the largest of the trains.
        weight_reads: which weights were needed, for each size of block and number of tokens that share a read.
        num_scales: groups of input channels with a weight scale of their own.
        weight_bits: width of a weight in memory, 8, 4 or 2.
        largest_weight: bound of an integer weight's magnitude.
        has_minimum: whether each group has a minimum beside its scale.
        scale_bytes: of all scales and minima of the layer; see `scale_bytes_of`.
        is_coarse: whether these are coarse rows of a `GradedLinear`. What a layer does once (making counts, reading
            activations and scales, rescaling, its dense counterparts) is counted with its own rows.
        has_bias: whether the layer has a bias.
        adds_scaled: whether scaled sums of groups are added up in integers (`SpikeLinear.units`).
        mean_count_bound: the largest mean |count| that the neuron allows (see `CountBounds`); None if it has no bound.
        compares_per_channel: of the neuron, see `Neuron.compares_per_channel`.
        neuron: of the layer.
        encoder: of the layer.
    """

    name: str
    in_features: int
    out_features: int
    num_tokens: int = 0
    count_histogram: Counter[int] = field(default_factory=Counter)
    num_spikes: int = 0
    num_slots: int = 0
    num_timesteps: int = 0
    num_weighted_spikes: int = 0
    num_active_channels: int = 0
    zero_point: int = 0
    weight_reads: list[WeightReads] = field(default_factory=list)
    num_scales: int = 1
    weight_bits: int = 8
    largest_weight: int = 127
    has_minimum: bool = False
    scale_bytes: int = 0
    is_coarse: bool = False
    has_bias: bool = False
    mean_count_bound: float | None = None
    compares_per_channel: int = 0
    neuron: str = ""
    encoder: str = ""
    adds_scaled: bool = False
    own_rows: LayerRecord | None = field(default=None, repr=False, compare=False)

    @classmethod
    def of_layer(cls, name: str, layer: SpikeLinear, weight_reads: list[WeightReads]) -> LayerRecord:
        """Return an empty record of a layer."""
        bounds = layer.neuron.count_bounds(layer.in_features)
        return cls(
            name,
            layer.in_features,
            layer.out_features,
            weight_reads=weight_reads,
            num_scales=len(layer.groups),
            weight_bits=layer.weight_bits,
            largest_weight=_largest_weight(layer),
            has_minimum=layer.minimum is not None,
            scale_bytes=scale_bytes_of(layer.scale, layer.minimum),
            has_bias=layer.bias is not None,
            adds_scaled=layer.units is not None,
            mean_count_bound=None if bounds is None else bounds.mean,
            compares_per_channel=layer.neuron.compares_per_channel(),
            neuron=label(layer.neuron),
            encoder=label(layer.encoder) + (", lossy" if layer.encoder.lossy else ""),
        )

    def be_coarse(self, layer: GradedLinear, own_rows: LayerRecord | None = None) -> None:
        """Be the record of coarse rows of a layer.

        Args:
            layer: whose coarse rows these are.
            own_rows: the record of the layer's own rows, where channels are silent that this one hears.
        """
        self.is_coarse, self.own_rows = True, own_rows
        # One accumulator for both.
        bounds = layer.own.neuron.count_bounds(layer.in_features)
        self.largest_weight = _largest_weight(layer.own)
        self.mean_count_bound = None if bounds is None else bounds.mean

    def add(self, step: Step) -> None:
        """Add what the layer computed for some tokens."""
        frequency = dict(zip(*(one.tolist() for one in frequencies(step.count)), strict=True))
        if self.is_coarse:
            frequency.pop(0, None)
            if self.own_rows is not None:  # where these channels are silent
                self.own_rows.count_histogram[0] -= sum(frequency.values())
        self.count_histogram.update(frequency)
        train = step.train
        num_spikes, is_unit = train.num_spikes, train.timestep_weight.abs() == 1
        self.num_tokens += len(step.count)
        self.num_spikes += num_spikes
        self.num_weighted_spikes += num_spikes - int(train.spikes[is_unit.to(train.spikes.device)].count_nonzero())
        self.num_slots += train.spikes.numel()
        self.num_timesteps = max(self.num_timesteps, train.num_timesteps)
        self.zero_point = max(self.zero_point, train.zero_point)
        # Spikes of both signs, so that none cancels another. Many times faster than `any` over the time axis.
        active = functools.reduce(torch.bitwise_or, train.spikes.unbind(0)) != 0
        self.num_active_channels += int(active.count_nonzero())
        for reads in self.weight_reads:
            reads.add(active, row_bytes(self.out_features, self.weight_bits))

    def state(self) -> dict[str, Any]:
        """Return all fields in a form that JSON can hold."""
        kept = {name: value for name, value in vars(self).items() if name != "own_rows"}
        return {**kept, "weight_reads": [asdict(reads) for reads in self.weight_reads]}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Set all fields to what `state` returned, after it was stored as JSON."""
        for attribute, value in state.items():
            setattr(self, attribute, value)
        self.count_histogram = Counter({int(c): n for c, n in state["count_histogram"].items()})
        self.weight_reads = [WeightReads(**reads) for reads in state["weight_reads"]]


def frequencies(count: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the different counts, from the least on, and how many there are of each."""
    low, high = (int(v) for v in count.aminmax())
    if high - low >= _MAX_BINS:
        return torch.unique(count, return_counts=True)
    found = torch.bincount((count - low).flatten())
    values = found.nonzero().flatten()
    return (values + low).to(count.dtype), found[values]


def _largest_weight(layer: SpikeLinear) -> int:
    """Return what no integer of a layer exceeds: 127 as we round, 128 where a file has -128, less in fewer bits."""
    if layer.weight_bits < 8:
        return 2 ** (layer.weight_bits - 1) if layer.minimum is None else 2**layer.weight_bits - 1
    return 128 if bool((layer.weight == -128).any()) else 127
