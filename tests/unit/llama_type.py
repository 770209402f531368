"""Tiny spiking models of the classes that the fast decoders are for, and calls of them; tests share it."""

from inspect import signature

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from spikebrain import AdaptiveThreshold, Cpu, DeadZoneThreshold, LargestMagnitude, SpikeSettings, to_spiking

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 300,
    "max_position_embeddings": 2048,
}
ROPE = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "llama, bias and scaled positions": lambda: LlamaForCausalLM(
        LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True, rope_parameters=ROPE, tie_word_embeddings=True)
    ),
    "mistral, wide heads": lambda: MistralForCausalLM(MistralConfig(**SIZES, head_dim=24, sliding_window=None)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES, use_sliding_window=False)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=32)),
}
SETTINGS = {
    "all": SpikeSettings(),
    "head too, rare spikes": SpikeSettings(include_head=True, neuron=AdaptiveThreshold(0.7)),
    "counts of three digits": SpikeSettings(neuron=AdaptiveThreshold(400.0), backend=Cpu()),
    "half dense": SpikeSettings(layers=("*.q_proj", "*.v_proj", "*.up_proj", "*.o_proj")),
    "4 bits, head too": SpikeSettings(weights="int4", include_head=True),
    "small counts read 2 bits, of 4": SpikeSettings(
        weights="int4", include_head=True, coarse=((2, 4),), neuron=AdaptiveThreshold(8.0)
    ),
    "2 and 4 bits of 8, in some layers": SpikeSettings(
        coarse={"*proj": ((2, 1), (4, 4))}, neuron=AdaptiveThreshold(8.0), include_head=True
    ),
    "dead zone": SpikeSettings(neuron=DeadZoneThreshold(8.0, dead_zone=0.5), include_head=True),
    "largest magnitude": SpikeSettings(neuron=LargestMagnitude(), include_head=True),
    "4 bits, dead zone": SpikeSettings(neuron=DeadZoneThreshold(8.0, dead_zone=0.5), weights="int4"),
    "groups of 24 in 8 bits, sums of 32 bits": SpikeSettings(group_size=24, neuron=AdaptiveThreshold(40.0)),
}


def spiking_model(name="llama", settings=None):
    model = MODELS[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():  # norms and biases that are not 1 and 0
            parameter.add_(0.1 * torch.randn_like(parameter))
    return to_spiking(model, settings or SpikeSettings(), inplace=True)


def plain_forward(model, **options):
    return type(model).forward(model, **options)


def cache_of(output):
    return output.cache if hasattr(output, "cache") else output.past_key_values


def cache_option(cache):
    return {"cache" if "cache" in signature(LlamaForCausalLM.forward).parameters else "past_key_values": cache}


def tokens_of(model, ids, num_tokens=20, **options):
    return model.generate(
        ids, max_new_tokens=num_tokens, min_new_tokens=num_tokens, do_sample=False, pad_token_id=0, **options
    )
