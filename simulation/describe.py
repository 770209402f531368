"""A simulated model as JSON: totals, components, layers, and the source of each number of the chip."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import Any

from ..chip import COMPONENTS
from ..energy import load_table
from .model import ModelOnChip, assumptions_of
from .replay import LayerOnChip
from .times import time_by_kind


def describe_simulation(found: ModelOnChip) -> dict[str, Any]:
    """Return totals per token, energy by component and layer, time by kind, a row for each layer, and the chip."""
    n = found.num_tokens
    energy = found.energy_pj
    total = sum(energy.values())
    activity = found.activity
    num_spikes = sum(layer.num_spikes for layer in found.layers.values())
    # Of all tokens and layers.
    num_channels = sum(
        layer.activity.num_macs // layer.placement.cores[-1].outputs.stop for layer in found.layers.values()
    )
    cores = sum(len(placement.cores) for placement in found.placements.values())
    add_pj = load_table()["int8_add"]
    end_ps = int(found.end_ps[-1])
    half = n // 2  # the rate is that of the second half of the tokens
    steady_ps = end_ps - int(found.end_ps[half - 1]) if half else end_ps
    return {
        "chip": found.chip.name,
        "process": found.chip.process,
        "mode": found.mode,
        "num_tokens": n,
        "num_layers": len(found.placements),
        "idle_layers": list(found.idle),  # no token reached them
        "num_cores": {"mapped": cores, "chip": found.chip.num_cores},
        "token_s": {
            "mean": end_ps / n * 1e-12,
            "first": int(found.end_ps[0]) * 1e-12,
            "last": int(found.token_ps[-1]) * 1e-12,
        },
        "tokens_per_s": (n - half) / (steady_ps * 1e-12) if steady_ps else None,
        "energy_per_token_pj": {name: value / n for name, value in energy.items()} | {"total": total / n},
        "energy_per_mac_pj": {
            "simulated": total / activity.num_macs,
            "spiking layers without leakage and dense rest": (total - energy["leakage"] - energy["dense rest"])
            / activity.num_macs,
            "paper": num_spikes / num_channels * add_pj,
            "paper, weighed by outputs": activity.num_synops / activity.num_macs * add_pj,
        },
        "dense_rest_per_token_pj": dense_rest_of(found),
        "energy_report": found.energy_report().to_dict(),
        "components": {name: component.meaning for name, component in COMPONENTS.items()},
        "time_per_token_ps": time_by_kind(found),
        "activity": asdict(activity),
        "exactness": {
            "num_checked": sum(layer.num_sums for layer in found.layers.values()),
            "num_mismatches": sum(layer.num_mismatches for layer in found.layers.values()),
        },
        "layers": [_row(layer, found) for layer in found.layers.values()],
        "assumptions": list(assumptions_of(found.chip)),
        "unsupported": list(found.unsupported),
        "description": {
            key: {"value": found.chip.value(key), "process": p, "source": s}
            for key, (p, s) in found.chip.sources.items()
        },
    }


def dense_rest_of(found: ModelOnChip) -> dict[str, float]:
    """Return the energy of what stays dense, in pJ per token, the most first; like parts of all blocks are one.

    With the rescaling of sums, which belongs to the spiking layers, they add up to the component "dense rest".
    """
    parts: dict[str, float] = {}
    for name, activity in found.activities.items():
        kind = "rescaling" if name in found.layers else re.sub(r"\.\d+(?=\.|$)", ".*", name)
        energy = activity.energy_pj(found.chip)["dense rest"]
        parts[kind] = parts.get(kind, 0.0) + energy / found.num_tokens
    return dict(sorted(((kind, pj) for kind, pj in parts.items() if pj), key=lambda part: -part[1]))


def _row(layer: LayerOnChip, found: ModelOnChip) -> dict[str, Any]:
    energy = layer.activity.energy_pj(found.chip)
    queues = sorted(layer.queues.items(), key=lambda queue: -queue[1][0])
    links = sorted(layer.links.items(), key=lambda link: -link[1])
    cores = zip(layer.placement.cores, layer.busy.tolist(), strict=True)
    return {
        "name": layer.name,
        "num_cores": len(layer.placement.cores),
        "origin": layer.placement.origin,
        "num_tokens": layer.num_tokens,
        "latency_s": float(layer.latency_ps.sum()) / layer.num_tokens * 1e-12,
        "energy_per_token_pj": {name: value / found.num_tokens for name, value in energy.items()},
        "num_synops": layer.activity.num_synops,
        "busy": {"mean": float(layer.busy.mean()), "most": float(layer.busy.max())},
        "cores": [{"tile": core.tile, "busy": share} for core, share in cores],
        "queues": {  # fullest first
            name: {"tile": layer.tiles[name][0], "mean": mean, "most": most} for name, (mean, most) in queues
        },
        "links": dict(links),  # packets, most first
        "critical_path_ps": layer.critical_path_ps,
    }
