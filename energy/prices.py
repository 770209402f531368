"""Energies of operations by a table, with a list of the entries used and of what replaced missing ones."""

from __future__ import annotations

from dataclasses import dataclass, field

from .table import EnergyTable


@dataclass
class Prices:
    """Energies of a table under the names that the digital model asks for.

    Attributes:
        table: the energies.
        function_macs: FP32 MACs that an exponential, division or square root takes, where the table has no entry.
        used: entries that were asked for.
        notes: what replaced a missing entry.
    """

    table: EnergyTable
    function_macs: int
    used: dict[str, None] = field(default_factory=dict)
    notes: dict[str, None] = field(default_factory=dict)

    def of(self, operation: str) -> float:
        """Return the energy of an operation, in picojoules."""
        self.used[operation] = None
        return self.table[operation]

    def add(self, width: int) -> float:
        """Return the energy of an integer addition of 8, 16 or 32 bits."""
        if width == 16 and "int16_add" not in self.table:
            self.notes["16-bit additions cost as much as 32-bit ones, since the table has no entry"] = None
            return self.of("int32_add")
        return self.of(f"int{width}_add")

    def shift(self, width: int) -> float:
        """Return the energy of a shift of 8, 16 or 32 bits."""
        if f"int{width}_shift" in self.table:
            return self.of(f"int{width}_shift")
        self.notes["a shift costs as much as an addition of its width, since the table has no entry"] = None
        return self.add(width)

    def mac_fp32(self) -> float:
        """Return the energy of an FP32 multiplication and addition."""
        return self.of("fp32_mul") + self.of("fp32_add")

    def function(self, name: str) -> float:
        """Return the energy of an FP32 "exp", "div" or "sqrt"."""
        if f"fp32_{name}" in self.table:
            return self.of(f"fp32_{name}")
        if self.function_macs:
            what = f"an exponential, division or square root costs as much as {self.function_macs} FP32 MACs"
            self.notes[what] = None
        return self.function_macs * self.mac_fp32()

    def byte(self, memory: str) -> float:
        """Return the energy of a byte from a memory."""
        self.used[memory] = None
        return self.table.entry(memory).pj_per_byte
