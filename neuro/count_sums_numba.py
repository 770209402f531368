"""Sums over the channels with the same |count|, from which follows what settings of a neuron would lose."""

from __future__ import annotations

import numpy as np

from ..compiled import compiled


@compiled
def add_up_by_count(x, count, threshold, own, lost, sums):  # pragma: no cover - compiled
    """Add what the channels of tokens are to sums over those with the same |count|.

    Args:
        x: activations, float32 [tokens, N].
        count: their spike counts, int32 [tokens, N].
        threshold: float32 [tokens].
        own: squared norms of the channels' weights, float64 [N].
        lost: the same of what coarse rows lack.
        sums: float64 [4, places], added to: number of channels, their squared errors at the outputs if they are silent,
            those if they fire, and what coarse rows add to that. The last place holds all larger counts.
    """
    for token in range(x.shape[0]):
        for channel in range(x.shape[1]):
            place = min(abs(count[token, channel]), sums.shape[1] - 1)
            value = np.float64(x[token, channel])
            carried = count[token, channel] * np.float64(threshold[token])
            sums[0, place] += 1
            sums[1, place] += value * value * own[channel]
            sums[2, place] += (value - carried) * (value - carried) * own[channel]
            sums[3, place] += carried * carried * lost[channel]
