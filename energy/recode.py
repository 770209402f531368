"""The spikes of recorded counts in a code: in the one that ran, or in another."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..coding import Encoder
from ..coding.base import require_exact
from ..coding.checks import fitted_to, train_of
from ..models import LayerRecord

# Trains are unrolled this many bytes at a time to count their spikes, and not at all if they are longer than that.
_PORTION_BYTES = 2**24
_LONGEST_TRAIN = 2**16


@dataclass(frozen=True)
class Recoded:
    """Spikes of a layer in some code.

    Attributes:
        num_spikes: of either sign.
        num_weighted_spikes: spikes of timesteps that do not weigh 1 or -1.
        num_active_channels: channels with a spike, over all tokens.
        num_slots: timesteps x channels x tokens.
        num_timesteps: length of the train.
        zero_point: of the code.
    """

    num_spikes: int
    num_weighted_spikes: int
    num_active_channels: int
    num_slots: int
    num_timesteps: int
    zero_point: int


def as_run(layer: LayerRecord) -> Recoded:
    """Return the spikes of a layer as they ran."""
    return Recoded(
        layer.num_spikes,
        layer.num_weighted_spikes,
        layer.num_active_channels,
        layer.num_slots,
        layer.num_timesteps,
        layer.zero_point,
    )


def recode(layer: LayerRecord, encoder: Encoder) -> Recoded | None:
    """Return the spikes that the recorded counts of a layer take in another code than they ran in.

    The code is fitted to the layer once: its timesteps (and zero point) hold all counts of the recording. None if
    that takes a train of more than 65,536 timesteps, as rate codes of counts in the millions do.

    Raises:
        InputError: the code is lossy.
    """
    require_exact(
        encoder, "encoder", "recorded counts say nothing of the spikes of another; run the model in that code"
    )
    if not layer.count_histogram:
        return Recoded(0, 0, 0, 0, 0, 0)
    counts = torch.tensor(sorted(layer.count_histogram), dtype=torch.int32)
    frequency = torch.tensor([layer.count_histogram[int(c)] for c in counts], dtype=torch.int64)
    suited, num_timesteps = fitted_to(encoder, int(counts[0]), int(counts[-1]))
    if num_timesteps > _LONGEST_TRAIN:
        return None
    portion = max(1, _PORTION_BYTES // num_timesteps)
    num_spikes = num_weighted = num_active = zero_point = 0
    for some, count in zip(counts.split(portion), frequency.split(portion), strict=True):
        train = train_of(suited, some, num_timesteps)
        fired = train.spikes.abs()  # [T, counts]
        spikes_of_each = fired.sum(0, dtype=torch.int64)
        weighted = fired[train.timestep_weight.abs() != 1].sum(0, dtype=torch.int64)
        num_spikes += int((spikes_of_each * count).sum())
        num_weighted += int((weighted * count).sum())
        num_active += int(count[spikes_of_each > 0].sum())
        zero_point = train.zero_point
    num_slots = num_timesteps * int(frequency.sum())
    return Recoded(num_spikes, num_weighted, num_active, num_slots, num_timesteps, zero_point)
