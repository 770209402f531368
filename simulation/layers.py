"""The layers of a model that lie on a chip: a layer with coarse rows is one of them, as its bands share cores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from ..chip import CoarseRows
from ..coding import decode
from ..coding.checks import fitted_to, train_of
from ..errors import InputError
from ..models import SpikeLinear, spiking_layers
from ..models.layers.coarse import twice_the_sums, upper_rows
from ..models.layers.graded_linear import GradedLinear, owner_of
from ..models.layers.observing import Step
from ..models.layers.rescale import group_counts
from ..models.layers.shared_input import extent_of


def layers_of(model: nn.Module) -> dict[str, SpikeLinear]:
    """Return the layers of a model that spike, by name; those with coarse rows as their own rows."""
    coarse = {id(level) for levels in coarse_of(model).values() for level in levels}
    return {owner_of(name): layer for name, layer in spiking_layers(model).items() if id(layer) not in coarse}


def coarse_of(model: nn.Module) -> dict[str, list[SpikeLinear]]:
    """Return the levels with coarse rows of each layer that has any, by its name, the fewest bits first."""
    return {name: module.upper for name, module in model.named_modules() if isinstance(module, GradedLinear)}


@dataclass
class Bands:
    """The steps of a layer with coarse rows, until those of a call are all there.

    Attributes:
        own: the layer's own rows.
        upper: levels with coarse rows.
        steps: of each of these, by the level's id.
    """

    own: SpikeLinear
    upper: Sequence[SpikeLinear]
    steps: dict[int, list[Step]] = field(default_factory=dict)

    @property
    def levels(self) -> list[SpikeLinear]:
        """All levels, that with the layer's own rows last."""
        return [*self.upper, self.own]

    def add(self, level: SpikeLinear, step: Step) -> Step | None:
        """Keep a step of a level; return the whole call as one step with the last of them, else None.

        Raises:
            InputError: the code loses counts in another way where a layer is encoded as a whole.
        """
        self.steps.setdefault(id(level), []).append(step)
        done = (sum(len(part.count) for part in self.steps.get(id(one), ())) == step.num_tokens for one in self.levels)
        if not all(done):
            return None
        *upper, own = (self.steps.pop(id(one)) for one in self.levels)
        return self._joined(own, upper)

    def _joined(self, own: list[Step], upper: list[list[Step]]) -> Step:
        """Return what the bands of a call were given and computed: one train, and sums in halves."""
        first, groups = own[0], self.own.group_size
        counts = [torch.cat([step.count for step in steps]) for steps in (own, *upper)]
        carried = [torch.cat([decode(step.train) for step in steps]) for steps in (own, *upper)]
        count = torch.stack(counts).sum(0, dtype=counts[0].dtype)
        train = train_of(*_encoder_for(self.own, count))
        if not torch.equal(decode(train), torch.stack(carried).sum(0, dtype=carried[0].dtype)):
            raise InputError(
                f"{self.own.where()}: expected a code that keeps a channel's spikes whatever others have, where small "
                f"counts read coarse rows; got {self.own.encoder!r}. Take another, or leave out coarse rows."
            )
        sums = [torch.cat([step.accumulation for step in steps]) for steps in (own, *upper)]
        joins = [
            (level.weight_bits, part, group_counts(band, groups))
            for level, part, band in zip(self.upper, sums[1:], carried[1:], strict=True)
        ]
        twice = twice_the_sums(sums[0], joins, self.own.weight_bits, self.own.minimum)
        threshold = torch.cat([step.threshold for step in own])
        return Step(count, train, twice, 0, first.num_tokens, first.x, threshold)


def _encoder_for(layer: SpikeLinear, count: Tensor) -> tuple:
    encoder, num_timesteps = fitted_to(layer.encoder, *extent_of(count))
    return encoder, count, num_timesteps


def coarse_rows(own: SpikeLinear, upper: Sequence[SpikeLinear], count: Tensor) -> list[CoarseRows]:
    """Return the coarse rows of a layer, and which channels of which tokens read them.

    Args:
        own: the layer's own rows.
        upper: levels with coarse rows, the fewest bits first.
        count: spike counts, integers [tokens, in_features].
    """
    found, below = [], -1
    magnitude = count.abs()
    for level in upper:
        up_to = level.neuron.up_to  # pyright: ignore[reportAttributeAccessIssue]
        read = (magnitude <= up_to) & (magnitude > below)
        rows = upper_rows(level.weight, level.weight_bits, own.weight_bits, own.minimum)
        found.append(CoarseRows(level.weight_bits, rows.t().contiguous().numpy(), read.numpy()))
        below = up_to
    return found


def rows_read(weight: np.ndarray, coarse: Sequence[CoarseRows], group_size: int) -> np.ndarray:
    """Return the sums of the rows that all channels read, of each token (or 1) and group: int64 [., groups, outputs].

    Args:
        weight: the layer's own rows, int8 [in_features, out_features].
        coarse: its coarse rows; if there are any, the result is in halves.
        group_size: input channels of a group.
    """
    starts = range(0, len(weight), group_size)
    if not coarse:
        return np.add.reduceat(weight, starts, axis=0, dtype=np.int64)[None]
    whole = ~np.logical_or.reduce([rows.read for rows in coarse])
    parts = [(whole, 2 * weight.astype(np.int64)), *((rows.read, rows.weight.astype(np.int64)) for rows in coarse)]
    groups = [slice(start, start + group_size) for start in starts]
    return np.stack([sum(read[:, g].astype(np.int64) @ rows[g] for read, rows in parts) for g in groups], 1)


def bands_of(model: nn.Module, layers: Mapping[str, SpikeLinear]) -> dict[str, Bands]:
    """Return what puts the steps of each layer with coarse rows together, by name; layers as of `layers_of`."""
    return {name: Bands(layers[name], upper) for name, upper in coarse_of(model).items()}
