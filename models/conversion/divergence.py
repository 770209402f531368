"""How far a converted model's predictions are from the Transformer's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def divergence(student: Any, teacher: Any, ids: Tensor) -> Tensor:
    """Return KL(teacher || student) of the next token, in nats, as the mean over all tokens; it has a gradient.

    Args:
        student: a causal language model; gradients go to those of its parameters that require them.
        teacher: a causal language model with the same vocabulary.
        ids: token ids, [B, L], without padding.
    """
    with torch.no_grad():
        wanted = teacher(input_ids=ids, use_cache=False).logits.flatten(0, 1).float().log_softmax(-1)
    found = student(input_ids=ids, use_cache=False).logits.flatten(0, 1).float().log_softmax(-1)
    return F.kl_div(found, wanted, reduction="batchmean", log_target=True)
