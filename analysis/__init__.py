"""Analysis: numbers first, plots second."""

from .energy_plots import plot_break_even, plot_waterfall
from .exactness import ExactnessCheck
from .histogram import plot_histogram
from .losses import plot_losses
from .perplexity import measure_perplexity, split_windows, window_nlls
from .raster import plot_raster
from .stats import DEFINITIONS, CodeStatistics, SpikeStatistics, code_statistics, merged_histogram, spike_statistics

__all__ = [
    "DEFINITIONS",
    "CodeStatistics",
    "ExactnessCheck",
    "SpikeStatistics",
    "code_statistics",
    "measure_perplexity",
    "merged_histogram",
    "plot_break_even",
    "plot_histogram",
    "plot_losses",
    "plot_raster",
    "plot_waterfall",
    "spike_statistics",
    "split_windows",
    "window_nlls",
]
