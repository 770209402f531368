"""Weights as integers: the container, and rounding to INT8 and INT4 with scales computed here or in a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import InputError
from ...neuro.faults import are_marked

WEIGHT_BITS = (8, 4, 2)
# Input channels that share a scale in 4 bits, if nothing else is asked for.
INT4_GROUP = 32


@dataclass(frozen=True)
class QuantizedWeight:
    """A weight matrix in integers: W = integer * scale + minimum, both of the integer's output and group of inputs.

    Attributes:
        weight: integers, int8 [out_features, in_features]: of 8 bits -128 to 127; of 4 bits 0 to 15 with a minimum, and
            -8 to 7 without; of 2 bits 0 to 3, and -2 to 1.
        scale: weight per integer step, float32 [out_features, groups].
        minimum: weight of integer 0, float32 [out_features, groups]; None for 0.
        group_size: adjacent input channels that share a scale; None for all. The last group may be smaller.
        weight_bits: width of the integers, 8, 4 or 2.
    """

    weight: Tensor
    scale: Tensor
    minimum: Tensor | None = None
    group_size: int | None = None
    weight_bits: int = 8

    def to(self, device: torch.device) -> QuantizedWeight:
        """Return the same on another device."""
        minimum = None if self.minimum is None else self.minimum.to(device)
        return replace(self, weight=self.weight.to(device), scale=self.scale.to(device), minimum=minimum)

    def equals(self, other: QuantizedWeight) -> bool:
        """Return whether another has the same numbers."""
        if (self.group_size, self.weight_bits) != (other.group_size, other.weight_bits):
            return False
        if self.minimum is None or other.minimum is None:
            minima = self.minimum is other.minimum
        else:
            minima = torch.equal(self.minimum, other.minimum)
        return minima and torch.equal(self.weight, other.weight) and torch.equal(self.scale, other.scale)

    def check(self) -> None:
        """Raise an InputError if shapes or dtypes do not match, or an integer, a scale or a minimum is out of range."""
        weight = self.weight
        if weight.dtype != torch.int8 or weight.ndim != 2:
            raise InputError(
                f"SpikeLinear.weight: expected int8 [out_features, in_features], got {weight.dtype} of shape "
                f"{tuple(weight.shape)}. SpikeLinear.from_linear quantises float weights."
            )
        check_group_size(self.group_size)
        if self.weight_bits not in WEIGHT_BITS or type(self.weight_bits) is not int:
            raise InputError(f"SpikeLinear.weight_bits: expected one of {WEIGHT_BITS}, got {self.weight_bits!r}.")
        expected = (len(weight), len(groups_of(weight.shape[1], self.group_size)))
        for name, value in (("scale", self.scale), ("minimum", self.minimum)):
            if value is None:
                continue
            if value.shape != expected or value.dtype != torch.float32:
                raise InputError(
                    f"SpikeLinear.{name}: expected float32 of shape {expected}, got {value.dtype} of "
                    f"{tuple(value.shape)}."
                )
            check_finite(value, f"SpikeLinear.{name}")
        wrong = why_out_of_range(weight, self.weight_bits, has_minimum=self.minimum is not None)
        if wrong:
            raise InputError(f"SpikeLinear.weight: {wrong}")


def dequantize(weight: Tensor, scale: Tensor, minimum: Tensor | None, group_size: int | None) -> Tensor:
    """Return integer * scale + minimum, float32 [out_features, in_features]; arguments as of `QuantizedWeight`."""
    num_out, num_in = weight.shape
    size = group_size or max(num_in, 1)
    num_groups = scale.shape[1]
    padded = F.pad(weight, (0, num_groups * size - num_in))
    floats = padded.reshape(num_out, num_groups, size) * scale[..., None]
    if minimum is not None:
        floats += minimum[..., None]
    return floats.reshape(num_out, num_groups * size)[:, :num_in]


def groups_of(num_inputs: int, group_size: int | None) -> list[slice]:
    """Return the input channels that share a scale, in order."""
    size = group_size or max(num_inputs, 1)
    return [slice(i, min(i + size, num_inputs)) for i in range(0, max(num_inputs, 1), size)]


def why_out_of_range(weight: Tensor, weight_bits: int, *, has_minimum: bool) -> str | None:
    """Return which integers do not fit a width, or None; all of int8 fit 8 bits."""
    if weight_bits == 8 or weight.is_meta or not weight.numel():
        return None
    most = 2**weight_bits - 1 if has_minimum else 2 ** (weight_bits - 1) - 1
    least = 0 if has_minimum else -most - 1
    low, high = (int(v) for v in weight.aminmax())
    if least <= low and high <= most:
        return None
    return (
        f"expected integers of {weight_bits} bits {'with' if has_minimum else 'without'} a minimum, {least} to {most}, "
        f"got {low if low < least else high}. Give weight_bits=8, or quantise again."
    )


def why_not_loadable(
    state_dict: Mapping[str, Tensor], prefix: str, weight_bits: int, *, has_minimum: bool
) -> str | None:
    """Return which tensor of a state dict does not fit a layer's dtypes or width, or None."""
    for name, dtype in (("weight", torch.int8), ("scale", torch.float32), ("minimum", torch.float32)):
        value = state_dict.get(prefix + name)
        if value is not None and value.dtype != dtype:
            return (
                f"{prefix}{name}: expected {dtype} as `SpikeLinear` has it, got {value.dtype}. Load float weights "
                "before to_spiking."
            )
    weight = state_dict.get(f"{prefix}weight")
    wrong = None if weight is None else why_out_of_range(weight, weight_bits, has_minimum=has_minimum)
    return wrong and f"{prefix}weight: {wrong}"


def integers_of(weight: Tensor, scale: Tensor, minimum: Tensor | None, group_size: int) -> Tensor:
    """Return round((W - minimum) / scale), half to even, as floats; 0 where the scale is 0 and no integer counts."""
    wide, scale = weight.to(torch.float32), scale.repeat_interleave(group_size, 1)
    if minimum is not None:
        wide = wide - minimum.repeat_interleave(group_size, 1)
    return torch.where(scale == 0, 0.0, wide / scale).round_()


def quantize_with(
    weight: Tensor, scales: Tensor, name: str = "", minimum: Tensor | None = None, *, ours: bool = False
) -> tuple[Tensor, Tensor, int | None]:
    """Round weights to integers with given scales: integer = round((W - minimum) / scale), half to even.

    Args:
        weight: float, [out_features, in_features].
        scales: weight per integer step, [out_features, groups] or [out_features, groups, 1]; all groups have the same
            number of adjacent input channels.
        name: name of the layer, for messages.
        minimum: weight of integer 0, [out_features, groups]; None for 0.
        ours: scales may also be below 0, or 0 where all weights are the minimum, and integers -128, as those that were
            stored in a GGUF file.
    Returns:
        Integers, int8 [out_features, in_features]; scales, float32 [out_features, groups]; and the number of input
        channels per group, None for all. `SpikeLinear` takes these.
    Raises:
        InputError: shapes do not fit, a number is not finite, a scale is not above 0, or an integer is outside -127 to
            127.
    """
    where = f"weight scales of {name or 'a linear layer'}"
    shape = tuple(scales.shape)
    scale = scales.squeeze(-1) if scales.ndim == 3 and shape[-1] == 1 else scales
    num_out, num_in = weight.shape
    if scale.ndim != 2 or len(scale) != num_out or scale.shape[1] == 0 or num_in % scale.shape[1]:
        raise InputError(
            f"{where}: expected [{num_out}, groups] or [{num_out}, groups, 1] with groups that divide {num_in} input "
            f"channels, got shape {shape}."
        )
    scale = scale.to(torch.float32).contiguous()
    group_size = num_in // scale.shape[1]
    fine = torch.isfinite(scale) & (ours | (scale > 0))
    if ours:  # a scale of 0 leaves no weight but the minimum
        base = torch.zeros_like(scale) if minimum is None else minimum
        equal = weight == base.repeat_interleave(group_size, 1).to(weight.dtype)
        fine &= (scale != 0) | equal.reshape(num_out, -1, group_size).all(2)
    if not bool(fine.all()):
        raise InputError(f"{where}: expected finite numbers > 0, got some that are not. Fetch the checkpoint again.")
    integers = integers_of(weight, scale, minimum, group_size)
    # NaN compares as false.
    if not bool(((integers >= (-128 if ours else -127)) & (integers <= 127)).all()):
        worst = float(integers.abs().max())
        raise InputError(
            f"{where}: expected integers W / scale within -127 and 127, got {worst:g}: weights and scales do not "
            "belong together. Fetch the checkpoint again."
        )
    return integers.to(torch.int8), scale, None if group_size == num_in else group_size


def quantize(weight: Tensor, group_size: int | None, name: str = "") -> tuple[Tensor, Tensor]:
    """Round float weights to INT8: scale = max|W| / 127 per output channel and group; integer = round(W / scale).

    Args:
        weight: float, [out_features, in_features].
        group_size: input channels that share a scale; None for all.
        name: name of the layer, for messages.
    Returns:
        int8 [out_features, in_features] within [-127, 127], and float32 [out_features, groups]; the scale of an
        all-zero group is 1.
    Raises:
        InputError: a weight is not finite, or group_size is not a positive integer.
    """
    found = rounded_to(8, _checked(weight, group_size, name), group_size)
    return found.weight.to(torch.int8), found.scale


def quantize_to(weight_bits: int, weight: Tensor, group_size: int | None, name: str = "") -> QuantizedWeight:
    """Round float weights to integers of 8 bits, as `quantize` does, or of 4, as `quantize_int4` does."""
    if weight_bits == 4:
        return quantize_int4(weight, group_size, name)
    return QuantizedWeight(*quantize(weight, group_size, name), None, group_size, weight_bits)


def quantize_int4(weight: Tensor, group_size: int | None = None, name: str = "") -> QuantizedWeight:
    """Round float weights to 4 bits: W = integer * scale + minimum, integers 0 to 15.

    Of each output channel and group: minimum = min W, scale = (max W - min W) / 15, and integer =
    round((W - minimum) / scale), half to even. Scales and minima are float32.

    Args:
        weight: float, [out_features, in_features].
        group_size: input channels that share a scale and a minimum; None for 32. The last group may be smaller.
        name: name of the layer, for messages.
    Returns:
        The integers; the scale of a group of equal weights is 0, so that these are kept exactly.
    Raises:
        InputError: a weight is not finite, or group_size is not a positive integer.
    """
    found = rounded_to(4, _checked(weight, group_size, name), group_size)
    return replace(found, weight=found.weight.to(torch.int8))


def rounded_to(weight_bits: int, weight: Tensor, group_size: int | None) -> QuantizedWeight:
    """Round float weights as `quantize_to` does, with the integers as floats; for training, which rounds at every step.

    Nothing looks at the numbers, for which a GPU would wait: NaN and infinite weights become integers that are NaN.

    Args:
        weight_bits: 8, or 4 with a minimum.
        weight: float, [out_features, in_features].
        group_size: as of the two functions.
    """
    if weight_bits == 4 and group_size is None:
        group_size = INT4_GROUP
    wide = weight.to(torch.float32)
    num_out, num_in = wide.shape
    size = group_size or max(num_in, 1)
    num_groups = max(-(-num_in // size), 1)
    num_missing = num_groups * size - num_in
    parts = F.pad(wide, (0, num_missing)).reshape(num_out, num_groups, size)
    if weight_bits == 4:
        low, high = _extremes(parts, num_missing if num_in else 0)
        minimum, most, least = low, 15, 0
    else:
        # What is missing is 0, which is never the largest.
        high, low, minimum = parts.abs().amax(2, keepdim=True), 0, None
        most, least = 127, -127
    # Divided by a tensor: a GPU would multiply by the rounded reciprocal of a number. Clamped, since subnormal maxima
    # would give a scale of 0 or a ratio beyond the largest integer.
    scale = torch.where(high > low, (high - low) / torch.full_like(high, most), 1.0)
    scale = scale.clamp(min=torch.finfo(torch.float32).tiny)
    integers = ((parts if minimum is None else parts - minimum) / scale).round_().clamp_(least, most)
    integers = integers.reshape(num_out, num_groups * size)[:, :num_in].contiguous()
    if minimum is not None:
        minimum, scale = minimum.squeeze(2), torch.where(high > low, scale, 0.0)
    return QuantizedWeight(integers, scale.squeeze(2), minimum, group_size, weight_bits)


def _extremes(parts: Tensor, num_missing: int) -> tuple[Tensor, Tensor]:
    """Return the least and the largest of each group, [out, groups, 1], without what is missing in the last one."""
    if num_missing:
        last = torch.arange(parts.shape[2], device=parts.device) >= parts.shape[2] - num_missing
        missing = torch.zeros_like(parts, dtype=torch.bool)
        missing[:, -1] = last
        low, high = (parts.masked_fill(missing, edge) for edge in (torch.inf, -torch.inf))
        return low.amin(2, keepdim=True), high.amax(2, keepdim=True)
    low, high = parts.aminmax(dim=2, keepdim=True)
    return low, high


def _checked(weight: Tensor, group_size: int | None, name: str) -> Tensor:
    """Return float weights in float32; raise an InputError if one is not finite, or for a group size that is none."""
    check_group_size(group_size)
    wide = weight.to(torch.float32)
    check_finite(wide, f"weights of {name or 'a linear layer'}")
    return wide


def check_finite(tensor: Tensor, where: str) -> None:
    """Raise an InputError that starts with `where` if a float tensor has NaN or infinity, unless faults are marked."""
    if not tensor.is_floating_point() or tensor.is_meta or are_marked(tensor):
        return
    if not bool(torch.isfinite(tensor).all()):
        index = tuple((~torch.isfinite(tensor)).nonzero()[0].tolist())
        raise InputError(f"{where}: expected finite, got {tensor[index].item()} at {index}.")


def check_group_size(group_size: int | None) -> None:
    """Raise an InputError unless group_size is an integer >= 1 or None."""
    if group_size is not None and (type(group_size) is not int or group_size < 1):
        raise InputError(f"group_size: expected an integer >= 1 or None, got {group_size!r}.")


def copy_bias(bias: Tensor | None) -> nn.Parameter | None:
    """Return a copy of a bias, trainable if and only if the original is."""
    return None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=bias.requires_grad)


def input_major(weight: Tensor) -> Tensor:
    """Return the weights with each input channel contiguous in memory: a spike adds this row."""
    return weight if weight.t().is_contiguous() else weight.t().contiguous().t()
