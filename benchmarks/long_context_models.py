"""Models of Llama-3.2-1B's shapes with random weights, for long_context_cpu.py."""

from __future__ import annotations

from typing import Any

import torch
from long_context_llama_cpp import HEAD_DIM, HEADS, HIDDEN, INNER, KEY_HEADS, LAYERS, VOCABULARY
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

import spikebrain as sb
from spikebrain.models.conversion.to_spiking import set_settings, spikingbrain_settings
from spikebrain.models.decoding import attach_decoder
from spikebrain.models.layers.quantize import QuantizedWeight
from spikebrain.models.layers.spike_linear import SpikeLinear
from spikebrain.models.spikingbrain import (
    SpikingBrainConfig,
    SpikingBrainForCausalLM,
    SpikingBrainPretrainedConfig,
    layout,
    parse_layers,
)

# More than the longest text that is measured, and the tokens after it.
POSITIONS = 2**18 + 2**12
_GROUP = 32


def spiking(kind: str, generator: torch.Generator, like: Any = None) -> SpikingBrainForCausalLM:
    """Return a model on spikes with 4-bit weights in groups of 32, made one layer after the other.

    Args:
        kind: "hybrid": linear and window attention in turns, as in SpikingBrain-7B, window 4096; "full": full attention
            in all layers. Keys and values are INT8, as in SpikingBrain.
        generator: of the weights.
        like: a model whose layers are used where it has them, to save memory; None for none.
    """
    plans = layout("7b", LAYERS) if kind == "hybrid" else parse_layers(",".join(["full"] * LAYERS))
    settings = SpikingBrainConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        num_heads=HEADS,
        num_kv_heads=KEY_HEADS,
        head_dim=HEAD_DIM,
        intermediate_size=INNER,
        layers=plans,
        rope_theta=5e5,
        norm_eps=1e-5,
        qkv_bias=False,
        tie_word_embeddings=True,
        max_position_embeddings=POSITIONS,
    )
    with torch.device("meta"):
        model = SpikingBrainForCausalLM(SpikingBrainPretrainedConfig(settings)).eval()
    return _filled(model, spikingbrain_settings(), generator, like)


def spiking_llama(generator: torch.Generator) -> Any:
    """Return a Llama of transformers with the same spiking layers, whose keys and values are float32."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(llama_config()).eval()
    return _filled(model, sb.SpikeSettings(), generator, None)


def dense_llama(dtype: torch.dtype, generator: torch.Generator) -> Any:
    """Return a Llama of transformers with dense weights."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(llama_config(), dtype=dtype, attn_implementation="sdpa").eval()
    model.to_empty(device="cpu")
    for parameter in model.parameters():
        parameter.data.normal_(std=0.02, generator=generator) if parameter.ndim == 2 else parameter.data.fill_(1)
    model.tie_weights()
    return model


def llama_config() -> LlamaConfig:
    return LlamaConfig(
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_HEADS,
        head_dim=HEAD_DIM,
        vocab_size=VOCABULARY,
        max_position_embeddings=POSITIONS,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 5e5},
        tie_word_embeddings=True,
    )


def _filled(model: Any, settings: sb.SpikeSettings, generator: torch.Generator, like: Any) -> Any:
    """Give a model on the meta device weights: 4-bit integers with 16-bit scales for linear layers, the head too."""
    there = {} if like is None else dict(like.named_modules())
    if like is not None:
        model.model.embeddings = like.model.embeddings
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear):
            parent, _, child = name.rpartition(".")
            layer = there.get(name) or _random_layer(name, module, settings, generator)
            setattr(model.get_submodule(parent), child, layer)
    for name, parameter in list(model.named_parameters()):
        owner, _, child = name.rpartition(".")
        if parameter.is_meta:
            value = torch.ones(parameter.shape)
            if parameter.ndim == 2:
                value.normal_(generator=generator)  # the embedding
            model.get_submodule(owner).register_parameter(child, nn.Parameter(value))
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_meta:  # of the rotary embedding, which depends on the configuration only
                fresh = type(module)(model.config)
                setattr(module, name, getattr(fresh, name))
    if isinstance(model, SpikingBrainForCausalLM):
        set_settings(model, model.settings.replace(spiking=settings.attention))
    attach_decoder(model)
    return model


def _random_layer(name: str, layer: nn.Linear, settings: sb.SpikeSettings, generator: torch.Generator) -> SpikeLinear:
    """Return a spiking layer whose outputs are about as large as its inputs."""
    num_outputs, num_inputs = layer.weight.shape
    weight = torch.empty(num_inputs, num_outputs, dtype=torch.int8).random_(-8, 8, generator=generator).t()
    scale = torch.rand(num_outputs, -(-num_inputs // _GROUP), generator=generator) / 2 + 0.75
    scale = (scale * num_inputs**-0.5 / 4.6).half().float()  # as Q4_0 has them; 4.6 is the spread of the integers
    bias = None if layer.bias is None else nn.Parameter(torch.zeros(num_outputs))
    integers = QuantizedWeight(weight, scale, None, _GROUP, 4)
    return SpikeLinear.from_quantized(integers, bias, name=name, neuron=settings.neuron_of(name))
