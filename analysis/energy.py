"""Energy figures as reports hold them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ..energy import (
    DigitalEnergy,
    EnergyReport,
    ModelCounts,
    PaperEnergy,
    PaperReport,
    break_even,
    sensitivity,
    waterfall,
)
from ..energy.counts import PROJECTION, SCORES
from ..energy.energy_report import Parts, by_part

# What each kind of part is, in words; kinds with the same words are one.
_KINDS = {
    PROJECTION: "layers on spikes",
    "linear": "dense layers, the output head among them",
    SCORES: "attention: scores, on spikes",
    "softmax": "attention: all but scores on spikes",
    "gla": "linear attention",
    "branches": "linear attention",
    "gated-mlp": "activations of feed-forward parts",
    "rms-norm": "norms",
    "layer-norm": "norms",
    "moe": "choice and sums of experts",
    "experts": "choice and sums of experts",
}


def describe_energy(counts: ModelCounts, model: DigitalEnergy) -> dict[str, Any]:
    """Return all energy figures of a run: both models, the waterfall, break-even, sensitivity, and the counts.

    Args:
        counts: of the run.
        model: the digital model; eq. 24 is taken with its table.
    """
    groups = counts.grouped()
    spiking = [name for name, layer in groups.layers.items() if layer.kind == PROJECTION and layer.spiking.num_spikes]
    points = [break_even(groups, model, name) for name in spiking]
    return {
        "paper": _describe_paper(PaperEnergy(model.table).estimate(counts), model),
        "digital": _describe_digital(model.estimate(groups), model, groups),
        "waterfall": [
            {**dataclasses.asdict(s), "ratio_vs_int8": s.ratio_vs_int8, "ratio_vs_fp16": s.ratio_vs_fp16}
            for s in waterfall(counts, model)
        ],
        "break_even": [
            {
                "layer": p.layer,
                "spikes": p.spikes,
                "silent_fraction": p.silent_fraction,
                "even_spikes": p.even_spikes,
                "even_spikes_without_memory": p.even_spikes_without_memory,
                "even_silent_fraction": p.even_silent_fraction,
                "wins": p.wins,
            }
            for p in points
        ],
        "not_counted": {
            "parts": list(counts.unsupported),
            "share_of_macs": counts.uncounted_share,
            "sentence": counts.not_counted(),
        },
        "sensitivity": [dataclasses.asdict(s) for s in sensitivity(groups, model)],
        "counts": groups.to_dict(),
    }


def _describe_paper(energy: PaperReport, model: DigitalEnergy) -> dict[str, Any]:
    return {
        "average_spikes": energy.average_spikes,
        "fp16_mac_pj": energy.fp16_mac_pj,
        "int8_mac_pj": energy.int8_mac_pj,
        "spike_mac_pj": energy.spike_mac_pj,
        "saving_vs_fp16": energy.saving_vs_fp16,
        "saving_vs_int8": energy.saving_vs_int8,
        "ratio_vs_fp16": energy.ratio_vs_fp16,
        "ratio_vs_int8": energy.ratio_vs_int8,
        "fp16_total_pj": energy.fp16_total_pj,
        "int8_total_pj": energy.int8_total_pj,
        "spike_total_pj": energy.total_pj,
        "table": _describe_table(energy),
        "assumptions": list(energy.assumptions),
        "left_out": list(energy.left_out),
    }


def has_other_weights(digital: Mapping[str, Any]) -> bool:
    """Return whether a dense model with the same weights is another than the INT8 model.

    Args:
        digital: what `describe_energy` says of the digital model.
    """
    return digital["same_weights_total_pj"] != digital["int8_total_pj"]


def by_kind(layers: Mapping[str, Parts], counts: ModelCounts) -> dict[str, float]:
    """Return the energy of a system by kind of part, in words, the largest first.

    Args:
        layers: energy by layer and part, in picojoules.
        counts: that it was estimated from.
    """
    sums: dict[str, float] = {}
    for name, parts in layers.items():
        kind = counts.layers[name].kind if name in counts.layers else name  # leakage is of the whole chip
        words = _KINDS.get(kind, kind)
        sums[words] = sums.get(words, 0.0) + sum(parts.values(), 0.0)
    return dict(sorted(sums.items(), key=lambda pair: -pair[1]))


def _describe_digital(energy: EnergyReport, model: DigitalEnergy, counts: ModelCounts) -> dict[str, Any]:
    return {
        "model": energy.model,
        "options": list(model.describe()),
        "num_tokens": energy.num_tokens,
        "spiking_total_pj": energy.total_pj,
        "same_weights_total_pj": energy.same_weights_total_pj,
        "int8_total_pj": energy.int8_total_pj,
        "fp16_total_pj": energy.fp16_total_pj,
        "ratio_vs_same_weights": energy.ratio_vs_same_weights,
        "ratio_vs_int8": energy.ratio_vs_int8,
        "ratio_vs_fp16": energy.ratio_vs_fp16,
        **{f"{system}_parts_pj": by_part(layers) for system, layers in energy.systems.items()},
        "spiking_by_layer_pj": energy.by_layer_pj,
        **{f"{system}_by_kind_pj": by_kind(layers, counts) for system, layers in energy.systems.items()},
        "table": _describe_table(energy),
        "unverified": list(energy.unverified),
        "assumptions": list(energy.assumptions),
        "left_out": list(energy.left_out),
    }


def _describe_table(energy: EnergyReport) -> dict[str, str]:
    return {
        "name": energy.table,
        "version": energy.table_version,
        "process": energy.process,
        "source": energy.source,
    }
