"""The components of a chip's energy. To add one, add a record here, and its keys to `parts.py` and the presets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .description import Description

if TYPE_CHECKING:
    from .activity import Activity

# 1 mW for 1 ps is 1e-15 J.
_PJ_PER_UNIT = {"_pj": 1, "_mw": 1e-3}


@dataclass(frozen=True)
class Component:
    """A part of the energy: a sum of terms, each a count of `Activity` times values of the chip.

    Attributes:
        name: of the component.
        meaning: what it covers, for reports.
        terms: a count and the keys of its factors, such as ("num_synops", "core.add_pj"). The last key is an energy
            (_pj), or a power (_mw) if the count is a time in picoseconds.
    """

    name: str
    meaning: str
    terms: tuple[tuple[str, ...], ...]

    def energy_pj(self, activity: Activity, chip: Description) -> float:
        """Return the energy of what a chip did, in picojoules."""
        energy = 0.0
        for count, *keys in self.terms:
            product = getattr(activity, count)
            for key in keys:
                product *= chip.value(key)
            energy += product * _PJ_PER_UNIT[keys[-1][-3:]]
        return energy


COMPONENTS: dict[str, Component] = {
    component.name: component
    for component in (
        Component(
            "compute",
            "additions and shifts of weights, partial sums included",
            (
                ("num_synops", "core.add_pj"),
                ("num_shifts", "core.shift_pj"),
                ("num_partial_adds", "core.partial_add_pj"),
            ),
        ),
        Component(
            "accumulators",
            "sums read and written",
            (("num_updates", "core.accumulator_pj"), ("num_register_updates", "core.register_pj")),
        ),
        Component(
            "weight reads",
            "weights read, in blocks",
            (("num_sram_blocks", "core.access_pj"), ("num_dram_blocks", "dram.block_pj")),
        ),
        Component(
            "routing",
            "packets on links",
            (("num_east_west", "link.east_west_pj"), ("num_north_south", "link.north_south_pj")),
        ),
        Component(
            "packets",
            "packets sent and received by cores",
            (("num_sent", "core.send_pj"), ("num_received", "core.receive_pj")),
        ),
        Component(
            "handshakes",
            "request and acknowledge from stage to stage",
            (("num_handshakes", "handshake.phases", "handshake.transition_pj"),),
        ),
        Component(
            "encoding",
            "mean |x|, threshold, rounding, spikes",
            (
                ("num_means", "encoder.mean_pj"),
                ("num_thresholds", "encoder.threshold_pj"),
                ("num_rounded", "encoder.round_pj"),
                ("num_spikes", "encoder.spike_pj"),
                ("num_accesses", "encoder.access_pj"),
                ("num_updated", "encoder.update_pj"),
            ),
        ),
        Component(
            "dense rest",
            "rescaling, and norms, softmax, gates, attention where they are simulated",
            (
                ("num_adds", "digital.add_pj"),
                ("num_multiplies", "digital.multiply_pj"),
                ("num_exponentials", "digital.exponential_pj"),
                ("num_divisions", "digital.divide_pj"),
                ("num_square_roots", "digital.square_root_pj"),
                ("num_integer_macs", "digital.integer_mac_pj"),
                ("num_bytes", "digital.byte_pj"),
            ),
        ),
        Component(
            "leakage",
            "power of idle transistors, for the time that the simulation takes, and waking cores that slept",
            (
                ("leaking_core_ps", "core.leakage_mw"),
                ("sleeping_core_ps", "core.sleep_share", "core.leakage_mw"),
                ("off_core_ps", "core.off_share", "core.leakage_mw"),
                ("num_wakes", "core.wake_pj"),
            ),
        ),
    )
}
