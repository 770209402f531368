"""Light training of converted models."""

from .distill import distill
from .planning import fit_steps
from .recipes import RECIPES, Recipe
from .sampling import WrittenText, sample_from, texts_at_once, writer_of
from .settings import DistillResult, DistillSettings, LossPoint, Stage
from .team import Team

__all__ = [
    "RECIPES",
    "DistillResult",
    "DistillSettings",
    "LossPoint",
    "Recipe",
    "Stage",
    "Team",
    "WrittenText",
    "distill",
    "fit_steps",
    "sample_from",
    "texts_at_once",
    "writer_of",
]
