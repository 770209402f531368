"""The estimate of the SpikingBrain report: one INT8 addition per spike, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..errors import InputError
from .base import ENERGY_MODELS, STAYS_DENSE, EnergyModel
from .counts import ON_SPIKES, ModelCounts
from .energy_report import EnergyReport, origin
from .table import EnergyTable, load_table


@dataclass(frozen=True, repr=False)
class PaperReport(EnergyReport):
    """What eq. 24 gives, also per MAC; of the layers that spike only, and the scores of attention on counts.

    Attributes:
        average_spikes: spikes of either sign per channel and token; 0 where nothing was recorded.
        fp16_mac_pj: one MAC of a dense FP16 layer.
        int8_mac_pj: one MAC of a dense INT8 layer.
        spike_mac_pj: what takes the place of one MAC when the layer spikes.
    """

    average_spikes: float = 0.0
    fp16_mac_pj: float = 0.0
    int8_mac_pj: float = 0.0
    spike_mac_pj: float = 0.0

    @property
    def saving_vs_fp16(self) -> float:
        """Share of the FP16 energy per MAC that spiking saves; negative if it costs more."""
        return 1 - self.spike_mac_pj / self.fp16_mac_pj

    @property
    def saving_vs_int8(self) -> float:
        """Share of the INT8 energy per MAC that spiking saves; negative if it costs more."""
        return 1 - self.spike_mac_pj / self.int8_mac_pj

    @property
    def ratio_vs_fp16(self) -> float | None:
        """FP16 energy per MAC over the spiking one; None without spikes."""
        return self.fp16_mac_pj / self.spike_mac_pj if self.spike_mac_pj else None

    @property
    def ratio_vs_int8(self) -> float | None:
        """INT8 energy per MAC over the spiking one; None without spikes."""
        return self.int8_mac_pj / self.spike_mac_pj if self.spike_mac_pj else None

    def __add__(self, other: EnergyReport) -> EnergyReport:
        raise InputError("PaperReport: averages don't add. Add the counts and estimate again.")


@ENERGY_MODELS.register("paper")
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

    def __post_init__(self) -> None:
        object.__setattr__(self, "table", load_table(self.table))

    def estimate(self, counts: ModelCounts) -> PaperReport:
        """Estimate the energy per MAC from the average spikes, and totals from the synaptic operations."""
        for operation in ("fp16_mac", "int8_mac"):
            if self.table[operation] == 0:
                raise InputError(f"energy table {self.table.name}: expected {operation} > 0 to compare with, got 0.")
        add, fp16_mac, int8_mac = self.table["int8_add"], self.table["fp16_mac"], self.table["int8_mac"]
        layers, total = counts.on_spikes(), counts.total("spiking", kind=ON_SPIKES)
        average_spikes = total.num_spikes / total.num_activations if total.num_activations else 0.0
        used = ("int8_add", "fp16_mac", "int8_mac")
        wide = f" (an INT32 addition is {self.table['int32_add']} pJ)" if "int32_add" in self.table else ""
        return PaperReport(
            model="the paper's estimate (additions only)",
            layers={name: {"additions": layer.spiking.num_synops * add} for name, layer in layers.items()},
            int8_layers={name: {"additions": layer.int8.num_macs * int8_mac} for name, layer in layers.items()},
            fp16_layers={name: {"additions": layer.fp16.num_macs * fp16_mac} for name, layer in layers.items()},
            **origin(counts, self.table, used),
            average_spikes=average_spikes,
            fp16_mac_pj=fp16_mac,
            int8_mac_pj=int8_mac,
            spike_mac_pj=average_spikes * add,
            assumptions=(
                "every spike costs one INT8 addition per output, whatever its digit weighs",
                "energy per MAC averages over channels; totals weigh each layer by its outputs",
                "the dense layers it is compared with cost their arithmetic alone, too",
            ),
            left_out=(
                f"accumulators wider than 8 bits{wide}",
                "shifts for digit weights",
                "encoding: mean, division and rounding per token",
                "reading weights and activations, which decides the energy of real hardware",
                "routing, handshakes and leakage",
                STAYS_DENSE,
            ),
        )
