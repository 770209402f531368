"""The reference: eq. 23 in plain integer PyTorch. Slow and easy to check; every other backend equals it."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import BACKENDS, Backend


@BACKENDS.register("reference")
class Reference(Backend):
    """Multiplies and adds in int64, one output feature at a time, on any device: no product or sum can round."""

    def _accumulate(self, spikes: Tensor, timestep_weight: Tensor, weight: Tensor, bound: float) -> Tensor:
        num_tokens, num_outputs = spikes.shape[1], weight.shape[0]
        total = torch.zeros(num_tokens, num_outputs, dtype=torch.int64, device=weight.device)
        for plane_weight, plane in zip(timestep_weight.tolist(), spikes, strict=True):
            for o in range(num_outputs):
                total[:, o] += plane_weight * (plane.to(torch.int64) * weight[o]).sum(-1)
        return total
