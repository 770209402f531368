"""Spike statistics, each with its definition."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from ..coding import ENCODERS, Encoder
from ..energy import recode
from ..errors import InputError
from ..models import LayerRecord

# The meaning of each statistic; reports print these next to the numbers.
DEFINITIONS = {
    "mean_spikes": "spikes of either sign per channel and token",
    "mean_count": "mean |count| per channel and token",
    "silent_fraction": "share of channels with count 0",
    "fraction_le_7": "share of channels with |count| <= 7 (3 bits)",
    "fraction_gt_16": "share of channels with |count| > 16",
    "window3_sparsity": "empty share of 3 bit planes, where |count| <= 7",
    "train_sparsity": "empty share of the whole train: 1 - firing_rate",
    "firing_rate": "spikes / (channels x timesteps), as they ran",
    "max_count": "largest |count|",
    "num_timesteps": "length of the longest train",
}
# What screens, pages and pictures call the statistics; JSON has their names in code.
LABELS = {
    "mean_spikes": "mean spikes",
    "mean_count": "mean count",
    "silent_fraction": "silent channels",
    "fraction_le_7": "channels that 3 bits hold",
    "fraction_gt_16": "counts above 16",
    "window3_sparsity": "empty places of 3 bit planes",
    "train_sparsity": "empty places of the train",
    "firing_rate": "firing rate",
    "max_count": "largest count",
    "num_timesteps": "timesteps",
}


@dataclass(frozen=True)
class SpikeStatistics:
    """Statistics over one or more layers; `DEFINITIONS` says what each means."""

    mean_spikes: float
    mean_count: float
    silent_fraction: float
    fraction_le_7: float
    fraction_gt_16: float
    window3_sparsity: float
    train_sparsity: float
    firing_rate: float
    max_count: int
    num_timesteps: int


def spike_statistics(layers: Iterable[LayerRecord]) -> SpikeStatistics:
    """Return the statistics over all channels and tokens of the given layers.

    `window3_sparsity` is always that of the bitwise code (report 5.5), in which three digits hold |count| <= 7, even if
    the layers ran another code.

    Raises:
        InputError: nothing was recorded.
    """
    layers = list(layers)
    histogram = merged_histogram(layers)
    total = histogram.total()
    if not total:
        raise InputError("spike_statistics: expected a recording with at least one token. Run the model inside record.")
    num_spikes, num_slots = sum(layer.num_spikes for layer in layers), sum(layer.num_slots for layer in layers)
    small = {count: number for count, number in histogram.items() if abs(count) <= 7}
    num_small = sum(small.values())
    digits = sum(abs(count).bit_count() * number for count, number in small.items())
    return SpikeStatistics(
        mean_spikes=num_spikes / total,
        mean_count=sum(abs(count) * number for count, number in histogram.items()) / total,
        silent_fraction=histogram[0] / total,
        fraction_le_7=num_small / total,
        fraction_gt_16=sum(number for count, number in histogram.items() if abs(count) > 16) / total,
        window3_sparsity=1 - digits / (3 * num_small) if num_small else 0.0,
        train_sparsity=1 - num_spikes / num_slots,
        firing_rate=num_spikes / num_slots,
        max_count=max(abs(count) for count in histogram),
        num_timesteps=max(layer.num_timesteps for layer in layers),
    )


def merged_histogram(layers: Iterable[LayerRecord]) -> Counter[int]:
    """Return the number of channels with each signed spike count, over all layers together."""
    return sum((layer.count_histogram for layer in layers), Counter())


@dataclass(frozen=True)
class CodeStatistics:
    """Statistics of recorded counts in a given code; fields as in `SpikeStatistics`."""

    mean_spikes: float
    train_sparsity: float
    num_timesteps: int


def code_statistics(layers: Iterable[LayerRecord], encoder: Encoder | str) -> CodeStatistics | None:
    """Return the statistics that the recorded counts of some layers would have in another code.

    The code is fitted to each layer once: its timesteps (and zero point) hold all counts of the recording. The result
    is None if trains would need more than 65,536 timesteps, as in rate codes with counts in the millions.
    """
    code: Encoder = ENCODERS.resolve(encoder, "code_statistics.encoder")
    num_spikes = num_slots = num_activations = longest = 0
    for layer in layers:
        recoded = recode(layer, code)
        if recoded is None:
            return None
        num_spikes += recoded.num_spikes
        num_slots += recoded.num_slots
        num_activations += layer.count_histogram.total()
        longest = max(longest, recoded.num_timesteps)
    return CodeStatistics(num_spikes / num_activations, 1 - num_spikes / num_slots, longest)
