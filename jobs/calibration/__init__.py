"""Finding how each layer should spike so that a budget is kept at the least loss; `run.calibrate` is the job."""

from .run import Budget, Calibrated, CalibrateSettings, calibrate, calibration_of

__all__ = ["Budget", "CalibrateSettings", "Calibrated", "calibrate", "calibration_of"]
