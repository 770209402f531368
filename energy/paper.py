"""The estimate of the SpikingBrain report: one INT8 addition per spike, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..errors import InputError
from .base import EnergyModel
from .counts import OperationCounts
from .report import EnergyReport
from .table import EnergyTable, load_table


@dataclass(frozen=True)
class PaperEnergy(EnergyModel):
    """E per MAC = average_spikes * energy of an INT8 addition (eq. 24), against dense FP16 and INT8 MACs.

    With the report's 1.13 spikes this is 0.0339 pJ. The report rounds it to 0.034 before it goes on, hence its 85.2 %
    and 6.76x against INT8 (unrounded: 85.3 % and 6.78x); against FP16 it is 97.7 % and 44.2x, printed there as 43.48x,
    which is 1 / (1 - 0.977).

    Attributes:
        table: energies per operation; the report uses Horowitz' at 45 nm.

    Source:
        SpikingBrain (arXiv:2509.05276), section 5.5 and appendix C.2, eq. 24.
    """

    table: EnergyTable = field(default_factory=load_table)

    def estimate(self, counts: Mapping[str, OperationCounts]) -> EnergyReport:
        """Estimate the energy per MAC from the average spikes, and totals from the synaptic operations."""
        total = sum(counts.values(), OperationCounts())
        average_spikes = total.num_spikes / total.num_activations if total.num_activations else 0.0
        for operation in ("fp16_mac", "int8_mac"):
            if self.table[operation] == 0:
                raise InputError(f"energy table {self.table.name}: expected {operation} > 0 to compare with, got 0.")
        add, fp16_mac, int8_mac = self.table["int8_add"], self.table["fp16_mac"], self.table["int8_mac"]
        return EnergyReport(
            model="SpikingBrain report, eq. 24",
            average_spikes=average_spikes,
            fp16_mac_pj=fp16_mac,
            int8_mac_pj=int8_mac,
            spike_mac_pj=average_spikes * add,
            fp16_total_pj=total.num_macs * fp16_mac,
            int8_total_pj=total.num_macs * int8_mac,
            spike_total_pj=total.num_synops * add,
            by_layer_pj={name: layer.num_synops * add for name, layer in counts.items()},
            table=self.table,
            assumptions=(
                "every spike costs one INT8 addition per output, whatever its digit weighs",
                "energy per MAC averages over channels; totals weigh each layer by its outputs",
                "the dense layers it is compared with cost their arithmetic alone, too",
            ),
            left_out=(
                f"accumulators wider than 8 bits (an INT32 addition is {self.table['int32_add']} pJ)",
                "shifts for digit weights",
                "encoding: mean, division and rounding per token",
                "reading weights and activations, which decides the energy of real hardware",
                "routing, handshakes and leakage",
                "what stays dense: norms, attention, gates, embedding and output head",
            ),
        )
