"""Round float weights to INT8, with scales computed from the weights or taken from a checkpoint."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...errors import InputError


def quantize_with(weight: Tensor, scales: Tensor, name: str = "") -> tuple[Tensor, Tensor, int | None]:
    """Round weights to integers with given scales: integer = round(W / scale), half to even.

    Args:
        weight: float, [out_features, in_features].
        scales: weight per integer step, [out_features, groups] or [out_features, groups, 1]; all groups have the same
            number of adjacent input channels.
        name: name of the layer, for messages.
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
    if not bool((torch.isfinite(scale) & (scale > 0)).all()):
        raise InputError(f"{where}: expected finite numbers > 0, got some that are not. Fetch the checkpoint again.")
    group_size = num_in // scale.shape[1]
    integers = (weight.to(torch.float32) / scale.repeat_interleave(group_size, 1)).round_()
    # NaN compares as false.
    if not bool((integers.abs() <= 127).all()):
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
    check_group_size(group_size)
    wide = weight.to(torch.float32)
    check_finite(wide, f"weights of {name or 'a linear layer'}")
    integers, scales = [], []
    for part in wide.split(group_size or max(wide.shape[1], 1), 1):
        largest = part.abs().amax(1, keepdim=True) if part.shape[1] else part.new_zeros(len(part), 1)
        # Divided by a tensor: a GPU would multiply by the rounded reciprocal of a number.
        # Clamped, since subnormal maxima would give a scale of 0 or a ratio beyond 127.
        scale = torch.where(largest > 0, largest / torch.full_like(largest, 127), 1.0)
        scale = scale.clamp(min=torch.finfo(torch.float32).tiny)
        integers.append((part / scale).round_().clamp_(-127, 127).to(torch.int8))
        scales.append(scale)
    return torch.cat(integers, 1), torch.cat(scales, 1)


def check_finite(tensor: Tensor, where: str) -> None:
    """Raise an InputError that starts with `where` if a float tensor has NaN or infinity."""
    if tensor.is_floating_point() and not tensor.is_meta and not bool(torch.isfinite(tensor).all()):
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
