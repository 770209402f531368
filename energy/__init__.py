"""Energy: a recording becomes operation counts, and a model turns those into joules."""

from .base import EnergyModel
from .counts import OperationCounts, count_operations
from .paper import PaperEnergy
from .report import EnergyReport
from .table import EnergyTable, load_table

__all__ = [
    "EnergyModel",
    "EnergyReport",
    "EnergyTable",
    "OperationCounts",
    "PaperEnergy",
    "count_operations",
    "load_table",
]
