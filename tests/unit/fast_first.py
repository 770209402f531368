"""Parameters of a test of which the first stand for all: `make fast` runs these, and every whole run the others too."""

from collections.abc import Iterable
from typing import Any

import pytest


def fast_first(values: Iterable[Any], num_fast: int = 1) -> list[Any]:
    """Return parameters of a test or a fixture; those after the first are slow."""
    return [pytest.param(value, marks=[pytest.mark.slow] * (i >= num_fast)) for i, value in enumerate(values)]
