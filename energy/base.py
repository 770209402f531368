"""The contract of an energy model."""

from __future__ import annotations

from abc import ABC, abstractmethod

from ..registry import Registry
from .counts import ModelCounts
from .energy_report import EnergyReport

# In the `left_out` of models that know spiking layers only.
STAYS_DENSE = "what stays dense: norms, attention, gates, embedding and output head"


class EnergyModel(ABC):
    """Turns operation counts into energy. Zero counts give zero, and the layers' energies sum to the total."""

    @abstractmethod
    def estimate(self, counts: ModelCounts) -> EnergyReport:
        """Estimate the energy of the counted operations.

        Args:
            counts: what `count_operations` returns.
        """


ENERGY_MODELS: Registry[EnergyModel] = Registry("energy model", EnergyModel)
