"""What the lossy codes share: trains whose value comes near the count, in a range that depends on the step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..errors import InputError
from .base import Encoder


@dataclass(frozen=True)
class LossyEncoder(Encoder):
    """A code of the field whose train does not always carry the count: for comparisons, never for exact sums.

    Silent channels stay silent in all of them, and the sign of a count is the sign of its spikes. Where sums have to be
    those of the counts, it is refused.

    Attributes:
        step: the counts that one unit of the code stands for; larger steps give fewer spikes or timesteps.
    """

    lossy: ClassVar[bool] = True
    step: int = 1

    def __post_init__(self) -> None:
        if type(self.step) is not int or self.step < 1:
            raise InputError(f"{type(self).__name__}.step: expected an integer >= 1, got {self.step!r}.")


def units(max_count: int, step: int) -> int:
    """Return how many units of a code hold a count: max_count / step, rounded up."""
    return -(-max_count // step)
