"""Float weights to INT8: with scales of their own, or with those that a checkpoint brings along."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...errors import InputError


def quantize_with(weight: Tensor, scales: Tensor, name: str = "") -> tuple[Tensor, Tensor, int | None]:
    """Round weights to integers of given scales: integer = round(W / scale), half to even.

    Args:
        weight: float, [out_features, in_features].
        scales: activation worth of one weight unit, [out_features, groups] or [out_features, groups, 1]; the groups are
            equally many neighbouring input channels.
        name: of the layer, for messages.
    Returns:
        int8 [out_features, in_features], float32 [out_features, groups], and the input channels of a group, None for
        all: what `SpikeLinear` takes.
    Raises:
        InputError: shapes do not fit, a number is not finite or a scale not above 0, or an integer leaves -127 to 127.
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
    # Not a number compares as false.
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
        name: of the layer, for messages.
    Returns:
        int8 [out_features, in_features] within [-127, 127], and float32 [out_features, groups]; the scale of an
        all-zero group is 1.
    Raises:
        InputError: a weight is not finite, or group_size is no positive integer.
    """
    check_group_size(group_size)
    wide = weight.to(torch.float32)
    if not bool(torch.isfinite(wide).all()):
        index = tuple((~torch.isfinite(wide)).nonzero()[0].tolist())
        raise InputError(f"weights of {name or 'a linear layer'}: expected finite, got {wide[index]} at {index}.")
    integers, scales = [], []
    for part in wide.split(group_size or max(wide.shape[1], 1), 1):
        largest = part.abs().amax(1, keepdim=True) if part.shape[1] else part.new_zeros(len(part), 1)
        # Divided by a tensor: a GPU would multiply by the rounded reciprocal of a number.
        # Subnormal maxima would give a scale of 0 or a ratio beyond 127, hence the clamp.
        scale = torch.where(largest > 0, largest / torch.full_like(largest, 127), 1.0)
        scale = scale.clamp(min=torch.finfo(torch.float32).tiny)
        integers.append((part / scale).round_().clamp_(-127, 127).to(torch.int8))
        scales.append(scale)
    return torch.cat(integers, 1), torch.cat(scales, 1)


def check_group_size(group_size: int | None) -> None:
    """Raise an InputError unless group_size is an integer >= 1 or None."""
    if group_size is not None and (type(group_size) is not int or group_size < 1):
        raise InputError(f"group_size: expected an integer >= 1 or None, got {group_size!r}.")


def copy_bias(bias: Tensor | None) -> nn.Parameter | None:
    """Return a copy of a bias that is trained if and only if the bias is."""
    return None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=bias.requires_grad)


def input_major(weight: Tensor) -> Tensor:
    """Return the same weights, those of each input channel contiguous in memory: the row that a spike adds."""
    return weight if weight.t().is_contiguous() else weight.t().contiguous().t()
