"""Spikes as lines of text, which JSON holds and people can read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..coding import SpikeTrain, decode

_MARKS = {1: "+", -1: "-", 0: "."}


def raster_text(train: SpikeTrain, layers: Sequence[str], tokens: Sequence[str], most_cells: int) -> dict[str, Any]:
    """Return the spikes of successive tokens as JSON values.

    Args:
        train: spikes of shape [T, tokens, neurons].
        layers: names of the layers that read it.
        tokens: text of each token.
        most_cells: timesteps x tokens x neurons at most; if there are more, the neurons are thinned evenly.
    Returns:
        "layers", "tokens", "num_timesteps", "timestep_weight", "num_neurons" (of the layer), "neurons" (those shown),
        "counts" by token and neuron, and "spikes": by token and timestep a text with "+", "-" or "." for each neuron.
    """
    num_timesteps, num_tokens, total = train.spikes.shape
    num_shown = max(1, min(total, most_cells // max(num_timesteps * num_tokens, 1)))
    neurons = [i * total // num_shown for i in range(num_shown)]
    spikes = train.spikes[:, :, neurons].cpu().transpose(0, 1).tolist()
    return {
        "layers": list(layers),
        "tokens": list(tokens),
        "num_timesteps": num_timesteps,
        "timestep_weight": train.timestep_weight.tolist(),
        "num_neurons": total,
        "neurons": neurons,
        "counts": decode(train)[:, neurons].cpu().tolist(),
        "spikes": [["".join(_MARKS[spike] for spike in row) for row in token] for token in spikes],
    }
