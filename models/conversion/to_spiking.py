"""Put any model on spikes.

A SpikingBrain model has W8A-spike in two settings: projections on spike trains, queries as spike counts, and INT8 keys
and values.
"as-described" is the report's claim and our default: every projection spikes, down_proj and the gate's included, and
the cache keeps INT8 keys and values. "as-released" computes what the released code does: down_proj stays dense and
unrounded, and the cache keeps floats, which are rounded to INT8 whenever they are used. In both, the router of a
mixture of experts and the output head stay dense: the router only selects experts, and the released code leaves the
head alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from torch import Tensor, nn

from ...backends import Backend
from ...coding import BidirectionalBitwise, Encoder
from ...errors import InputError
from ...module_check import check_module
from ...neuro import AdaptiveThreshold
from ..decoding import attach_decoder
from ..layers.attention_interface import set_counts
from ..layers.settings import ATTENTION, COUNTED, SpikeSettings, neuron_with_k
from ..layers.spike_linear import SpikeLinear
from ..layers.swap import swap_linears
from ..spikingbrain.attention import Attention
from ..spikingbrain.causal_lm import SpikingBrainForCausalLM
from ..spikingbrain.config import SpikingBrainConfig

Model = TypeVar("Model", bound=nn.Module)

_LAYERS = {
    "as-described": ("*_proj", "*.gk_proj.?"),
    "as-released": ("*.attn.?_proj", "*.attn.gk_proj", "*.attn.gk_proj.?", "*.gate_proj", "*.up_proj"),
}


def to_spiking(
    model: Model,
    settings: SpikeSettings | None = None,
    *,
    inplace: bool = False,
    scales: Mapping[str, Tensor] | None = None,
) -> Model:
    """Return the model on spikes: its linear layers, and with `settings.attention` its softmax attention.

    A layer used in several places becomes one spiking layer, and an output head that is tied to the embedding leaves
    the embedding as it is. A layer whose weights other code needs is skipped where a method of its parent reads
    `self.NAME.weight`; other such layers must be left out (`skip`).

    Args:
        model: any PyTorch model; `nn.Linear` and transformers' `Conv1D` modules are swapped for `SpikeLinear`.
        settings: which layers, and how; None for `SpikeSettings()`, or for a SpikingBrain model
            `spikingbrain_settings()`.
        inplace: change the model itself; else work on a copy and leave the model as it was.
        scales: by name of the layer, weight scales from a checkpoint.
    Returns:
        The spiking model. Its attribute `conversion` says what was converted, and what was skipped and why.
    Raises:
        InputError: the settings are no SpikeSettings, no layer matches, a pattern matches nothing, a weight is not
            finite, not in memory or no dense tensor, scales do not fit their layer, the attention of a model cannot
            spike, or a SpikingBrain model spikes already.

    Source:
        SpikingBrain (arXiv:2509.05276), section 3.3; its W8ASpike code.
    """
    check_module("to_spiking", model)
    if settings is not None and not isinstance(settings, SpikeSettings):
        raise InputError(f"to_spiking: expected SpikeSettings(...) as settings, got {settings!r}.")
    if not isinstance(model, SpikingBrainForCausalLM):
        settings = settings or SpikeSettings()
        if settings.attention in ATTENTION:
            raise InputError(
                f"to_spiking: expected attention=None or {COUNTED!r} for a {type(model).__name__}, got "
                f"{settings.attention!r}, which is for SpikingBrain models."
            )
        spiking = stop_rescaling(swap_linears(model, settings, inplace=inplace, scales=scales))
        if settings.attention == COUNTED:
            set_counts(spiking)
        attach_decoder(spiking)
        return spiking  # pyright: ignore[reportReturnType]
    settings = settings or spikingbrain_settings()
    if settings.attention == COUNTED:
        raise InputError(
            f"to_spiking: expected attention=None or one of {ATTENTION} for a SpikingBrain model, got {COUNTED!r}, "
            'which is for Transformers. "as-described" has its queries on counts, too.'
        )
    before = model.settings
    if before.spiking is not None and settings.attention is not None:
        raise InputError(f"to_spiking: expected a float model, got one that spikes {before.spiking}.")
    spiking = swap_linears(model, settings, inplace=inplace, scales=scales)
    assert isinstance(spiking, SpikingBrainForCausalLM)
    if settings.attention is not None:
        k = k_of_queries(settings, len(before.layers))
        set_settings(spiking, before.replace(spiking=settings.attention, k=k, group_size=settings.group_size))
    attach_decoder(spiking)
    return spiking


def stop_rescaling(model: nn.Module) -> nn.Module:
    """Undo that RWKV halves weights of later blocks in place when it first runs, which INT8 weights do not allow.

    The halving keeps FP16 activations small, and is made up for between blocks: without both, the results are the same.

    Args:
        model: any spiking model; changed in place.
    """
    for rwkv in model.modules():
        config: Any = getattr(rwkv, "config", None)
        if not hasattr(rwkv, "layers_are_rescaled") or not getattr(config, "rescale_every", 0):
            continue
        if rwkv.layers_are_rescaled:
            for i, block in enumerate(rwkv.blocks):  # pyright: ignore[reportArgumentType]
                for layer in (block.attention.output, block.feed_forward.value):
                    spikes = isinstance(layer, SpikeLinear)
                    for weight in (layer.scale, layer.minimum) if spikes else (layer.weight.data,):
                        if weight is not None:
                            weight.mul_(2 ** (i // config.rescale_every))
        config.rescale_every = 0
    return model


def spikingbrain_settings(
    attention: str = "as-described",
    *,
    k: float | Mapping[str, float] = 3.0,
    weights: str = "int8",
    group_size: int | None = None,
    encoder: Encoder | str | None = None,
    backend: Backend | Literal["auto"] | str = "auto",
) -> SpikeSettings:
    """Return the settings of a published SpikingBrain model.

    Args:
        attention: "as-described" or "as-released"; it also says which projections spike.
        k: of the adaptive threshold, of projections and queries: one for all, or one for each pattern of names, of
            which the first that matches counts. All query projections must have the same.
        weights: "int8", "int4" or "stored", as in `SpikeSettings`.
        group_size: input channels that share a weight scale; None for all, with "int4" for 32.
        encoder: turns counts into spikes; None for the bidirectional bitwise code.
        backend: accumulates spikes; "auto" picks the fastest.
    Raises:
        InputError: an unknown kind of attention.
    """
    if attention not in ATTENTION:
        raise InputError(f"spikingbrain_settings.attention: expected one of {ATTENTION}, got {attention!r}.")
    return SpikeSettings(
        layers=_LAYERS[attention],
        neuron=neuron_with_k(k),
        encoder=BidirectionalBitwise() if encoder is None else encoder,
        weights=weights,
        group_size=group_size,
        backend=backend,
        attention=attention,
    )


def k_of_queries(settings: SpikeSettings, num_layers: int) -> float:
    """Return the k with which queries of softmax attention become counts: that of the query projections' neuron.

    Raises:
        InputError: that neuron is no `AdaptiveThreshold`, or not the same in all layers.
    """
    neuron, *others = [settings.neuron_of(f"model.layers.{i}.attn.q_proj") for i in range(num_layers)]
    other = next((other for other in others if other != neuron), None)
    if other is not None:
        raise InputError(
            f"SpikeSettings.neuron: expected the same one for all query projections, got {neuron!r} and {other!r}. "
            "Name them by a pattern such as '*q_proj', before other patterns."
        )
    if type(neuron) is not AdaptiveThreshold:
        raise InputError(
            f"SpikeSettings.neuron: expected AdaptiveThreshold for spiking attention, got {type(neuron).__name__}. Use "
            "it for *.q_proj, or leave attention in floating point with attention=None."
        )
    return neuron.k


def set_settings(model: SpikingBrainForCausalLM, settings: SpikingBrainConfig) -> None:
    """Let every part of a model go by other settings; its modules must fit them."""
    for name, value in settings.to_dict().items():
        setattr(model.config, name, value)
    model.model.settings = settings
    for module in model.modules():
        if isinstance(module, Attention):
            module.config = settings
