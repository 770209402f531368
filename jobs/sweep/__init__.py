"""Many settings of one model, each run once: a grid or a search that survives whatever ends its process."""

from .objectives import OBJECTIVES
from .run import Swept, sweep
from .settings import METHODS, Range, SweepSettings
from .spec import read_options, read_spec

__all__ = ["METHODS", "OBJECTIVES", "Range", "SweepSettings", "Swept", "read_options", "read_spec", "sweep"]
