"""What the commands do, for callers in Python."""

from .report import ReportSettings, run_report

__all__ = ["ReportSettings", "run_report"]
