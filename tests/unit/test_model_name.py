"""Titles call a model by its whole name, dots included."""

import pytest

from spikebrain.paths import model_name


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("Qwen/Qwen2.5-7B", "Qwen2.5-7B"),
        ("models/budget0.57", "budget0.57"),
        ("SmolLM2.Q4_1.gguf", "SmolLM2.Q4_1"),
        ("saved.SAFETENSORS", "saved"),
        ("smollm2", "smollm2"),
    ],
)
def test_only_endings_of_files_are_left_out(source, name):
    assert model_name(source) == name
