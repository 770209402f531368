"""The result of an energy model: numbers together with what they rest on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .table import EnergyTable


@dataclass(frozen=True)
class EnergyReport:
    """Modelled energy of a spiking run, beside the dense layers it replaces. Nothing in it is measured.

    Attributes:
        model: which estimate this is, with its equation.
        average_spikes: spikes of either sign per channel and token; 0 where nothing was recorded.
        fp16_mac_pj: one MAC of a dense FP16 layer.
        int8_mac_pj: one MAC of a dense INT8 layer.
        spike_mac_pj: what takes the place of one MAC when the layer spikes.
        fp16_total_pj: all recorded layers and tokens, dense FP16.
        int8_total_pj: the same, dense INT8.
        spike_total_pj: the same, spiking; the sum of `by_layer_pj`.
        by_layer_pj: spiking energy per layer, by name.
        table: the energies per operation that were used.
        assumptions: what the estimate takes for granted.
        left_out: costs that it does not count.
    """

    model: str
    average_spikes: float
    fp16_mac_pj: float
    int8_mac_pj: float
    spike_mac_pj: float
    fp16_total_pj: float
    int8_total_pj: float
    spike_total_pj: float
    by_layer_pj: Mapping[str, float]
    table: EnergyTable
    assumptions: tuple[str, ...] = field(repr=False)
    left_out: tuple[str, ...] = field(repr=False)

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
