"""Scales and minima of weight groups in few bits, and the bytes that scales take."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ...errors import InputError
from .quantize import QuantizedWeight

# Largest integer of a scale and of a minimum: 6 bits, and 7 with a sign.
_SCALE_STEPS, _MINIMUM_STEPS = 63, 127
_SCALE_BITS, _MINIMUM_BITS = 6, 8
# Significant bits of an output's unit; times its integers, float16 has all scales and minima exactly.
_SCALE_UNIT_BITS, _MINIMUM_UNIT_BITS = 5, 4


def compact(quantized: QuantizedWeight, name: str = "") -> QuantizedWeight:
    """Return weights whose scales and minima are integers times a unit of the output.

    scale[o, g] = n * u[o] with n up to 63, and minimum[o, g] = m * v[o] with m from -127 to 127; the units are as small
    as the largest scale and minimum of an output allow. A group then takes 14 bits instead of the 32 of two numbers in
    float16: with 32 inputs of 4 bits, 4.4 bits a weight instead of 5. The integers of the weights stay.

    Args:
        quantized: weights in groups.
        name: of the layer, for messages.
    Raises:
        InputError: the weights have one scale an output, of which there is nothing to save.

    Source:
        Scales of groups as integers beside one float: Q4_K of GGUF files.
    """
    if quantized.scale.shape[1] < 2:
        raise InputError(
            f"compact_scales: expected weights in groups, got one scale an output in {name or 'a layer'}. Take weights "
            '"stored" or "int4", or a group_size.'
        )
    minimum = quantized.minimum
    if minimum is not None:
        minimum = _in_units(minimum, _MINIMUM_STEPS, _MINIMUM_UNIT_BITS)
    return replace(quantized, scale=_in_units(quantized.scale, _SCALE_STEPS, _SCALE_UNIT_BITS), minimum=minimum)


def _in_units(values: Tensor, steps: int, bits: int) -> Tensor:
    """Return values rounded to integers up to `steps` times a unit for each row, which has so many significant bits."""
    mantissa, exponent = torch.frexp(values.double().abs().amax(1, keepdim=True) / steps)
    unit = torch.ldexp((mantissa * 2**bits).ceil() / 2**bits, exponent)  # up, so that the largest value fits
    return torch.where(unit > 0, (values / unit).round() * unit, torch.zeros_like(unit)).float()


def _is_in_units(values: Tensor, steps: int, bits: int) -> bool:
    """Return whether `_in_units` may have given these values."""
    wide = values.double()
    largest = wide.abs().amax(1, keepdim=True)
    rows = (largest == 0)[:, 0]
    # A unit is rounded up by less than 1 / 2^(bits - 1), so the largest integer is not much less than `steps`.
    for integer in range(steps, int(steps / (1 + 2 ** (1 - bits))) - 1, -1):
        unit = largest / integer
        short = torch.frexp(unit)[0] * 2**bits
        whole = (wide / unit).round() * unit == wide
        rows |= (short == short.round())[:, 0] & whole.all(1)
    return bool(rows.all())


def scale_bytes_of(scale: Tensor, minimum: Tensor | None) -> int:
    """Return the bytes that the scales and minima of a layer take, in the shortest form that has all of them exactly.

    That is 4 bytes each, or 2 if float16 has them, or for groups the form of `compact` with two floats an output.
    """
    both = [(scale, _SCALE_STEPS, _SCALE_UNIT_BITS, _SCALE_BITS + int((scale < 0).any()))]
    if minimum is not None:
        both.append((minimum, _MINIMUM_STEPS, _MINIMUM_UNIT_BITS, _MINIMUM_BITS))
    num_outputs, num_groups = scale.shape
    if num_groups > 1 and all(_is_in_units(one, steps, bits) for one, steps, bits, _ in both):
        bits_of_group = sum(bits for *_, bits in both)
        return num_outputs * (-(-num_groups * bits_of_group // 8) + 4 * len(both))
    halves = num_groups > 1 and all(torch.equal(one.half().float(), one) for one, *_ in both)
    return num_outputs * num_groups * len(both) * (2 if halves else 4)
