"""Which layers become linear: those whose change costs the predictions least, as measured, instead of every other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ...errors import InputError
from ..spikingbrain.causal_lm import SpikingBrainForCausalLM
from ..spikingbrain.config import LayerPlan, SpikingBrainConfig
from .divergence import divergence_from, predictions

PLACEMENTS = ("alternate", "measured")
# Tokens that sensitivities are measured on, at most.
TOKENS = 2048


@torch.no_grad()
def sensitivities(
    linear: SpikingBrainForCausalLM,
    softmax: SpikingBrainForCausalLM,
    teacher: Any,
    rows: Tensor,
    done: Callable[[int], None] = lambda number: None,
) -> list[float]:
    """Return KL(teacher || student) in nats for each layer, where that layer alone has linear attention.

    Args:
        linear: a model with linear attention in every layer, calibrated.
        softmax: the same with softmax attention in every layer.
        teacher: the Transformer.
        rows: token ids, [B, L].
        done: told of each layer that is measured.
    """
    found, some = [], rows[: max(TOKENS // rows.shape[1], 1)]
    wanted = predictions(teacher, some)
    for ours, theirs in zip(softmax.model.layers, linear.model.layers, strict=True):
        kept, ours.attn = ours.attn, theirs.attn
        found.append(float(divergence_from(wanted, softmax, some)))
        ours.attn = kept
        done(1)
    return found


def check_placement(placement: str, settings: SpikingBrainConfig, calibration: Tensor | None) -> Tensor:
    """Check that linear layers can be placed by measurement, and return the tokens that are given to measure on.

    Raises:
        InputError: an unknown placement, no tokens to measure on, or a layout with no choice.
    """
    if placement not in PLACEMENTS:
        raise InputError(f"from_transformer.placement: expected one of {PLACEMENTS}, got {placement!r}.")
    if calibration is None:
        raise InputError(
            'from_transformer.placement: expected `calibration` tokens with "measured", which it measures on; got none.'
        )
    linear = [plan.mixers == ("gla",) for plan in settings.layers]
    if any(plan.is_parallel for plan in settings.layers) or all(linear) or not any(linear):
        raise InputError(
            'from_transformer.placement: "measured" needs a layout with layers of linear attention alone and layers of '
            f"softmax attention alone; got {', '.join(map(str, settings.layers))}. Leave it out."
        )
    return calibration


def least_sensitive(plans: Sequence[LayerPlan], costs: Sequence[float]) -> tuple[LayerPlan, ...]:
    """Return plans with as many linear layers as before, placed where they cost least.

    The other mixers keep their order, and feed-forward parts their places.

    Args:
        plans: one per layer.
        costs: of a linear layer, by layer; see `sensitivities`.

    >>> gla, swa = LayerPlan(("gla",)), LayerPlan(("swa",))
    >>> [str(plan) for plan in least_sensitive((gla, swa, gla, swa), (4.0, 1.0, 2.0, 3.0))]
    ['swa', 'gla', 'gla', 'swa']
    """
    others = [plan.mixers for plan in plans if plan.mixers != ("gla",)]
    linear = sorted(range(len(plans)), key=lambda i: costs[i])[: len(plans) - len(others)]
    rest = iter(others)
    return tuple(LayerPlan(("gla",) if i in linear else next(rest), plan.ffn) for i, plan in enumerate(plans))
