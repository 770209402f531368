"""Fit sink tokens, so that they begin as a sink of attention and not as rivals of the text.

A sink token takes attention from the text wherever its key fits the query. One such token costs a Transformer nothing,
since its first token is such a sink anyway; but 128 of them take far more than one. Their embeddings are therefore
fitted to the Transformer's predictions; nothing else changes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..spikingbrain.causal_lm import SpikingBrainForCausalLM
from .descent import rate_at
from .divergence import divergence
from .fit_layers import WARMUP

# Tokens of a step, the number of steps, and the peak of Adam's learning rate.
TOKENS, STEPS, RATE = 1024, 32, 1e-2


def fit_sinks(
    student: SpikingBrainForCausalLM, teacher: Any, rows: Tensor, steps: int, done: Callable[[int], None]
) -> None:
    """Lower KL(teacher || student) by gradient steps on the sink tokens alone, in place.

    Args:
        student: the converted model, with sink tokens.
        teacher: the Transformer.
        rows: token ids, [B, L].
        steps: of Adam.
        done: told of each step.
    """
    before = student.model.sinks
    assert before is not None
    required = [parameter.requires_grad for parameter in student.parameters()]
    student.requires_grad_(False)
    sinks = nn.Parameter(before.detach().float())
    student.model.sinks = sinks
    batches = rows.split(max(TOKENS // rows.shape[1], 1))
    optimizer = torch.optim.Adam([sinks], lr=RATE)
    try:
        with torch.enable_grad():
            for step in range(steps):
                optimizer.param_groups[0]["lr"] = rate_at(step, steps, RATE, WARMUP)
                optimizer.zero_grad()
                divergence(student, teacher, batches[step % len(batches)]).backward()
                optimizer.step()
                done(1)
    finally:
        student.model.sinks = before
        for parameter, was in zip(student.parameters(), required, strict=True):
            parameter.requires_grad_(was)
    with torch.no_grad():
        before.copy_(sinks)
