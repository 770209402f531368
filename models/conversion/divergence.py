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
        wanted = predictions(teacher, ids)
    return divergence_from(wanted, student, ids)


def divergence_from(wanted: Tensor, student: Any, ids: Tensor) -> Tensor:
    """Return `divergence` from a teacher's `predictions`."""
    return F.kl_div(predictions(student, ids), wanted, reduction="batchmean", log_target=True)


def predictions(model: Any, ids: Tensor) -> Tensor:
    """Return log-probabilities of the next token, float32 [B * L, vocabulary]."""
    return model(input_ids=ids, use_cache=False).logits.flatten(0, 1).float().log_softmax(-1)
