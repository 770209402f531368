"""Float weights to INT8 with scales that a checkpoint brings along."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import InputError


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
