"""Tiny Transformers, and how far what was converted from them is off."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from spikebrain.models.conversion.layerwise import Surroundings, trace

SIZES = {
    "vocab_size": 97,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "eos_token_id": 5,
}


def llama(**changes):
    return LlamaForCausalLM(LlamaConfig(**{**SIZES, "bos_token_id": 3, "tie_word_embeddings": True, **changes})).eval()


def qwen(**changes):
    model = Qwen2ForCausalLM(Qwen2Config(**{**SIZES, "tie_word_embeddings": False, **changes})).eval()
    for name, parameter in model.named_parameters():
        if name.endswith(("bias", "norm.weight")):
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return model


@torch.no_grad()
def logits(model, ids):
    return model(ids).logits


def error_of(student, teacher, ids, layer=0):
    """Return the squared error of a layer's attention on the Transformer's input, relative to its output."""
    with torch.no_grad():
        found = trace(teacher, ids)[layer]
        around = Surroundings(student, ids, found.normed.dtype)
        o = student.model.layers[layer].attn(found.normed, around.context, around.state(layer))
    return float((o - found.attended).square().sum() / found.attended.square().sum())
