"""Energy: a recording becomes operation counts, and a model turns those into joules."""

from .base import ENERGY_MODELS, EnergyModel
from .break_even import BreakEven, break_even
from .count import count_operations
from .counts import LayerCounts, ModelCounts, OperationCounts
from .digital import DigitalEnergy
from .energy_report import EnergyReport
from .measured import MeasuredEnergy, Meter, NvmlMeter, RaplMeter, measure_energy
from .neurobench import NeuroBenchCounts, neurobench_counts, neurobench_results
from .paper import PaperEnergy, PaperReport
from .recode import Recoded, as_run, recode
from .sensitivity import Sensitivity, sensitivity
from .synops import SynopEnergy
from .table import EnergyTable, TableEntry, load_table, table_names
from .waterfall import WaterfallStep, waterfall

__all__ = [
    "ENERGY_MODELS",
    "BreakEven",
    "DigitalEnergy",
    "EnergyModel",
    "EnergyReport",
    "EnergyTable",
    "LayerCounts",
    "MeasuredEnergy",
    "Meter",
    "ModelCounts",
    "NeuroBenchCounts",
    "NvmlMeter",
    "OperationCounts",
    "PaperEnergy",
    "PaperReport",
    "RaplMeter",
    "Recoded",
    "Sensitivity",
    "SynopEnergy",
    "TableEntry",
    "WaterfallStep",
    "as_run",
    "break_even",
    "count_operations",
    "load_table",
    "measure_energy",
    "neurobench_counts",
    "neurobench_results",
    "recode",
    "sensitivity",
    "table_names",
    "waterfall",
]
