"""The contract of an energy model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from .counts import OperationCounts
from .report import EnergyReport


class EnergyModel(ABC):
    """Turns operation counts into energy. Zero counts give zero, and the layers' energies sum to the total."""

    @abstractmethod
    def estimate(self, counts: Mapping[str, OperationCounts]) -> EnergyReport:
        """Estimate the energy of the counted operations.

        Args:
            counts: operations per layer, by name, as `count_operations` returns them.
        """
