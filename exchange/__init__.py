"""What other tools read: recordings as tables, nets as graphs of NIR."""

from .nir import NIRExport, run_stages, to_nir, to_nir_data
from .recordings import RECORDING_SUFFIXES, check_suffix, export, read_recording

__all__ = [
    "RECORDING_SUFFIXES",
    "NIRExport",
    "check_suffix",
    "export",
    "read_recording",
    "run_stages",
    "to_nir",
    "to_nir_data",
]
