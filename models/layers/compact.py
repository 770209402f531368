"""Scales and minima of weight groups in few bits, and the bytes that scales take."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ...backends.base import MAX_STEP, ScaleUnits
from ...errors import InputError
from .quantize import QuantizedWeight

# Of the integer of a scale, up to `MAX_STEP`, and of that of a minimum, which has a sign.
_SCALE_BITS, _MINIMUM_BITS = 7, 8
# Significant bits of an output's unit; times its integers, float16 has all scales and minima exactly.
_UNIT_BITS = 4


def compact(quantized: QuantizedWeight, name: str = "") -> QuantizedWeight:
    """Return weights whose scales and minima are integers times a unit of the output.

    scale[o, g] = n * u[o] with n up to 127, and minimum[o, g] = m * v[o] with m from -127 to 127; the units are as
    small as the largest scale and minimum of an output allow. A group then takes 15 bits instead of the 32 of two
    numbers in float16: with 32 inputs of 4 bits, 4.5 bits a weight instead of 5. The integers of the weights stay. With
    6 bits for a scale, SmolLM2 lost another 0.7 % of its perplexity.

    Args:
        quantized: weights in groups.
        name: of the layer, for messages.
    Raises:
        InputError: the weights have one scale an output, of which there is nothing to save.

    Source:
        Scales of groups as integers beside one float: Q4_K of GGUF files.
    """
    check_groups(quantized.scale.shape[1], name)
    minimum = quantized.minimum
    if minimum is not None:
        minimum = _in_units(minimum)
    return replace(quantized, scale=_in_units(quantized.scale), minimum=minimum)


def check_groups(num_groups: int, name: str = "") -> None:
    """Raise an InputError unless a layer has more than one group, so that there is something to save."""
    if num_groups < 2:
        raise InputError(
            f"compact_scales: expected weights in groups, got one scale an output in {name or 'a layer'}. Take weights "
            '"stored" or "int4", or a group_size below its number of inputs; or leave it out with `skip`.'
        )


def _in_units(values: Tensor) -> Tensor:
    """Return values rounded to integers up to `MAX_STEP` times a unit for each row, which has few significant bits."""
    mantissa, exponent = torch.frexp(values.double().abs().amax(1, keepdim=True) / MAX_STEP)
    # Up, so that the largest value fits.
    unit = torch.ldexp((mantissa * 2**_UNIT_BITS).ceil() / 2**_UNIT_BITS, exponent)
    return torch.where(unit > 0, (values / unit).round() * unit, torch.zeros_like(unit)).float()


def _units(values: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return the integers and the units from which `_in_units` may have given these values; None if it has not."""
    wide = values.double()
    largest = wide.abs().amax(1, keepdim=True)
    found = torch.zeros_like(largest)
    # A unit is rounded up by less than an eighth, so the largest integer is not much less than `MAX_STEP`.
    for integer in range(MAX_STEP, int(MAX_STEP / (1 + 2 ** (1 - _UNIT_BITS))) - 1, -1):
        unit = largest / integer
        short = torch.frexp(unit)[0] * 2**_UNIT_BITS
        whole = ((wide / unit).round() * unit == wide).all(1, keepdim=True)
        found = torch.where((short == short.round()) & whole, unit, found)
    if bool((found.eq(0) & largest.ne(0)).any()):
        return None
    steps = torch.where(found > 0, (wide / found).round(), 0.0)
    return steps.to(torch.int8), found[:, 0].float()


def units_of(scale: Tensor, minimum: Tensor | None) -> ScaleUnits | None:
    """Return scales and minima of groups as integers times units, if they are what `compact` gives; else None.

    Args:
        scale: float32, [out_features, groups].
        minimum: the same, or None.
    """
    if scale.shape[1] < 2 or not len(scale):
        return None
    scales = _units(scale)
    minima = None if minimum is None or scales is None else _units(minimum)
    if scales is None or (minimum is not None and minima is None):
        return None
    return ScaleUnits(*scales, *(minima or (None, None)))


def scale_bytes_of(scale: Tensor, minimum: Tensor | None) -> int:
    """Return the bytes that the scales and minima of a layer take, in the shortest form that has all of them exactly.

    That is 4 bytes each, or 2 if float16 has them, or for groups the form of `compact` with two floats an output.
    """
    both = [scale] if minimum is None else [scale, minimum]
    num_outputs, num_groups = scale.shape
    if units_of(scale, minimum) is not None:
        bits_of_group = _SCALE_BITS + int((scale < 0).any()) + (0 if minimum is None else _MINIMUM_BITS)
        return num_outputs * (-(-num_groups * bits_of_group // 8) + 4 * len(both))
    halves = num_groups > 1 and all(torch.equal(one.half().float(), one) for one in both)
    return num_outputs * num_groups * len(both) * (2 if halves else 4)
