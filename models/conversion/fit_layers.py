"""Fit layers of linear attention to the Transformer's attention: a few gradient steps for each layer on its own.

Each layer gets the inputs of the Transformer's layer, so layers do not wait for each other and errors do not add up
while they are fitted. Everything of the layer's attention learns: feature maps (q and k projections), values, gates,
norms and the output projection.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..spikingbrain.attention import Attention
from ..spikingbrain.causal_lm import SpikingBrainForCausalLM
from .descent import rate_at, relative_error
from .layerwise import Surroundings, trace

# Tokens of a step, and the peak of Adam's learning rate: docs/results.md says what others gave.
TOKENS, RATE = 2048, 6e-3
# Steps in which the learning rate rises.
WARMUP = 4
# Tokens of a chunk of linear attention on a GPU, where few large operations are faster than many small ones.
_CHUNK_ON_GPU = 64


def fit_layers(
    student: SpikingBrainForCausalLM,
    teacher: Any,
    groups: Sequence[Tensor],
    layers: dict[int, Attention],
    steps: int,
    done: Callable[[int], None],
) -> None:
    """Lower |a - a'|^2 / |a'|^2 of each layer, with a its attention output and a' the Transformer's, in place.

    Args:
        student: the converted model.
        teacher: the Transformer.
        groups: token ids, [B, L] each, of the same L.
        layers: those that are fitted, by number.
        steps: of Adam, for each layer.
        done: told of each layer that is finished.
    """
    seen = [trace(teacher, group) for group in groups]
    ids = torch.cat(list(groups))
    batch = min(max(TOKENS // ids.shape[1], 1), len(ids))
    for number, attention in layers.items():
        inputs = torch.cat([layers_seen[number].normed for layers_seen in seen]).float()
        targets = torch.cat([layers_seen[number].attended for layers_seen in seen]).float()
        around = Surroundings(student, ids[:batch], torch.float32)
        fitted = copy.deepcopy(attention).float().requires_grad_()
        if inputs.is_cuda:
            fitted.config = fitted.config.replace(chunk_size=_CHUNK_ON_GPU)

        def loss(rows: Tensor, fitted=fitted, inputs=inputs, targets=targets, number=number, around=around) -> Tensor:
            return relative_error(fitted(inputs[rows], around.context, around.state(number)), targets[rows])

        _descend(list(fitted.parameters()), loss, _batches(len(ids), batch), steps)
        with torch.no_grad():
            for ours, new in zip(attention.parameters(), fitted.parameters(), strict=True):
                ours.copy_(new)
        done(1)


@torch.enable_grad()
def _descend(parameters: list[Tensor], loss: Callable[[Tensor], Tensor], batches: Iterator[Tensor], steps: int) -> None:
    optimizer = torch.optim.Adam(parameters, lr=RATE)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate_at(step, steps, RATE, WARMUP)
        optimizer.zero_grad()
        loss(next(batches)).backward()
        optimizer.step()


def _batches(num_rows: int, batch: int) -> Iterator[Tensor]:
    """Yield row numbers without end, [batch] each: every row comes once, in random order, before any comes again."""
    generator = torch.Generator().manual_seed(0)
    while True:
        yield from torch.randperm(num_rows, generator=generator).split(batch)[: num_rows // batch]
