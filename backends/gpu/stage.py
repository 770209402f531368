"""Matrices that read the same input: what the kernels of mode `spike` run at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from ...neuro import NO_RULE, CountBounds, KernelRule
from .job import Matrix, Reads, cdiv, kind_of_counts, power_of_two
from .list import GIVEN

# Channels that a program reads at a time to find the threshold.
_MOST_BLOCK = 4096


class Stage(NamedTuple):
    """Matrices that read the same input, which becomes counts and lists once.

    Attributes:
        x: activations, or int32 counts where there is no rule; [tokens, inputs], or [tokens, 2 * inputs] where the
            source is GATED; contiguous.
        matrices: one to three; all or none have a bias, and the same counts read the same bits of them.
        y: filled with rescaled sums, or with int32 sums where there are no scales; [tokens, all outputs].
        rule: of the neuron that counts.
        bounds: of its counts.
        failed: as of `Job`.
        source: of the input: GIVEN, NORM or GATED of `list.py`.
        norm: weight of the norm and its eps, where the source is NORM.
        residual: whether the outputs are added to what is in y.
        seen: filled with the input, [tokens, inputs], or None; for checks.
    """

    x: Tensor
    matrices: tuple[Matrix, ...]
    y: Tensor
    rule: KernelRule = NO_RULE
    bounds: CountBounds | None = None
    failed: Tensor | None = None
    source: int = GIVEN.value
    norm: tuple[Tensor, float] | None = None
    residual: bool = False
    seen: Tensor | None = None

    @property
    def num_inputs(self) -> int:
        """Input channels of all matrices."""
        return self.matrices[0].weight.shape[1]

    @property
    def kind(self) -> str:
        """What the fastest launch settings depend on."""
        shapes = ", ".join(str(tuple(matrix.weight.shape)) for matrix in self.matrices)
        tokens = "" if len(self.x) == 1 else f", {power_of_two(len(self.x))} tokens"
        return f"{self.source} {shapes}, {self.x.dtype}{kind_of_counts(self.bounds, self.upper)}{tokens}"

    @property
    def upper(self) -> Reads:
        """Which counts read upper bits of their rows; see `Matrix`."""
        return self.matrices[0].upper

    def reading(self) -> dict[str, Any]:
        """Return how a kernel reads and counts the input: what they tell the compiler, by name."""
        block = min(power_of_two(self.num_inputs), _MOST_BLOCK)
        return {
            "RULE": self.rule.number,
            "SOURCE": self.source,
            "SEEN": self.seen is not None,
            "BLOCK": block,
            "BLOCKS": cdiv(self.num_inputs, block),
        }


def three(items: Sequence[Any]) -> list[Any]:
    """Return what up to three matrices have; a kernel with fewer does not look at the others."""
    return [*items, *[items[0]] * (3 - len(items))]
