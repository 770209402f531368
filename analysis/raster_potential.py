"""The membrane potential that a raster shows: that of the neuron whose closed form a spike count is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..coding import SpikeTrain
from ..errors import InputError
from ..neuro import IntegrateAndFire
from .raster_trains import Calls


@dataclass(frozen=True)
class Potential:
    """Membrane potential of one neuron, unrolled: an integrate-and-fire neuron whose spikes are those of the raster.

    Attributes:
        neuron: its number in the layer.
        v: potential before the reset, in thresholds, [tokens, T]; NaN in places that no train has.
    """

    neuron: int
    v: np.ndarray


def find_potential(
    calls: Calls,
    trains: list[SpikeTrain],
    shown: np.ndarray,
    spikes: np.ndarray,
    timesteps: np.ndarray,
    wanted: int | None,
) -> Potential | None:
    """Return the potential of an integrate-and-fire neuron whose spikes are those that are shown, or None."""
    if wanted is not None and wanted not in shown:
        raise InputError(
            f"potential_of: expected one of the neurons that are shown, {_listed(shown)}; got {wanted}. Raise "
            "`num_neurons`, or name another."
        )
    if calls.ratios is None or calls.counts is None:
        return None
    row = _typical(calls.counts, shown) if wanted is None else int(np.flatnonzero(shown == wanted)[0])
    number = int(shown[row])
    ratio = torch.cat([call[:, number].cpu() for call in calls.ratios])
    count = torch.cat([call[:, number].cpu() for call in calls.counts])
    lift = torch.cat([torch.full((t.spikes.shape[1],), t.zero_point) for t in trains])
    v = _unrolled(ratio + lift, count + lift, spikes[row], signed=bool((spikes[row] < 0).any()) or not lift.any())
    return None if v is None else Potential(number, np.where(timesteps < 0, np.nan, v))


def _unrolled(ratio: Tensor, count: Tensor, spikes: np.ndarray, *, signed: bool) -> np.ndarray | None:
    """Return the potential of an integrate-and-fire neuron with threshold 1, [L, T], or None if it fires differently.

    Its potential begins at 1/2, which makes rounding of what would be a floor. At an exact tie, and where float32
    rounded a ratio across one, it begins as little beside that as gives the count of the collapsed neuron.
    """
    begin = torch.full_like(ratio, 0.5).clamp(count - ratio + 1e-9, count - ratio + 1 - 1e-9)
    if bool((begin - 0.5).abs().max() > 1e-3):
        return None  # the counts are not those of x / threshold, rounded
    neuron = IntegrateAndFire(v_initial=begin, negative_threshold=0.0 if signed else None)
    x, state, potential = ratio, neuron.initial_state(ratio), []
    for t in range(spikes.shape[1]):
        fired, state = neuron.step(x, state)
        if not np.array_equal(fired.count.numpy(), spikes[:, t]):
            return None
        potential.append(state.v.numpy())
        x = torch.zeros_like(ratio)
    return np.stack(potential, 1)


def _typical(counts: list[Tensor], shown: np.ndarray) -> int:
    """Return the row that fires at most tokens, and among those the one with the smallest counts."""
    of_shown = torch.cat([count[:, shown].cpu() for count in counts]).abs()
    num_tokens, total = (of_shown != 0).sum(0).numpy(), of_shown.sum(0).numpy()
    return int(np.lexsort((total, -num_tokens))[0])


def _listed(numbers: np.ndarray) -> str:
    some = ", ".join(map(str, numbers[:4]))
    return some if len(numbers) <= 4 else f"{some}, ..., {numbers[-1]}"
