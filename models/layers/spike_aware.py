"""Trainable linear layers that compute, in floats, the same as a `SpikeLinear` with their weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ...coding.base import require_exact
from ...errors import InputError
from ...neuro import Neuron
from ...neuro.checks import spikes_of
from ...neuro.spike_count import straight_through
from .choose import choose_layers
from .experts import is_fused
from .quantize import dequantize, quantize_to
from .settings import SpikeSettings


class SpikeAwareLinear(nn.Linear):
    """y = W' x' + b, where x' is the activation as spikes represent it and W' the weight rounded to integers.

    Gradients pass both roundings unchanged (straight-through), so the float weight learns. The values are those of
    `SpikeLinear`, except for the order of floating-point sums.

    Args:
        linear: a layer whose parameters are shared, not copied.
        neuron: turns activations into counts.
        group_size: input channels that share a weight scale; None for all, in 4 bits for 32.
        weight_bits: width of the integers, 8 or 4.
        name: name of the layer, for messages.

    Source:
        SpikingBrain (arXiv:2509.05276), section 3.3.1.
    """

    def __init__(
        self, linear: nn.Linear, neuron: Neuron, group_size: int | None, name: str = "", *, weight_bits: int = 8
    ) -> None:
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.neuron, self.group_size, self.name, self.weight_bits = neuron, group_size, name, weight_bits

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x: Float[Tensor, "*tokens in_features"]
    ) -> Float[Tensor, "*tokens out_features"]:
        """Run the layer.

        Args:
            x: activations.
        """
        q = quantize_to(self.weight_bits, self.weight.detach(), self.group_size, self.name)
        rounded = dequantize(q.weight, q.scale, q.minimum, q.group_size)
        weight = straight_through(self.weight, rounded.to(self.weight.dtype))
        return F.linear(spikes_of(self.neuron, x).activation().to(x.dtype), weight, self.bias)


@contextmanager
def spike_aware(model: nn.Module, settings: SpikeSettings) -> Iterator[None]:
    """Train with spikes: inside a `with` block the layers that the settings name are `SpikeAwareLinear`.

    Parameters keep their names, so an optimiser made before or inside the block trains the float weights.

    Args:
        model: a float model.
        settings: as for `to_spiking`; the backend does not matter here, nor does the encoder, which must be exact.
    Raises:
        InputError: no layer matches, one is not an `nn.Linear` of its own (fused experts are not), stored weights,
            coarse rows, or a lossy code.
    """
    if not isinstance(settings, SpikeSettings):
        raise InputError(f"spike_aware: expected SpikeSettings(...) as settings, got {settings!r}.")
    if settings.weights == "stored":
        raise InputError(
            'spike_aware.settings: expected weights="int8" or "int4", got "stored": training changes the weights, so '
            "that the file's integers would no longer be theirs."
        )
    for name in ("coarse", "compact_scales"):
        if getattr(settings, name):
            raise InputError(
                f"spike_aware.settings: expected no `{name}`, with which layers do not train, got "
                f"{name}={getattr(settings, name)!r}. Train without, and give it to to_spiking afterwards."
            )
    assert not isinstance(settings.encoder, str)
    require_exact(settings.encoder, "spike_aware.settings", "the layers train with the counts themselves")
    bits = 4 if settings.weights == "int4" else 8
    linears, _ = choose_layers(model, settings)
    fused = [name for name, module in model.named_modules() if is_fused(module)]
    for name in linears:
        if any(name.startswith(f"{experts}.") for experts in fused):
            raise InputError(
                f"spike_aware: expected nn.Linear, got fused experts at {name}. Leave them out: skip=('*.experts.*',)."
            )
    for name, linear in linears.items():
        if not isinstance(linear, nn.Linear):
            raise InputError(f"spike_aware: expected nn.Linear, got {type(linear).__name__} at {name}. Leave it out.")
    try:
        for name, linear in linears.items():
            assert isinstance(linear, nn.Linear)
            aware = SpikeAwareLinear(linear, settings.neuron_of(name), settings.group_size, name, weight_bits=bits)
            _put(model, name, aware)
        yield
    finally:
        for name, linear in linears.items():
            _put(model, name, linear)


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
