"""The queues of a layer in time: how many packets wait in each tile, step by step."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..chip import LayerSimulation

# Tokens that are cut into steps, and steps of a token.
_MOST_TOKENS, _STEPS = 4, 40


def queue_steps(simulation: LayerSimulation, layer: str) -> dict[str, Any]:
    """Return the mean number of waiting packets in each tile, for steps of equal length.

    Args:
        simulation: with a trace.
        layer: its name.
    Returns:
        JSON values: "layer"; "num_tokens" that are covered, from the first on; "begin_us" and "token" of each step;
        "tiles"; and "waiting", by step and tile, the means of the sums of all queues of the tile.
    """
    trace, tiles = simulation.outcome.trace, [start for start, _ in simulation.network.tiles]
    assert trace is not None
    ends = simulation.outcome.end_ps
    parts = len(ends) // len(simulation.end_ps)  # on a chip with a barrier, each timestep is a token of its own
    num_tokens = min(len(simulation.end_ps), _MOST_TOKENS)
    end_ps = max(int(ends[num_tokens * parts - 1]), 1)
    edges = np.linspace(0, end_ps, num_tokens * _STEPS + 1)
    known = sorted(set(tiles))
    place = np.array([known.index(tile) for tile in tiles])[trace.station]
    waiting = np.zeros((len(known), len(edges) - 1))
    for i in range(len(known)):
        here = place == i
        # What waited before a time is the sum of all that each packet waited before it.
        waited = _before(trace.entered_ps[here], edges) - _before(trace.taken_ps[here], edges)
        waiting[i] = np.diff(waited) / np.diff(edges)
    middles = (edges[:-1] + edges[1:]) / 2
    token = np.searchsorted(ends[parts - 1 :: parts][:num_tokens], middles).clip(0, num_tokens - 1)
    return {
        "layer": layer,
        "num_tokens": num_tokens,
        "begin_us": (edges[:-1] / 1e6).round(6).tolist(),
        "token": token.tolist(),
        "tiles": [list(tile) for tile in known],
        "waiting": waiting.T.round(3).tolist(),
    }


def _before(times: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Return for each edge the sum over times of max(edge - time, 0)."""
    ordered = np.sort(times)
    sums = np.concatenate([[0.0], np.cumsum(ordered, dtype=np.float64)])
    number = np.searchsorted(ordered, edges, side="right")
    return number * edges - sums[number]
