"""What other tools read: recordings as tables, nets as graphs of NIR, timelines for Perfetto."""

from .nir import NIRExport, run_stages, to_nir, to_nir_data
from .recordings import RECORDING_SUFFIXES, check_suffix, export, read_recording
from .timelines import write_chip_timeline, write_recording_timeline
from .trace_file import TRACE_SUFFIX, require_perfetto

__all__ = [
    "RECORDING_SUFFIXES",
    "TRACE_SUFFIX",
    "NIRExport",
    "check_suffix",
    "export",
    "read_recording",
    "require_perfetto",
    "run_stages",
    "to_nir",
    "to_nir_data",
    "write_chip_timeline",
    "write_recording_timeline",
]
