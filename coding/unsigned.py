"""What the codes of spikes 0 and 1 share: a zero point lets them carry signed counts."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..errors import InputError
from .base import Encoder


@dataclass(frozen=True)
class UnsignedEncoder(Encoder):
    """A code of spikes 0 and 1: it unrolls count + zero_point, and the train remembers the zero point.

    A product with weights stays exact, since W (s - z) = W s - z * rowsum(W). The price is sparsity: a silent
    channel then fires the code of z.

    Attributes:
        zero_point: added to every count before it is unrolled; counts down to -zero_point fit.
    """

    zero_point: int = 0

    def __post_init__(self) -> None:
        if type(self.zero_point) is not int or self.zero_point < 0:
            raise InputError(f"{type(self).__name__}.zero_point: expected an integer >= 0, got {self.zero_point!r}.")

    def fitted(self, low: int, high: int) -> tuple[UnsignedEncoder, int]:
        """Return this code with the zero point -low (0 where no count is negative), and the timesteps for high."""
        suited = replace(self, zero_point=max(0, -low))
        return suited, suited.timesteps_for(max(high, 0))
