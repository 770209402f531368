"""What the commands do, for callers in Python: a job takes settings, returns what it found, and prints nothing.

A job may say what happens while it runs: give it an object with the methods of `Progress`.
"""

from .calibration import Budget, Calibrated, CalibrateSettings, calibrate
from .convert import Converted, ConvertSettings, convert
from .distill import Distilled, DistillRun, distill, distill_in_parallel
from .doctor import examine
from .energy import EnergyEstimate, EnergySettings, energy, energy_model
from .eval import EvalSettings, evaluate
from .export import Exported, ExportSettings, export
from .generate import Generated, GenerateSettings, SpikesWritten, generate, generate_in_parallel
from .progress import Progress, Silent
from .raster import Drawn, RasterSettings, raster
from .report import ReportSettings, report
from .simulate import Simulated, SimulateSettings, simulate
from .sweep import SweepSettings, Swept, sweep
from .tutorial import copy_tutorial, open_tutorial

__all__ = [
    "Budget",
    "CalibrateSettings",
    "Calibrated",
    "ConvertSettings",
    "Converted",
    "DistillRun",
    "Distilled",
    "Drawn",
    "EnergyEstimate",
    "EnergySettings",
    "EvalSettings",
    "ExportSettings",
    "Exported",
    "GenerateSettings",
    "Generated",
    "Progress",
    "RasterSettings",
    "ReportSettings",
    "Silent",
    "SimulateSettings",
    "Simulated",
    "SpikesWritten",
    "SweepSettings",
    "Swept",
    "calibrate",
    "convert",
    "copy_tutorial",
    "distill",
    "distill_in_parallel",
    "energy",
    "energy_model",
    "evaluate",
    "examine",
    "export",
    "generate",
    "generate_in_parallel",
    "open_tutorial",
    "raster",
    "report",
    "simulate",
    "sweep",
]
