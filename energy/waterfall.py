"""From the paper's ratio to the full one, one cost at a time."""

from __future__ import annotations

from dataclasses import dataclass

from .counts import ModelCounts
from .digital import DigitalEnergy
from .energy_report import by_part, ratio
from .paper import PaperEnergy


@dataclass(frozen=True)
class WaterfallStep:
    """Energies of the models with this cost and all costs before it.

    Attributes:
        name: of the cost.
        spiking_pj: energy of the spiking model so far.
        int8_pj: of the dense INT8 one.
        fp16_pj: of the dense FP16 one.
    """

    name: str
    spiking_pj: float
    int8_pj: float
    fp16_pj: float

    @property
    def ratio_vs_int8(self) -> float | None:
        """INT8 energy over the spiking one; None if either is 0."""
        return ratio(self.int8_pj, self.spiking_pj)

    @property
    def ratio_vs_fp16(self) -> float | None:
        """FP16 energy over the spiking one; None if either is 0."""
        return ratio(self.fp16_pj, self.spiking_pj)


# Costs in the order in which they are added: name, parts, and the systems that get them at this step.
_DENSE = ("int8", "fp16")
_ALL = ("spiking", *_DENSE)
_COSTS = (
    ("each layer weighed by its outputs", ("additions",), _ALL),
    ("sums as wide as they must be: spiking", ("accumulator",), ("spiking",)),
    ("wide sums for INT8 and FP16, too", ("accumulator",), _DENSE),
    ("shifts for digits", ("shifts",), _ALL),
    ("encoding and rescaling", ("encode", "rescale"), _ALL),
    ("reading weights", ("weights",), _ALL),
    ("reading and writing activations", ("activations",), _ALL),
    ("what stays dense", ("rest arithmetic", "rest memory"), _ALL),
    ("leakage", ("leakage",), _ALL),
)


def waterfall(counts: ModelCounts, model: DigitalEnergy) -> tuple[WaterfallStep, ...]:
    """Return the energies as costs are added; the first step is eq. 24, the last is what `model` estimates.

    Eq. 24 averages spikes over channels and ignores how many outputs they reach. The second step counts synaptic
    operations, which weighs each layer by its outputs.

    Args:
        counts: what ran.
        model: the full estimate.
    """
    paper = PaperEnergy(model.table).estimate(counts)
    report = model.estimate(counts)
    parts = {system: by_part(report.systems[system]) for system in _ALL}
    name = "the paper's estimate (additions only)"
    macs = paper.num_macs
    steps = [WaterfallStep(name, paper.spike_mac_pj * macs, paper.int8_mac_pj * macs, paper.fp16_mac_pj * macs)]
    sums: dict[str, float] = dict.fromkeys(_ALL, 0.0)
    for name, added, systems in _COSTS:
        if name == "leakage" and not model.leakage_w:
            continue
        for system in systems:
            sums[system] += sum(parts[system].get(part, 0.0) for part in added)
        if name == "reading weights":
            name = f"reading weights, per {model.reads_per}"  # noqa: PLW2901
        steps.append(WaterfallStep(name, sums["spiking"], sums["int8"], sums["fp16"]))
    return tuple(steps)
