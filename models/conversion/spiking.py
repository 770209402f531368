"""W8A-spike on a SpikingBrain model: projections on spike trains, queries as spike counts, INT8 keys and values.

"as-described" is the report's claim and our default: every projection spikes, down_proj and the gate's included, and
the cache keeps INT8 keys and values. "as-released" computes what the released code does: down_proj stays dense and
unrounded, and the cache keeps floats, which are rounded to INT8 whenever they are used. In both, the router of a
mixture of experts and the output head stay dense: the one only picks, and the other the released code leaves alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from ...backends import Backend
from ...coding import BidirectionalBitwise, Encoder
from ...errors import InputError
from ...neuro import AdaptiveThreshold
from ..layers.convert import Policy, convert
from ..spikingbrain.attention import Attention
from ..spikingbrain.causal_lm import SpikingBrainForCausalLM
from ..spikingbrain.config import SPIKING, SpikingBrainConfig

_PATTERNS = {
    "as-described": ("*_proj", "*.gk_proj.?"),
    "as-released": ("*.attn.?_proj", "*.attn.gk_proj", "*.attn.gk_proj.?", "*.gate_proj", "*.up_proj"),
}


def to_spiking(
    model: SpikingBrainForCausalLM,
    setting: str = "as-described",
    *,
    k: float = 3.0,
    group_size: int | None = None,
    encoder: Encoder | None = None,
    backend: Backend | Literal["auto"] = "auto",
    scales: Mapping[str, Tensor] | None = None,
    inplace: bool = False,
) -> SpikingBrainForCausalLM:
    """Put a float model on spikes.

    `convert` alone swaps linear layers and leaves attention in floating point; this also lets softmax attention work on
    spike counts and INT8 keys and values.

    Args:
        model: a float model.
        setting: "as-described" or "as-released".
        k: of the adaptive threshold, of projections and queries.
        group_size: input channels that share a weight scale; None for all.
        encoder: turns counts into spikes; None for the bidirectional bitwise code.
        backend: accumulates spikes; "auto" picks the fastest.
        scales: by name of the layer, weight scales from a checkpoint.
        inplace: change the model itself; else work on a copy.
    Returns:
        The spiking model.
    Raises:
        InputError: the model spikes already, or the setting is unknown.

    Source:
        SpikingBrain (arXiv:2509.05276), section 3.3; its W8ASpike code.
    """
    if setting not in SPIKING:
        raise InputError(f"to_spiking.setting: expected one of {SPIKING}, got {setting!r}.")
    if model.settings.spiking is not None:
        raise InputError(f"to_spiking: expected a float model, got one that spikes {model.settings.spiking}.")
    policy = spiking_policy(setting, k=k, group_size=group_size, encoder=encoder, backend=backend)
    spiking = convert(model, policy, inplace=inplace, scales=scales).model
    assert isinstance(spiking, SpikingBrainForCausalLM)
    set_settings(spiking, model.settings.replace(spiking=setting, k=k, group_size=group_size))
    return spiking


def spiking_policy(
    setting: str,
    *,
    k: float = 3.0,
    group_size: int | None = None,
    encoder: Encoder | None = None,
    backend: Backend | Literal["auto"] = "auto",
) -> Policy:
    """Return which layers spike in a setting, and how; arguments are those of `to_spiking`."""
    return Policy(
        layers=_PATTERNS[setting],
        neuron=AdaptiveThreshold(k),
        encoder=encoder or BidirectionalBitwise(),
        group_size=group_size,
        backend=backend,
    )


def set_settings(model: SpikingBrainForCausalLM, settings: SpikingBrainConfig) -> None:
    """Let every part of a model go by other settings; its modules must fit them."""
    for name, value in settings.to_dict().items():
        setattr(model.config, name, value)
    model.model.settings = settings
    for module in model.modules():
        if isinstance(module, Attention):
            module.config = settings
