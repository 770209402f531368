"""Finding how each layer should spike so that a budget is kept at the least loss; `run.calibrate` is the job."""

from .run import Budget, Calibrated, CalibrateSettings, calibrate

__all__ = ["Budget", "CalibrateSettings", "Calibrated", "calibrate"]
