"""Energy as neuromorphic chips publish it: per synaptic operation and neuron update."""

from __future__ import annotations

from dataclasses import dataclass, field

from .base import ENERGY_MODELS, STAYS_DENSE, EnergyModel
from .counts import ModelCounts
from .energy_report import EnergyReport, origin
from .table import EnergyTable, load_table


@ENERGY_MODELS.register("synops")
@dataclass(frozen=True)
class SynopEnergy(EnergyModel):
    """E = synaptic operations * energy of one + output neurons of each token * energy of an update, where published.

    Such energies are whole: weights, routing and control of that chip are inside. There is no dense model to compare
    with, since the chips have none. What stays dense is left out.

    Attributes:
        table: of a chip, with the entry "synop" and, if it is published, "neuron_update".
    """

    table: EnergyTable = field(default_factory=lambda: load_table("loihi_14nm"))

    def __post_init__(self) -> None:
        object.__setattr__(self, "table", load_table(self.table))

    def estimate(self, counts: ModelCounts) -> EnergyReport:
        """Estimate the energy of the layers that spike, and of the scores of attention on counts."""
        has_update = "neuron_update" in self.table
        layers = {}
        for name, layer in counts.on_spikes().items():
            # One conversion per output and group of weight scales, or score: the neuron that receives the sum.
            updates = layer.spiking.num_rescale_convert
            layers[name] = {"synaptic operations": layer.spiking.num_synops * self.table["synop"]}
            if has_update:
                layers[name]["neuron updates"] = updates * self.table["neuron_update"]
        used = ("synop", "neuron_update") if has_update else ("synop",)
        return EnergyReport(
            model="synaptic operations and neuron updates of a chip",
            layers=layers,
            **origin(counts, self.table, used),
            assumptions=("a synaptic operation costs the same whatever the digit of its spike weighs",),
            left_out=(
                STAYS_DENSE,
                "encoding and rescaling",
                *(() if has_update else ("neuron updates, for which the table has no energy",)),
                "idle power",
            ),
        )
