"""How the weights of a layer lie in a core: their width, and what groups of input channels have besides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import InputError


@dataclass(frozen=True)
class Weights:
    """W = integer * scale + minimum, as `models.layers.quantize.QuantizedWeight` has them.

    A layer without groups has one scale an output, by which its sums are multiplied at home. A layer in groups has one
    for each output and group: a core holds whole groups with their scales and minima, and rescales the exact sums of a
    group when the next one begins (see `network.py`).

    Attributes:
        bits: width of a weight, 8, 4 or 2.
        group_size: adjacent input channels that share a scale; None for all. The last group may be smaller.
        parameter_bits: memory for the scale and the minimum of a group and output; 0 without groups.
        has_minimum: whether integer 0 stands for a minimum other than 0.
    Raises:
        InputError: a value is out of range, or parameters come without groups.
    """

    bits: int = 8
    group_size: int | None = None
    parameter_bits: int = 0
    has_minimum: bool = False

    def __post_init__(self) -> None:
        if self.bits not in (8, 4, 2):
            raise InputError(f"Weights.bits: expected 8, 4 or 2, got {self.bits!r}.")
        if self.group_size is not None and (type(self.group_size) is not int or self.group_size < 1):
            raise InputError(f"Weights.group_size: expected None or an integer >= 1, got {self.group_size!r}.")
        if self.parameter_bits < 0 or (self.group_size is None and self.parameter_bits):
            raise InputError(
                f"Weights.parameter_bits: expected 0 or more, and 0 without groups, got {self.parameter_bits!r} with "
                f"group_size={self.group_size}. One scale an output is kept at home."
            )

    @property
    def in_groups(self) -> bool:
        """Whether cores rescale sums group by group."""
        return self.group_size is not None

    @property
    def multiplies(self) -> int:
        """Products for a sum: with the scale, and of the minimum with the sum of counts."""
        return 1 + self.has_minimum

    @property
    def additions(self) -> int:
        """Floating-point additions for the sum of a group: to those before it, and of the minimum's product."""
        return self.in_groups + self.has_minimum

    def num_groups(self, num_inputs: int) -> int:
        """Return the groups of some input channels, from the begin of a group on."""
        return 1 if self.group_size is None else -(-num_inputs // self.group_size)

    def bits_of_output(self, num_inputs: int) -> int:
        """Return the memory for an output's weights of some inputs, from the begin of a group on, in bits."""
        return num_inputs * self.bits + self.num_groups(num_inputs) * self.parameter_bits

    def num_bytes(self, num_inputs: int, num_outputs: int) -> int:
        """Return the memory for the weights of a core."""
        return -(-self.bits_of_output(num_inputs) * num_outputs // 8)

    def check(self, weight: np.ndarray) -> None:
        """Raise an InputError if integers do not fit their width."""
        least, most = (0, 2**self.bits - 1) if self.has_minimum else (-(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1)
        if self.bits < 8 and weight.size and not (least <= weight.min() and weight.max() <= most):
            raise InputError(
                f"simulate_layer: expected weights of {self.bits} bits, {least} to {most}, got {weight.min()} to "
                f"{weight.max()}. Place the layer with the width that they have."
            )

    def groups_in(self, order: np.ndarray) -> np.ndarray:
        """Return the group of each run of `group_size` positions, if channels lie in some order.

        Raises:
            InputError: the order takes a group apart.
        """
        if self.group_size is None:
            return np.zeros(1, np.int64)
        group = order // self.group_size
        first = group[:: self.group_size]
        if not np.array_equal(first.repeat(self.group_size)[: len(order)], group):
            raise InputError(
                f"order: expected the {self.group_size} channels of a group beside each other, which share scales, got "
                "an order that mixes groups. Weights.whole_groups makes one that does not."
            )
        return first

    def whole_groups(self, order: np.ndarray) -> np.ndarray:
        """Return an order with whole groups: the group whose channels come first on average, then the next.

        Within a group channels keep their order. A last group that is smaller stays last.
        """
        if self.group_size is None:
            return order
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        group = np.arange(len(order)) // self.group_size
        mean = np.bincount(group, weights=place) / np.bincount(group)
        if len(order) % self.group_size:
            mean[-1] = np.inf
        return np.lexsort((place, group, mean[group]))


# A byte a weight, and one scale an output.
BYTES = Weights()

# Which rows are read where there are no coarse ones: of `with_coarse`.
OWN_ROWS = np.zeros((1, 1), np.int64)


@dataclass(frozen=True)
class CoarseRows:
    """The upper bits of a layer's rows, which some packets read in the place of whole rows.

    A core keeps these bits of all its rows by themselves (a plane), and the other bits apart. The upper bits stand for
    the middle of all integers that have them, which may be half a unit: a layer with coarse rows adds in halves.

    Attributes:
        bits: width, less than that of the layer's own rows.
        weight: what these bits add, in halves of the own rows' unit: int16 [in_features, out_features].
        read: which channels of which tokens read them, bool [tokens, in_features]; no two kinds the same.
    """

    bits: int
    weight: np.ndarray
    read: np.ndarray


def with_coarse(
    weight: np.ndarray, bits: int, coarse: Sequence[CoarseRows], num_tokens: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return all rows that packets may add, one kind below the other, and which kind each channel of a token reads.

    Args:
        weight: the layer's own rows, int8 [in_features, out_features].
        bits: width of these.
        coarse: its coarse rows; if there are any, all rows are in halves.
        num_tokens: tokens of the layer.
    Returns:
        Rows [kinds * in_features, out_features] and kinds [tokens, in_features], 0 for the own rows; [1, 1] without
        coarse rows.
    Raises:
        InputError: shapes, a width or a dtype do not fit, or a channel reads two kinds.
    """
    if not coarse:
        return weight, OWN_ROWS
    kind = np.zeros((num_tokens, len(weight)), np.int64)
    for number, rows in enumerate(coarse, 1):
        if rows.weight.shape != weight.shape or rows.read.shape != kind.shape:
            raise InputError(
                f"CoarseRows: expected weights {weight.shape} and read {kind.shape}, as the layer and its tokens are, "
                f"got {rows.weight.shape} and {rows.read.shape}."
            )
        if not 0 < rows.bits < bits or rows.weight.dtype != np.int16:
            raise InputError(
                f"CoarseRows: expected int16 rows of 1 to {bits - 1} bits, fewer than the layer's own, got "
                f"{rows.weight.dtype} of {rows.bits!r}."
            )
        if rows.read.dtype != np.bool_:
            raise InputError(f"CoarseRows.read: expected bool, got {rows.read.dtype}.")
        if (rows.read & (kind > 0)).any():
            raise InputError("CoarseRows.read: expected channels that read one kind of rows each, got some with two.")
        kind[rows.read] = number
    return np.concatenate([2 * weight.astype(np.int16), *(rows.weight for rows in coarse)]), kind
