"""Trainable linear layers that compute, in floats, the same as a spiking layer with their weights."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from ...coding.base import require_exact
from ...errors import InputError
from ...module_check import check_module
from ...neuro import AdaptiveThreshold, DeadZoneThreshold, Neuron, SpikeCount
from ...neuro.checks import needs_check, spikes_of
from ...neuro.faults import marked_faults
from ...neuro.spike_count import straight_through
from .bytes_read import bits_read, scale_bytes_when_read, steps_of
from .choose import choose_layers
from .coarse import Coarse, check_fewer_bits, coarser
from .compact import check_groups, compact
from .experts import is_fused
from .quantize import INT4_GROUP, QuantizedWeight, dequantize, groups_of, rounded_to
from .settings import COUNTED, SpikeSettings


class Carried(NamedTuple):
    """What spikes carry of the activations of a layer.

    Attributes:
        whole: the activation, x' = count * threshold; its gradient passes to x unchanged.
        small: the parts of x' that read coarse rows, one for each pair of the layer's coarse rows, without gradient.
        bits: of a weight, that a channel reads, the mean; None if nobody asks for it.
    """

    whole: Tensor
    small: tuple[Tensor, ...] = ()
    bits: Tensor | None = None


class Sharing(threading.local):
    """Keeps what spikes carry of the last input, for the layers that read the same tensor, such as q, k and v.

    Then it is counted once, and kept for the backward pass once.
    """

    def __init__(self) -> None:
        self._known: tuple[weakref.ref[Tensor], object, Carried] | None = None

    def __reduce__(self) -> tuple[type[Sharing], tuple[()]]:
        """Return what makes another for a copy or a pickle: an empty one."""
        return type(self), ()

    def get(self, x: Tensor, key: object) -> Carried | None:
        """Return what was kept for that tensor and an equal key, if nobody changed the tensor since."""
        known = self._known
        if known is None or known[0]() is not x or known[1] != (key, *_state_of(x)):
            return None
        return known[2]

    def keep(self, x: Tensor, key: object, carried: Carried) -> None:
        """Keep it as long as the tensor lives, or another comes."""

        def forget(dead: weakref.ref[Tensor]) -> None:
            if self._known is not None and self._known[0] is dead:
                self._known = None

        self._known = (weakref.ref(x, forget), (key, *_state_of(x)), carried)


def _state_of(x: Tensor) -> tuple[int, bool]:
    return x._version, torch.is_grad_enabled()


class SpikeAwareLinear(nn.Linear):
    """y = W' x' + b, where x' is the activation as spikes represent it and W' the weight rounded to integers.

    With coarse rows, y = W' x' + (sum over levels of (C - W') s) + b: C are the coarse rows of a level, s those
    channels of x' whose counts read them. So large counts read W' and small ones C, as in `GradedLinear`. Both follow
    from the float weight at every step.

    Gradients pass all roundings unchanged (straight-through), so the float weight learns. They are those of the plain
    layer: with g the gradient of y, that of W is g^T x', that of x is g W', silent channels and coarse ones
    included, and that of b the sum of g. The values are those of `SpikeLinear` or `GradedLinear`, except for the order
    of floating-point sums.

    On a GPU nothing waits for a number, so a CUDA graph can record it: a token that is not finite, or whose counts
    might not fit because the ceiling of its threshold binds, gives NaN. On a CPU the neuron raises an error. Neurons
    that need a number on the way, such as `RateDistortionThreshold` and those of other packages, wait for it.

    Args:
        linear: a layer whose parameters are shared, not copied: an `nn.Linear`, or transformers' `Conv1D`.
        neuron: turns activations into counts.
        group_size: input channels that share a weight scale; None for all, in 4 bits for 32.
        weight_bits: width of the integers, 8 or 4.
        name: name of the layer, for messages.
        coarse: pairs (bits, up_to) of its coarse rows, as `SpikeSettings` has them.
        compact_scales: keep scales and minima of groups in few bits, as `SpikeSettings` has it.
        growth: a number from 0 to 1, in a tensor that may change from step to step, by which dead zones and the edges
            of coarse rows are multiplied; None for 1.
        sharing: of layers that may read the same tensors.
        counts_bytes: find out what each call reads, with a gradient (see `bits_read`); it is in `bits` afterwards.

    Source:
        SpikingBrain (arXiv:2509.05276), section 3.3.1.
    """

    def __init__(
        self,
        linear: nn.Linear | Conv1D,
        neuron: Neuron,
        group_size: int | None,
        name: str = "",
        *,
        weight_bits: int = 8,
        coarse: Coarse = (),
        compact_scales: bool = False,
        growth: Tensor | None = None,
        sharing: Sharing | None = None,
        counts_bytes: bool = False,
    ) -> None:
        self.is_transposed = isinstance(linear, Conv1D)  # its weight is [in_features, out_features]
        num_out, num_in = linear.weight.shape[::-1] if self.is_transposed else linear.weight.shape
        super().__init__(num_in, num_out, linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.neuron, self.group_size, self.name, self.weight_bits = neuron, group_size, name, weight_bits
        self.coarse, self.compact_scales = coarse, compact_scales
        self.growth, self.sharing = growth, sharing
        self.counts_bytes = counts_bytes
        self.bits: Tensor | None = None

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x: Float[Tensor, "*tokens in_features"]
    ) -> Float[Tensor, "*tokens out_features"]:
        """Run the layer.

        Args:
            x: activations.
        """
        dtype = _product_dtype(x)
        carried, (rounded, lost) = self._carried(x, dtype), self.rounded_weights(dtype)
        self.bits = carried.bits
        y = F.linear(carried.whole, straight_through(self._rows(), rounded), self.bias)
        for part, difference in zip(carried.small, lost, strict=True):
            y = y + F.linear(part, difference)
        return y

    @torch.no_grad()
    def rounded_weights(self, dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
        """Return W', and C - W' for each pair of coarse rows, in a dtype, without gradients."""
        quantized = rounded_to(self.weight_bits, self._rows(), self.group_size)
        if self.compact_scales:
            quantized = compact(quantized, self.name)
        own = _floats(quantized)
        lost = [(_floats(coarser(quantized, bits)) - own).to(dtype) for bits, _ in self.coarse]
        return own.to(dtype), lost

    def _rows(self) -> Tensor:
        """Return the float weight, [out_features, in_features]."""
        return self.weight.t() if self.is_transposed else self.weight

    def bytes_read(self) -> Tensor:
        """Return the bytes that a token of the last call reads of weights, scales, minima and biases, the mean."""
        assert self.bits is not None
        sizes = (self.in_features, self.out_features, self.weight_bits, self.group_size, self.coarse)
        always = scale_bytes_when_read(*sizes, compact=self.compact_scales)
        always += 2 * self.out_features * (self.bias is not None)
        return self.bits * (self.in_features * self.out_features / 8) + always

    @property
    def dense_bytes(self) -> int:
        """Bytes that a token reads of the same layer in dense INT8, with scales and bias, as `energy` counts them."""
        num_scales = len(groups_of(self.in_features, self.group_size)) if self.weight_bits == 8 else 1
        return self.out_features * (self.in_features + 4 * num_scales + 2 * (self.bias is not None))

    def _carried(self, x: Tensor, dtype: torch.dtype) -> Carried:
        sharing = None if torch.compiler.is_compiling() else self.sharing
        # PyTorch counts how often `growth` was set.
        growth = None if self.growth is None else self.growth._version
        key = (self.neuron, self.coarse, self.weight_bits, growth, dtype)
        known = None if sharing is None else sharing.get(x, key)
        if known is not None:
            return known
        spikes = self._spikes(x)
        whole = spikes.activation().to(dtype)
        bits = self._bits(x, spikes.threshold) if self.counts_bytes else None
        carried = Carried(whole, tuple(self._small(spikes.count, whole.detach())), bits)
        if sharing is not None:
            sharing.keep(x, key, carried)
        return carried

    def _spikes(self, x: Tensor) -> SpikeCount:
        if needs_check(self.neuron):
            return spikes_of(self.neuron, x)
        neuron, grows = self.neuron, self.growth is not None and type(self.neuron) is DeadZoneThreshold
        if grows:
            assert isinstance(neuron, DeadZoneThreshold)
            neuron = AdaptiveThreshold(neuron.k, neuron.floor, neuron.ceiling)
        with marked_faults() if x.is_cuda else nullcontext():
            spikes = neuron(x)
        return self._silenced(spikes, x) if grows else spikes

    def _silenced(self, spikes: SpikeCount, x: Tensor) -> SpikeCount:
        """Return the counts without those in the dead zone as far as it has grown."""
        assert isinstance(self.neuron, DeadZoneThreshold)
        assert self.growth is not None
        ratio = x.detach().to(spikes.threshold.dtype) / spikes.threshold
        count = torch.where(ratio.abs() < self.neuron.quiet * self.growth, 0, spikes.count)
        return SpikeCount(count, spikes.threshold, spikes.source)

    def _small(self, count: Tensor, whole: Tensor) -> Iterator[Tensor]:
        if not self.coarse:
            return
        magnitude = count.abs()
        edges = [0, *(up_to for _, up_to in self.coarse)]
        for above, up_to in pairwise(edges if self.growth is None else [edge * self.growth for edge in edges]):
            yield torch.where((magnitude > above) & (magnitude <= up_to), whole, 0)

    def _bits(self, x: Tensor, threshold: Tensor) -> Tensor:
        """Return the bits of a weight that a channel reads, with dead zone and edges as far as they have grown."""
        quiet = self.neuron.quiet if isinstance(self.neuron, DeadZoneThreshold) else 0.0
        growth = torch.ones((), device=x.device) if self.growth is None else self.growth
        ratio = x.detach().abs().to(threshold.dtype) / threshold
        return bits_read(x, ratio, *steps_of(quiet, self.weight_bits, self.coarse, growth))


def _product_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype in which autocast multiplies x: each product would else make, and keep, a copy of its own."""
    kind = x.device.type
    casts = torch.is_autocast_enabled(kind) and x.dtype != torch.float64
    return torch.get_autocast_dtype(kind) if casts else x.dtype


def _floats(quantized: QuantizedWeight) -> Tensor:
    return dequantize(quantized.weight, quantized.scale, quantized.minimum, quantized.group_size)


class SpikeAware:
    """A model inside of `spike_aware`.

    Args:
        layers: those that train.
        growth: of each device's layers, as of `SpikeAwareLinear`.
    """

    def __init__(self, layers: list[SpikeAwareLinear], growth: list[Tensor]) -> None:
        self._layers, self._growth = layers, growth

    def grow(self, share: float) -> None:
        """Let dead zones and the edges of coarse rows be that share of what the settings say, until the next call.

        Only the value of tensors changes, so that a CUDA graph of a step that was recorded before goes by it, too.

        Args:
            share: from 0, where no channel is silent or coarse beyond the rounding of its count, to 1.
        Raises:
            InputError: another number.
        """
        if not 0 <= share <= 1:
            raise InputError(f"SpikeAware.grow: expected a share from 0 to 1, got {share!r}.")
        for tensor in self._growth:
            tensor.fill_(share)

    def read(self) -> Tensor:
        """Return the bytes of weights, scales and minima that the last call's tokens read, with a gradient.

        Their share of what the layers would read as dense INT8 ones: what `calibrate` calls read. See `bits_read` for
        the gradient.

        Raises:
            InputError: no layer has counted them.
        """
        counted = [layer for layer in self._layers if layer.bits is not None]
        if not counted:
            raise InputError(
                "SpikeAware.read: expected layers that have counted bytes, got none. Pass counts_bytes=True to "
                "spike_aware, and call the model first."
            )
        found = [layer.bytes_read() for layer in counted]
        together = torch.stack([one.to(found[0].device) for one in found]).sum()
        return together / sum(layer.dense_bytes for layer in counted)


@contextmanager
def spike_aware(model: nn.Module, settings: SpikeSettings, *, counts_bytes: bool = False) -> Iterator[SpikeAware]:
    """Train with spikes: inside a `with` block the layers that the settings name are `SpikeAwareLinear`.

    Parameters keep their names, so an optimiser made before or inside the block trains the float weights.

    Args:
        model: a float model.
        settings: as for `to_spiking`; the backend does not matter here, nor does the encoder, which must be exact.
        counts_bytes: let layers find out what they read, for a penalty on it. Their neurons must be
            `AdaptiveThreshold` or `DeadZoneThreshold`.
    Yields:
        What lets silence grow from step to step, and says what is read; it need not be used.
    Raises:
        InputError: no layer matches, one is in fused experts, its rows do not fit the settings, stored weights, spiking
            attention, or a lossy code.
    """
    check_module("spike_aware", model)
    if not isinstance(settings, SpikeSettings):
        raise InputError(f"spike_aware: expected SpikeSettings(...) as settings, got {settings!r}.")
    if settings.weights == "stored":
        raise InputError(
            'spike_aware.settings: expected weights="int8" or "int4", got "stored": training changes the weights, so '
            'that the file\'s integers would no longer be theirs. "int4" has groups of 32 with minima, as Q4_1 files.'
        )
    if settings.attention == COUNTED:
        raise InputError(
            "spike_aware.settings: expected attention=None, as a Transformer's attention does not spike in training, "
            f"got {COUNTED!r}. Train without, and give it to to_spiking afterwards."
        )
    assert not isinstance(settings.encoder, str)
    require_exact(settings.encoder, "spike_aware.settings", "the layers train with the counts themselves")
    linears, _ = choose_layers(model, settings)
    fused = [name for name, module in model.named_modules() if is_fused(module)]
    for name in linears:
        if any(name.startswith(f"{experts}.") for experts in fused):
            raise InputError(
                f"spike_aware: expected nn.Linear, got fused experts at {name}. Leave them out with `skip` "
                "'*.experts.*'."
            )
    sharing, growth = Sharing(), dict[torch.device, Tensor]()
    aware: dict[str, SpikeAwareLinear] = {}
    for name, linear in linears.items():
        device = linear.weight.device
        grows = growth.setdefault(device, torch.ones((), device=device))
        aware[name] = _aware(name, linear, settings, grows, sharing)
        aware[name].counts_bytes = counts_bytes
        neuron = aware[name].neuron
        if counts_bytes and type(neuron) not in (AdaptiveThreshold, DeadZoneThreshold):
            raise InputError(
                f"spike_aware.counts_bytes: expected AdaptiveThreshold or DeadZoneThreshold, got {neuron!r} at {name}."
            )
    try:
        for name, layer in aware.items():
            _put(model, name, layer)
        yield SpikeAware(list(aware.values()), list(growth.values()))
    finally:
        for name, linear in linears.items():
            _put(model, name, linear)


def _aware(
    name: str, linear: nn.Linear | Conv1D, settings: SpikeSettings, growth: Tensor, sharing: Sharing
) -> SpikeAwareLinear:
    """Return the layer that trains in the place of a linear one; raise an InputError if its rows do not fit."""
    bits, coarse = 4 if settings.weights == "int4" else 8, settings.coarse_of(name)
    group_size = INT4_GROUP if bits == 4 and settings.group_size is None else settings.group_size
    check_fewer_bits(coarse, bits, f"{name}.coarse")
    more = {"coarse": coarse, "compact_scales": settings.compact_scales, "growth": growth, "sharing": sharing}
    found = SpikeAwareLinear(linear, settings.neuron_of(name), group_size, name, weight_bits=bits, **more)
    if settings.compact_scales:
        check_groups(len(groups_of(found.in_features, group_size)), name)
    return found.train(linear.training)


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
