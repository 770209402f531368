"""A linear layer that runs on spikes: neuron -> encoder -> integer accumulation -> one rescale."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int8
from torch import Tensor, nn

from ... import backends
from ...backends import BACKENDS, Backend
from ...backends.base import INT32, MAX_STEP, Memo, ScaleUnits, WeightMemory
from ...backends.checks import group_sums_of, outputs_of, sums_of
from ...coding import ENCODERS, BidirectionalBitwise, Encoder, SpikeTrain, decode
from ...coding.checks import fitted_to, train_of
from ...errors import InputError, SpikebrainError
from ...module_check import check_module
from ...neuro import NEURONS, AdaptiveThreshold, Neuron, SpikeCount, without_band
from ...neuro.checks import checks_all, needs_check, spikes_of
from .coarse import twice_the_sums
from .compact import scale_bytes_of, units_of
from .dense_gradient import DenseGradient
from .graphs import graph_settings, in_graph
from .observing import Observer, Step
from .quantize import QuantizedWeight, copy_bias, dequantize, groups_of, input_major, quantize_to, why_not_loadable
from .rescale import group_counts, rescale, rescale_in_units
from .shared_input import extent_of
from .transforms import is_compiling, is_recorded

# Bytes of spikes and sums that a call holds at a time. Tokens are independent, so this does not change the result.
_PORTION_BYTES = 64 * 2**20
# The plug-ins of a layer, and the words that may stand in their place.
_PLUGINS: dict[str, tuple[Any, ...]] = {"neuron": (NEURONS,), "encoder": (ENCODERS,), "backend": (BACKENDS, "auto")}


class _Portion(NamedTuple):
    """Some tokens of a call: which, exact sums [tokens, groups, out_features], the counts that their trains carry."""

    tokens: slice
    sums: Tensor
    carried: Tensor


class SpikeLinear(nn.Module):
    """y = threshold * scale * (W count) + bias, where W count is accumulated from spikes, exactly, in integers.

    Groups of input channels may have scales of their own, and minima: then each group is accumulated by itself, and
    y = threshold * sum over groups g of (scale[g] * (W count)[g] + minimum[g] * (sum of count)[g]) + bias; `rescale`
    says in which order.

    The functions in the attribute `observers` are called with every step; `record` adds one temporarily. The layers of
    a model share their `notices`, warnings that were given already.

    Args:
        weight: integers, int8 [out_features, in_features].
        scale: weight per integer step, float32, [out_features, groups].
        bias: float, [out_features], or None.
        minimum: weight of integer 0, float32, [out_features, groups], or None for 0.
        group_size: input channels that share a scale; None for all. The last group may be smaller.
        weight_bits: width of the integers, 8 or 4, which are kept as int8; see `QuantizedWeight` for their range.
        neuron: turns activations into counts, with one threshold per token; an object or a registered name.
        encoder: turns counts into spikes; an object or a registered name.
        backend: accumulates spikes; an object, a registered name, or "auto" for the fastest one for the input's device
            and number of tokens.
        name: name of the layer in its model, for messages.
    Raises:
        InputError: shapes or dtypes do not match, an integer is out of range, or a scale or minimum is not finite.

    Source:
        SpikingBrain (arXiv:2509.05276), section 3.3.2, eq. 22 and 23.
    """

    weight: Tensor
    scale: Tensor
    minimum: Tensor | None
    neuron: Neuron
    encoder: Encoder
    backend: Backend | Literal["auto"]

    def __init__(
        self,
        weight: Int8[Tensor, "out_features in_features"],
        scale: Float[Tensor, "out_features groups"],
        bias: Float[Tensor, " out_features"] | None = None,
        *,
        minimum: Float[Tensor, "out_features groups"] | None = None,
        group_size: int | None = None,
        weight_bits: int = 8,
        neuron: Neuron | str | None = None,
        encoder: Encoder | str | None = None,
        backend: Backend | str = "auto",
        name: str = "",
    ) -> None:
        super().__init__()
        QuantizedWeight(weight, scale, minimum, group_size, weight_bits).check()
        self.out_features, self.in_features = weight.shape
        self.group_size, self.weight_bits = group_size, weight_bits
        if bias is not None and bias.shape != (self.out_features,):
            raise InputError(f"SpikeLinear.bias: expected shape ({self.out_features},), got {tuple(bias.shape)}.")
        self.register_buffer("weight", input_major(weight))
        self.register_buffer("scale", scale)
        self.register_buffer("minimum", minimum)
        self.bias = None if bias is None else bias if isinstance(bias, nn.Parameter) else nn.Parameter(bias)
        self.neuron = AdaptiveThreshold() if neuron is None else neuron  # pyright: ignore[reportAttributeAccessIssue]
        self.encoder = BidirectionalBitwise() if encoder is None else encoder  # pyright: ignore[reportAttributeAccessIssue]
        self.backend = backend  # pyright: ignore[reportAttributeAccessIssue]
        self.name = name
        self.observers: list[Observer] = []
        self.notices: set[str] = set()
        self._units: tuple[Any, ...] | None = None  # what `units` has found, for which neuron and tensors
        self._memo = Memo()

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, *, group_size: int | None = None, weight_bits: int = 8, **settings
    ) -> SpikeLinear:
        """Quantise a linear layer.

        Args:
            linear: the layer; its bias is copied.
            group_size: as for the class; in 4 bits None means 32.
            weight_bits: 8, rounded as `quantize` says, or 4, with a minimum, as `quantize_int4` says.
            settings: neuron, encoder, backend and name, as for the class.
        Raises:
            InputError: the weights are not finite.
        """
        quantized = quantize_to(weight_bits, linear.weight.detach(), group_size, settings.get("name", ""))
        return cls.from_quantized(quantized, copy_bias(linear.bias), **settings)

    @classmethod
    def from_quantized(cls, quantized: QuantizedWeight, bias: Tensor | None = None, **settings) -> SpikeLinear:
        """Return a layer with weights that are integers already.

        Args:
            quantized: the weights; the layer may share their memory.
            bias: as for the class.
            settings: neuron, encoder, backend and name, as for the class.
        """
        sizes = {"group_size": quantized.group_size, "weight_bits": quantized.weight_bits}
        return cls(quantized.weight, quantized.scale, bias, minimum=quantized.minimum, **sizes, **settings)

    @property
    def groups(self) -> list[slice]:
        """Input channels that share a scale, in order."""
        return groups_of(self.in_features, self.group_size)

    @property
    def in_groups(self) -> bool:
        """Whether groups of input channels have scales of their own, or minima."""
        return self.group_size is not None or self._buffers["minimum"] is not None

    @property
    def units(self) -> ScaleUnits | None:
        """Scales and minima in integers, if they are compact and all sums of the neuron's counts then fit 32 bits."""
        parts = (self._buffers["scale"], self._buffers["minimum"])
        known = self._units
        if known is None or known[1] != self.neuron or not all(map(_is_as_noted, parts, known[2])):
            known = self._find_units(), self.neuron, tuple(map(_noted_tensor, parts))
            self._units = known
        return known[0]

    def _find_units(self) -> ScaleUnits | None:
        scale, minimum = self._buffers["scale"], self._buffers["minimum"]
        assert scale is not None
        shape, bounds = (self.out_features, len(self.groups)), self.neuron.count_bounds(self.in_features)
        fits = scale.shape == shape and (minimum is None or minimum.shape == shape)
        if bounds is None or not fits or shape[1] < 2 or scale.is_meta:
            return None
        largest = 128 if self.weight_bits == 8 else 2**self.weight_bits - 1
        most_charge = INT32.max // (MAX_STEP * 2 * largest)  # sums of upper bits are in halves
        found = units_of(scale, minimum) if bounds.mean * self.in_features <= most_charge else None
        return None if found is None else found._replace(most_charge=most_charge)

    def dequantized_weight(self) -> Float[Tensor, "out_features in_features"]:
        """Return weight * scale + minimum, float32."""
        return dequantize(self.weight, self.scale, self.minimum, self.group_size)

    def forward(self, x: Float[Tensor, "*tokens in_features"]) -> Float[Tensor, "*tokens out_features"]:
        """Run the layer on spikes.

        Args:
            x: activations of any floating-point dtype; the result has the same dtype.
        Raises:
            ActivationError: x holds NaN or infinity; the message names the layer.
            InputError: the last axis is not in_features wide, or PyTorch traces or transforms the layer where that
                would be wrong.
        """
        if is_compiling() or is_recorded(self, x):
            return in_graph(self, x)
        return self.run(x)

    def run(
        self, x: Float[Tensor, "*tokens in_features"], upper: Sequence[SpikeLinear] = ()
    ) -> Float[Tensor, "*tokens out_features"]:
        """Run the layer on spikes, in kernels that PyTorch does not see; see `forward`.

        Args:
            x: activations.
            upper: levels of a `GradedLinear` with upper bits of this layer's rows, whose sums join this layer's.
        """
        try:
            if x.ndim == 0 or x.shape[-1] != self.in_features:
                raise InputError(f"expected activations [..., {self.in_features}], got shape {tuple(x.shape)}.")
            trains = torch.is_grad_enabled() and (x.requires_grad or self._trains_bias)
            observed = self.observers or (upper and any(level.observers for level in upper))
            if not (observed or trains or checks_all()):
                whole = self.run_fused(x, upper=upper)
                if whole is not None:
                    return whole
            spikes = spikes_of(self.neuron, x)
            y = self._run(spikes, x, upper)
        except SpikebrainError as error:
            raise type(error)(f"{self._where}: {error}") from error
        if self.training and torch.is_grad_enabled() and (x.requires_grad or self._trains_bias):
            self._warn_of_training()
        if torch.is_grad_enabled() and x.requires_grad:
            if spikes.source is None:
                raise InputError(
                    f"{self._where}: {type(self.neuron).__name__} passes no gradient. Train with AdaptiveThreshold, or "
                    "run under torch.no_grad()."
                )
            y: Tensor = DenseGradient.apply(x, y, self)  # pyright: ignore[reportAssignmentType]
        if self.bias is not None:
            y = y + self.bias.to(y.dtype)
        return y.to(x.dtype)

    @torch.compiler.assume_constant_result  # done while a graph is made, once
    def _warn_of_training(self) -> None:
        """Say once a model that its INT8 weights do not learn."""
        if "training" not in self.notices:
            self.notices.add("training")
            warnings.warn(
                f"{self._where} and all other spiking layers have INT8 weights, which do not learn: only biases and "
                "layers that do not spike are trained. Train the float model inside `with "
                "spikebrain.spike_aware(model, settings):`, and call to_spiking afterwards.",
                stacklevel=3,
            )

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; a registered name of a neuron, an encoder or a backend becomes an object.

        Float parameters in place of the INT8 weights or their scales, as code that ties weights sets them, are refused.
        """
        if name in _PLUGINS:
            registry, *words = _PLUGINS[name]
            value = registry.resolve(value, f"SpikeLinear.{name}", *words)
        if name in ("weight", "scale", "minimum") and isinstance(value, nn.Parameter):
            raise InputError(
                f"{self._where}.{name}: expected {'int8' if name == 'weight' else 'float32'} numbers, which are no "
                f"parameters, got a parameter of {value.dtype}. Change the float layer, then call to_spiking."
            )
        super().__setattr__(name, value)
        if name in _PLUGINS:
            vars(self)["_memo"] = Memo()
            vars(self)["graph_settings"] = graph_settings(type(self), *map(vars(self).get, _PLUGINS))

    def __prepare_scriptable__(self) -> None:
        """Refuse torch.jit.script, which asks for this."""
        raise InputError(
            f"{self._where}: torch.jit.script cannot compile a spiking layer. Save it with spikebrain.save; "
            "spikebrain.to_dense(model) can be scripted."
        )

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: Any,
        local_metadata: Any,
        strict: Any,
        missing_keys: Any,
        unexpected_keys: Any,
        error_msgs: Any,
    ) -> None:
        """Refuse weights of another dtype, which PyTorch would truncate to integers, and integers of another width."""
        wrong = why_not_loadable(state_dict, prefix, self.weight_bits, has_minimum=self.minimum is not None)
        if wrong:
            error_msgs.append(wrong)
            return
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def run_fused(self, x: Tensor, num_tokens: int | None = None, upper: Sequence[SpikeLinear] = ()) -> Tensor | None:
        """Return what the layer gives when nobody observes it, from one kernel of its backend; gradients are not kept.

        The figures are those of the separate steps, bit for bit.

        Args:
            x: activations, [*tokens, in_features].
            num_tokens: tokens of the call that x is a part of, by which "auto" picks the backend; None for those of x.
            upper: see `run`.
        Returns:
            Outputs, [*tokens, out_features], in the dtype of x; None if there is no such kernel for this layer or x.
        Raises:
            InputError: a replaced bias does not fit the layer.
        """
        # Attribute access through nn.Module would take two of the twelve microseconds of overhead in a small layer.
        weight, scale = self._buffers["weight"], self._buffers["scale"]
        assert weight is not None
        assert scale is not None
        num_outputs, bias, minimum = self.out_features, self.bias, self._buffers["minimum"]
        neuron, reads = self.neuron, ()
        if upper:
            if any((level.backend, level.encoder) != (self.backend, self.encoder) for level in upper):
                return None
            neuron, reads = without_band(neuron), self.reads(upper)
        again = self._memo.again
        if again is not None:
            y = again(x, weight, scale, bias, minimum, neuron, self.encoder, self.group_size, reads)
            if y is not None:
                return y
        shape = (num_outputs, 1 if self.group_size is None else len(self.groups))
        if weight.shape != (num_outputs, self.in_features) or scale.shape != shape or weight.dtype != torch.int8:
            return None  # replaced by the caller: the separate steps check them, kernels do not
        if scale.dtype != torch.float32 or not (
            minimum is None or (minimum.shape, minimum.dtype) == (shape, scale.dtype)
        ):
            return None
        if bias is not None and bias.shape != (num_outputs,):
            raise InputError(f"bias: expected {num_outputs} numbers, got shape {tuple(bias.shape)}.")
        backend = self._backend_for(x, num_tokens)
        groups: dict[str, Any] = {"minimum": minimum, "group_size": self.group_size} if self.in_groups else {}
        if groups and backend.knows_units and self.units is not None:
            groups["units"] = self.units
        if upper:
            if not backend.knows_upper_bits:
                return None
            groups["upper"] = reads
        if backend.remembers and not needs_check(backend):
            groups["memo"] = self._memo
        return outputs_of(backend, x, weight, scale, bias, neuron, self.encoder, **groups)

    def reads(self, upper: Sequence[SpikeLinear]) -> tuple[tuple[int, int], ...]:
        """Return which counts read upper bits of this layer's rows, for levels as of `run`; see `Backend`."""
        return tuple((level.neuron.up_to, self.weight_bits - level.weight_bits) for level in upper)  # pyright: ignore

    def rescales_in_order(self, x: Tensor, num_tokens: int | None = None) -> bool:
        """Return whether `run_fused` equals the separate steps bit for bit, and not only to rounding; see `Backend`."""
        return not self.in_groups or self._backend_for(x, num_tokens).rescales_in_order

    def _backend_for(self, x: Tensor, num_tokens: int | None = None, *, events_only: bool = False) -> Backend:
        if self.backend != "auto":
            return self.backend
        num_tokens = x.numel() // max(self.in_features, 1) if num_tokens is None else num_tokens
        num_weights = self.in_features * self.out_features
        return backends.auto(x.device, num_tokens, num_weights, events_only=events_only, in_groups=self.in_groups)

    @property
    def _trains_bias(self) -> bool:
        return self.bias is not None and self.bias.requires_grad

    def _run(self, spikes: SpikeCount, x: Tensor, upper: Sequence[SpikeLinear]) -> Tensor:
        """Unroll counts, accumulate and rescale, a portion of the tokens at a time; in the threshold's dtype."""
        tokens, count = spikes.count.shape[:-1], spikes.by_token
        threshold = spikes.threshold.to(torch.promote_types(spikes.threshold.dtype, torch.float32))
        if threshold.ndim > 0 and threshold.shape[-1] != 1:
            raise InputError(f"expected one threshold per token, [..., 1], got shape {tuple(threshold.shape)}.")
        threshold = threshold.expand(*tokens, 1).reshape(-1, 1)
        y = threshold.new_zeros(len(count), self.out_features)
        counted = [spikes, *(spikes_of(level.neuron, x) for level in upper)]
        levels = (self, *upper)
        size = min(level.tokens_at_a_time(one) for level, one in zip(levels, counted, strict=True))
        portions = (level._portions(one, x, threshold, size) for level, one in zip(levels, counted, strict=True))
        for own, *others in zip(*portions, strict=True):
            y[own.tokens] = self._joined(own, list(zip(upper, others, strict=True)), threshold[own.tokens])
        return y.reshape(*tokens, self.out_features)

    def _joined(self, own: _Portion, others: list[tuple[SpikeLinear, _Portion]], threshold: Tensor) -> Tensor:
        """Return outputs before the bias from the sums of this layer's rows and those of levels with upper bits."""
        if not others:
            return self.rescaled(own.sums, own.carried, threshold)
        joins = [(level.weight_bits, part.sums, group_counts(part.carried, self.group_size)) for level, part in others]
        sums = twice_the_sums(own.sums, joins, self.weight_bits, self.minimum)
        of_group = group_counts(own.carried, self.group_size) + sum(counts for *_, counts in joins)
        if self.units is not None:
            return rescale_in_units(sums, self.units._replace(unit=self.units.unit / 2), threshold, of_group)
        return rescale(sums, self.scale / 2, threshold, self.minimum, None if self.minimum is None else of_group)

    def rescaled(self, accumulation: Tensor, count: Tensor, threshold: Tensor) -> Tensor:
        """Return outputs before the bias, [tokens, out_features], from sums and the counts that the trains carry."""
        of_group = None if self.minimum is None else group_counts(count, self.group_size)
        if self.units is not None:
            return rescale_in_units(accumulation, self.units, threshold, of_group)
        return rescale(accumulation, self.scale, threshold, self.minimum, of_group)

    def _fitted(self, spikes: SpikeCount) -> tuple[Encoder, int]:
        return fitted_to(self.encoder, *(spikes.extent or extent_of(spikes.by_token)))

    def tokens_at_a_time(self, spikes: SpikeCount) -> int:
        """Return how many tokens a call handles at a time."""
        if spikes.count.numel() == 0:
            return 1
        token_bytes = self._fitted(spikes)[1] * self.in_features + 4 * self.scale.numel()
        return max(1, _PORTION_BYTES // token_bytes)

    def _portions(self, spikes: SpikeCount, x: Tensor, threshold: Tensor, size: int) -> Iterator[_Portion]:
        """Unroll and accumulate `size` tokens at a time, all with the same code and length; observers see them."""
        count = spikes.by_token
        if count.numel() == 0:
            return
        # A recording must match what runs, so the backend must never read a silent channel's weights.
        backend = self._backend_for(count, events_only=bool(self.observers))
        for first, train in self.trains(spikes, size):
            tokens = slice(first, min(first + size, len(count)))
            part = count if len(count) <= size else count[tokens]
            sums = self._sums(backend, train)
            for observer in self.observers:
                observer(self, Step(part, train, sums, first, len(count), x, threshold[tokens]))
            lossy = self.encoder.lossy and self.minimum is not None
            yield _Portion(tokens, sums, decode(train) if lossy else part)

    def trains(self, spikes: SpikeCount, size: int) -> Iterator[tuple[int, SpikeTrain]]:
        """Yield the trains of `size` tokens at a time and the first of them; all have the same code and length."""
        count = spikes.by_token
        encoder, num_timesteps = self._fitted(spikes)
        for first in range(0, len(count), size):
            part = count if len(count) <= size else count[first : first + size]
            yield first, train_of(encoder, part, num_timesteps)

    def _sums(self, backend: Backend, train: SpikeTrain) -> Tensor:
        """Return the exact sums of each group, int32 [tokens, groups, out_features]."""
        if backend.knows_memory and (self.in_groups or self.weight_bits < 8):
            scale_bytes = scale_bytes_of(self.scale, self.minimum)
            memory = WeightMemory(self.weight_bits, self.group_size, scale_bytes, self.minimum is not None)
            return group_sums_of(backend, train, self.weight, memory)
        return torch.stack([sums_of(backend, *pair) for pair in self._by_group(train)], 1)

    def _by_group(self, train: SpikeTrain) -> Iterator[tuple[SpikeTrain, Tensor]]:
        """Yield the spikes and weights of the input channels of each group."""
        if self.group_size is None:
            yield train, self.weight
            return
        for group in self.groups:
            yield SpikeTrain(train.spikes[..., group], train.timestep_weight, train.zero_point), self.weight[:, group]

    def extra_repr(self) -> str:
        """Show the settings when the module is printed."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"group_size={self.group_size}, weight_bits={self.weight_bits}, {self.neuron}, {self.encoder}"
        )

    def _apply(self, fn, recurse=True):
        """Move with the model, but keep scales and minima in float32 when it changes to a half-precision dtype."""
        kept = {name: self._buffers[name] for name in ("scale", "minimum")}
        super()._apply(fn, recurse)
        self._memo = Memo()  # it may hold memory where the layer no longer is
        for name, before in kept.items():
            if before is not None and (now := getattr(self, name)).dtype != torch.float32:
                self._buffers[name] = before.to(now.device)
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for a copy or pickle: everything but the observers, which belong to this layer only."""
        return {**super().__getstate__(), "observers": [], "_units": None, "_memo": Memo()}

    @torch.compiler.assume_constant_result  # else no two layers could share a graph
    def where(self) -> str:
        """Return what messages call the layer."""
        return self._where

    @property
    def _where(self) -> str:
        return f"SpikeLinear {self.name!r}" if self.name else "SpikeLinear"


def _noted_tensor(tensor: Tensor | None) -> tuple[Tensor | None, Any]:
    """Return a tensor with what tells whether it changes later. PyTorch counts changes of all but inference tensors."""
    if tensor is None:
        return None, None
    return tensor, tensor.clone() if tensor.is_inference() else tensor._version


def _is_as_noted(tensor: Tensor | None, noted: tuple[Tensor | None, Any]) -> bool:
    if tensor is not noted[0] or tensor is None:
        return tensor is noted[0]
    return torch.equal(tensor, noted[1]) if tensor.is_inference() else tensor._version == noted[1]


def spiking_layers(model: nn.Module, *, every_name: bool = False) -> dict[str, SpikeLinear]:
    """Return the spiking layers of a model by name.

    Args:
        model: any model.
        every_name: list a layer that is used in several places under each of its names, not only under the first.
    """
    check_module("spiking_layers", model)
    modules = model.named_modules(remove_duplicate=not every_name)
    return {name: module for name, module in modules if isinstance(module, SpikeLinear)}
