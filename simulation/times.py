"""What a token waits for, by kind of layer and between layers."""

from __future__ import annotations

import numpy as np

from .model import ModelOnChip
from .stages import Stage


def held_up_by(found: ModelOnChip) -> dict[str, dict[str, float]]:
    """Return the mean time of a token in ps, by kind of stage and of the station that held it up.

    Empty without critical paths, and in prefill, where the path of the last token is not that of the others.
    """
    parts: dict[str, dict[str, float]] = {}
    if found.mode != "decode":
        return parts
    for stage in found.stages:
        layers = [found.layers[name] for name in stage.layers]
        if layers and all(layer.critical_path_ps for layer in layers):
            slowest = max(layers, key=lambda layer: layer.latency_ps.sum())
            into = parts.setdefault(_kind_of(stage), {})
            for station, ps in slowest.critical_path_ps.items():
                into[station] = into.get(station, 0.0) + ps / found.num_tokens
    return parts


def _kind_of(stage: Stage) -> str:
    return " ".join(dict.fromkeys(name.rpartition(".")[2] for name in stage.layers))


def time_by_kind(found: ModelOnChip) -> dict[str, float]:
    """Return the mean time of a token in ps, by kind of stage, and between stages."""
    parts: dict[str, float] = {}
    for stage in found.stages:
        if stage.layers:
            slowest = np.max([found.layers[name].latency_ps for name in stage.layers], axis=0)
            kind = _kind_of(stage)
            parts[kind] = parts.get(kind, 0.0) + float(slowest.mean())
    parts["transfers"] = float(sum(stage.transfer_ps for stage in found.stages))
    parts["dense rest"] = float(sum(stage.rest_ps for stage in found.stages))
    return parts
