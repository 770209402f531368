"""How the weights of a model's layers lie in the cores of a chip."""

from __future__ import annotations

from collections.abc import Mapping

from ..chip import Weights
from ..models import SpikeLinear
from ..models.layers.compact import scale_bytes_of


def weights_of(spiking: Mapping[str, SpikeLinear]) -> dict[str, Weights]:
    """Return the width, groups and parameters of each spiking layer.

    Scales and minima of groups take the shortest form that has them exactly (`scale_bytes_of`). Coarse rows are part of
    a layer's own rows and take nothing.

    Args:
        spiking: layers by name, as of `layers_of`.
    """
    return {name: _weights_of(layer) for name, layer in spiking.items()}


def _weights_of(layer: SpikeLinear) -> Weights:
    has_minimum = layer.minimum is not None
    if layer.group_size is None or len(layer.groups) == 1:
        return Weights(layer.weight_bits, has_minimum=has_minimum)
    num_bits = 8 * scale_bytes_of(layer.scale, layer.minimum)
    parameter_bits = -(-num_bits // max(layer.scale.numel(), 1))
    return Weights(layer.weight_bits, layer.group_size, parameter_bits, has_minimum)
