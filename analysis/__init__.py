"""Analysis: numbers first, plots second."""

from .exactness import ExactnessCheck
from .histogram import plot_histogram
from .perplexity import Perplexity, measure_perplexity, split_windows
from .raster import plot_raster
from .report import ReportSettings, run_report
from .stats import DEFINITIONS, SpikeStatistics, merged_histogram, spike_statistics, spikes_in_code

__all__ = [
    "DEFINITIONS",
    "ExactnessCheck",
    "Perplexity",
    "ReportSettings",
    "SpikeStatistics",
    "measure_perplexity",
    "merged_histogram",
    "plot_histogram",
    "plot_raster",
    "run_report",
    "spike_statistics",
    "spikes_in_code",
    "split_windows",
]
