"""The reference: eq. 23 in plain integer PyTorch. Slow and easy to check; every other backend equals it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .base import BACKENDS, Backend


@BACKENDS.register("reference")
@dataclass(frozen=True)
class Reference(Backend):
    """Multiplies and adds in int64, one timestep at a time, on any device: no product or sum can round."""

    def _accumulate(self, spikes: Tensor, timestep_weight: Tensor, weight: Tensor) -> Tensor:
        wide = weight.to(torch.int64)
        total = torch.zeros(spikes.shape[1], weight.shape[0], dtype=torch.int64, device=weight.device)
        for plane_weight, plane in zip(timestep_weight.tolist(), spikes.to(torch.int64), strict=True):
            total += plane_weight * _product(plane, wide)
        return total


def _product(plane: Tensor, weight: Tensor) -> Tensor:
    """Return plane @ weight.t() in int64. PyTorch has integer matrix products on CPUs only."""
    if plane.device.type == "cpu":
        return plane @ weight.t()
    for_each_output = [(plane * row).sum(-1) for row in weight]
    return torch.stack(for_each_output, 1) if for_each_output else plane.new_zeros(len(plane), 0)
