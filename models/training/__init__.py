"""Light training of converted models."""

from .distill import distill
from .planning import fit_steps
from .sampling import sample_from
from .settings import DistillResult, DistillSettings, LossPoint, Stage

__all__ = ["DistillResult", "DistillSettings", "LossPoint", "Stage", "distill", "fit_steps", "sample_from"]
