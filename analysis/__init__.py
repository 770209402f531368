"""Analysis: numbers first, plots second.

Matplotlib is imported with the first plot: it wants a folder that can be written, which a container may not have.
"""

from typing import TYPE_CHECKING

from ..lazy import exports

if TYPE_CHECKING:
    from .chip_plots import plot_chip_energy, plot_chip_time, plot_mesh
    from .energy_plots import plot_break_even, plot_waterfall
    from .histogram import plot_histogram
    from .losses import plot_losses
    from .pareto_plot import plot_pareto
    from .raster_plot import plot_raster
    from .rasters import Raster, raster
from .exactness import ExactnessCheck
from .mixtures import MixtureStatistics, mixture_statistics
from .pareto import pareto_front
from .perplexity import measure_perplexity, split_windows, window_nlls
from .stats import (
    DEFINITIONS,
    LABELS,
    CodeStatistics,
    SpikeStatistics,
    code_statistics,
    merged_histogram,
    spike_statistics,
)

__all__ = [
    "DEFINITIONS",
    "LABELS",
    "CodeStatistics",
    "ExactnessCheck",
    "MixtureStatistics",
    "Raster",
    "SpikeStatistics",
    "code_statistics",
    "measure_perplexity",
    "merged_histogram",
    "mixture_statistics",
    "pareto_front",
    "plot_break_even",
    "plot_chip_energy",
    "plot_chip_time",
    "plot_histogram",
    "plot_losses",
    "plot_mesh",
    "plot_pareto",
    "plot_raster",
    "plot_waterfall",
    "raster",
    "spike_statistics",
    "split_windows",
    "window_nlls",
]

_PLOTS = {
    "chip_plots": ("plot_chip_energy", "plot_chip_time", "plot_mesh"),
    "energy_plots": ("plot_break_even", "plot_waterfall"),
    "histogram": ("plot_histogram",),
    "losses": ("plot_losses",),
    "pareto_plot": ("plot_pareto",),
    "raster_plot": ("plot_raster",),
    "rasters": ("Raster", "raster"),
}


__getattr__, __dir__ = exports(__name__, _PLOTS)
