"""A spiking linear layer whose precision follows the count: small counts read coarse rows of weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...errors import InputError
from ...neuro import AdaptiveThreshold, Band, Neuron
from .coarse import Coarse, check_coarse, check_fewer_bits, coarser, use_upper_bits
from .graphs import outside_graph
from .quantize import QuantizedWeight
from .spike_linear import SpikeLinear
from .transforms import is_compiling, is_recorded

# Between the name of a layer and the number of one of its levels.
_LEVELS = ".levels."


class GradedLinear(nn.Module):
    """y = threshold * scale * (sum over levels of (W count)) + bias, each level on the counts of a band of magnitudes.

    A small count carries little of the activation, so it needs few bits of its weights; most counts are small, and
    reading is what costs. A channel with |count| <= up_to reads its row of `bits` bits, any larger count the layer's
    own row, and a silent channel none: each channel reads one row at most. A level is a `SpikeLinear` whose neuron is a
    `Band`, so its sums are exact integers on every backend.

    Coarse rows are upper bits of the layer's own rows (see `coarser`). So the levels' sums are added as integers and
    rescaled once, as if each channel had added its integer, or the middle of those with its upper bits.

    Gradients pass the layer's own rows.

    Args:
        levels: as `from_quantized` makes them, from the coarsest to the layer's own rows, which may have a bias; their
            neurons are bands that follow one another, of the same neuron.

    Source:
        Bits by magnitude of the activation: GRINQH (arXiv:2606.23419).
    """

    def __init__(self, levels: Sequence[nn.Module]) -> None:
        super().__init__()
        self.levels = nn.ModuleList(levels)
        self._checked: tuple[Any, ...] = ()  # neurons that were found to be bands of one

    @classmethod
    def from_quantized(
        cls,
        quantized: QuantizedWeight,
        coarse: Coarse,
        bias: Tensor | None = None,
        *,
        neuron: Neuron | None = None,
        name: str = "",
        **settings: Any,
    ) -> GradedLinear:
        """Return a layer with coarse rows made from weights in integers.

        Args:
            quantized: the layer's own rows.
            coarse: pairs (bits, up_to), both rising, of fewer bits than the layer's own rows use.
            bias: as for `SpikeLinear`.
            neuron: that is divided into bands.
            name: of the layer in its model.
            settings: encoder and backend, as for `SpikeLinear`.
        Raises:
            InputError: the pairs are not as they must be.
        """
        check_coarse(coarse, f"{name or 'GradedLinear'}.coarse")
        check_fewer_bits(coarse, quantized.weight_bits, f"{name or 'GradedLinear'}.coarse")
        if not use_upper_bits(quantized):
            raise InputError(
                f"{name or 'GradedLinear'}.coarse: expected 8-bit weights that use upper bits, got none beyond 63, "
                'as some files have. Leave it out for this layer, or round its weights anew: weights="int4" or "int8".'
            )
        whole = AdaptiveThreshold() if neuron is None else neuron
        edges = [0, *(up_to for _, up_to in coarse), None]
        rows = [coarser(quantized, bits) for bits, _ in coarse]
        levels = [
            SpikeLinear.from_quantized(
                weights,
                bias if weights is quantized else None,
                neuron=Band(whole, above, up_to),
                name=f"{name}.levels.{i}",
                **settings,
            )
            for i, (weights, (above, up_to)) in enumerate(zip([*rows, quantized], pairwise(edges), strict=True))
        ]
        return cls(levels)

    @property
    def own(self) -> SpikeLinear:
        """The level with the layer's own rows, which large counts read."""
        return self.levels[-1]  # pyright: ignore[reportReturnType]

    @property
    def upper(self) -> list[SpikeLinear]:
        """The levels with coarse rows, which are upper bits of the layer's own."""
        return list(self.levels[:-1])  # pyright: ignore[reportReturnType]

    @property
    def reads(self) -> tuple[tuple[int, int], ...]:
        """Which counts read upper bits, as backends take it; see `Backend.knows_upper_bits`."""
        return self.own.reads(self.upper)

    @property
    def in_features(self) -> int:
        """Input channels."""
        return self.own.in_features

    @property
    def out_features(self) -> int:
        """Outputs."""
        return self.own.out_features

    @property
    def weight(self) -> Tensor:
        """The integers of the layer's own rows, int8 [out_features, in_features]; transformers asks for a weight."""
        return self.own.weight

    @property
    def bias(self) -> Tensor | None:
        """The bias, or None."""
        return self.own.bias

    def dequantized_weight(self) -> Float[Tensor, "out_features in_features"]:
        """Return the layer's own rows as floats, float32."""
        return self.own.dequantized_weight()

    def forward(self, x: Float[Tensor, "*tokens in_features"]) -> Float[Tensor, "*tokens out_features"]:
        """Run the layer on spikes; see `SpikeLinear.forward`."""
        if is_compiling() or is_recorded(self.own, x):
            return outside_graph(self, "its small counts read upper bits", x)
        return self.run(x)

    def run(self, x: Float[Tensor, "*tokens in_features"]) -> Float[Tensor, "*tokens out_features"]:
        """Run the layer on spikes, in kernels that PyTorch does not see; see `forward`."""
        neurons = tuple(level.neuron for level in self.levels)
        if neurons != self._checked:  # somebody gave a level another one
            _check(list(self.levels))
            self._checked = neurons
        return self.own.run(x, self.upper)

    @torch.compiler.assume_constant_result
    def where(self) -> str:
        """Return what messages call the layer."""
        return self.own.where()

    def extra_repr(self) -> str:
        """Return sizes, and what each band of counts reads."""
        return f"in_features={self.in_features}, out_features={self.out_features}, {describe_levels(self)}"


def owner_of(name: str) -> str:
    """Return the name of the layer of which one is a level; its own name if it is none.

    >>> owner_of("mlp.up_proj.levels.0"), owner_of("mlp.up_proj")
    ('mlp.up_proj', 'mlp.up_proj')
    """
    layer, levels, number = name.rpartition(_LEVELS)
    return layer if levels and number.isdigit() else name


def grade_for(model: nn.Module, names: Iterable[str]) -> None:
    """Put a `GradedLinear` in the place of each float layer that has levels among the names, in place.

    Its levels are the float layer for now; a file's levels take their places.
    """
    numbers: dict[str, int] = {}
    for name in names:
        layer, levels, number = name.rpartition(_LEVELS)
        if levels and number.isdigit() and not isinstance(model.get_submodule(layer), GradedLinear):
            numbers[layer] = max(numbers.get(layer, 0), int(number) + 1)
    for name, number in numbers.items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, GradedLinear([model.get_submodule(name)] * number))


def check_graded(model: nn.Module) -> None:
    """Raise an InputError if a `GradedLinear` of a model has levels that do not fit each other."""
    for module in model.modules():
        if isinstance(module, GradedLinear):
            _check(list(module.levels))


def check_upper_bits(model: nn.Module) -> None:
    """Raise an InputError if coarse rows are not the upper bits that they should be, as a changed file may have it."""
    for module in model.modules():
        if not isinstance(module, GradedLinear):
            continue
        *upper, own = map(_quantized, module.levels)
        for level, found in zip(module.levels, upper, strict=False):
            if not found.equals(coarser(own, found.weight_bits)):
                raise InputError(
                    f"{level.where()}: expected the upper {found.weight_bits} bits of the layer's own rows, got other "  # pyright: ignore
                    "integers, scales or minima. Convert the model again if an earlier version saved it."
                )


def _quantized(level: Any) -> QuantizedWeight:
    return QuantizedWeight(level.weight, level.scale, level.minimum, level.group_size, level.weight_bits)


def own_rows_of(layer: Any) -> Any:
    """Return the level of a `GradedLinear` that has the layer's own rows; any other layer itself."""
    return layer.own if isinstance(layer, GradedLinear) else layer


def describe_levels(layer: GradedLinear) -> str:
    """Return which counts read rows of how many bits, in words."""
    words = []
    for level in layer.levels:
        up_to = level.neuron.up_to  # pyright: ignore[reportAttributeAccessIssue]
        words.append(f"{'all others' if up_to is None else f'up to {up_to}'} {level.weight_bits} bits")
    return "counts " + ", ".join(words)


def fit_together(levels: Sequence[Any]) -> bool:
    """Return whether levels are what a `GradedLinear` takes."""
    fits = len(levels) > 0 and all(isinstance(level, SpikeLinear) for level in levels)
    fits = fits and all(isinstance(level.neuron, Band) for level in levels)
    bands: list[Any] = [getattr(level, "neuron", None) for level in levels]
    fits = fits and bands[0].above == 0 and bands[-1].up_to is None
    fits = fits and all(a.up_to == b.above and a.neuron == b.neuron for a, b in pairwise(bands))
    fits = fits and len({(level.out_features, level.in_features) for level in levels}) == 1
    return fits and all(level.bias is None for level in levels[:-1])


def _check(levels: Sequence[Any]) -> None:
    if not fit_together(levels):
        bands = [getattr(level, "neuron", None) for level in levels]
        raise InputError(
            "GradedLinear.levels: expected spiking layers of one shape whose neurons are bands of one neuron that "
            f"follow one another from 0 on, with a bias in the last alone, got {bands}. GradedLinear.from_quantized "
            "makes them."
        )
