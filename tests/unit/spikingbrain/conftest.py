"""A tiny Transformer and some tokens."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM


def make_teacher():
    torch.manual_seed(3)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=61,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            initializer_range=0.3,
            tie_word_embeddings=True,
        )
    ).eval()


@pytest.fixture
def teacher():
    return make_teacher()


@pytest.fixture
def tokens():
    return torch.randint(0, 61, (600,), generator=torch.Generator().manual_seed(4))
