"""How the weights of a model's layers lie in the cores of a chip."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from ..chip import Weights
from ..models import SpikeLinear
from ..models.layers.compact import scale_bytes_of
from ..models.layers.graded_linear import GradedLinear


def weights_of(model: nn.Module, spiking: Mapping[str, SpikeLinear]) -> dict[str, Weights]:
    """Return the width, groups and parameters of each spiking layer.

    Scales and minima of groups take the shortest form that has them exactly (`scale_bytes_of`). Coarse rows, whose
    scales follow from those of the layer's own rows, keep a copy of these.

    Args:
        model: converted to spikes.
        spiking: its spiking layers by name.
    """
    sources = {}
    for module in model.modules():
        if isinstance(module, GradedLinear):
            sources |= {id(level): module.own for level in module.upper}
    return {name: _weights_of(layer, sources.get(id(layer), layer)) for name, layer in spiking.items()}


def coarse_levels(model: nn.Module) -> frozenset[str]:
    """Return the names of layers that are coarse rows of another: their results are added to its own."""
    return frozenset(
        f"{name}.levels.{i}".lstrip(".")
        for name, module in model.named_modules()
        if isinstance(module, GradedLinear)
        for i in range(len(module.levels) - 1)
    )


def _weights_of(layer: SpikeLinear, source: SpikeLinear) -> Weights:
    """Return how the weights of a layer lie in a core, with the parameters of `source`."""
    has_minimum, derives = layer.minimum is not None, source is not layer
    if layer.group_size is None or len(layer.groups) == 1:
        return Weights(layer.weight_bits, has_minimum=has_minimum, derives_scales=derives)
    num_bits = 8 * scale_bytes_of(source.scale, source.minimum)
    parameter_bits = -(-num_bits // max(source.scale.numel(), 1))
    return Weights(layer.weight_bits, layer.group_size, parameter_bits, has_minimum, derives)
