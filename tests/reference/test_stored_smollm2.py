"""The real model with the integers of its file: as floats they are the model that was loaded, digit for digit."""

from pydoc_data.topics import topics

import pytest
import torch

import spikebrain as sb
from spikebrain.analysis import measure_perplexity, split_windows
from spikebrain.errors import CheckpointError
from spikebrain.models.layers import spiking_layers


@pytest.mark.slow
@pytest.mark.model
def test_perplexity_with_float_activations_is_that_of_the_loaded_model():
    try:
        model, tokenizer, _ = sb.load()
    except CheckpointError as error:
        pytest.skip(f"the default model is neither in the cache nor to be had: {error}")
    stored = sb.to_spiking(model, sb.SpikeSettings(weights="stored", include_head=True))
    assert not stored.conversion.rounded
    assert (
        len(stored.conversion.converted) == 211
    )  # 210 projections of type Q4_1, and the head, tied to a Q8_0 embedding
    assert {(layer.weight_bits, layer.group_size) for layer in spiking_layers(stored).values()} == {(4, 32), (8, 32)}
    assert stored.lm_head.weight_bits == 8
    ids = tokenizer(topics["assert"], return_tensors="pt").input_ids[0, :256]
    windows = split_windows(ids, 128)
    assert measure_perplexity(sb.to_dense(stored), windows) == measure_perplexity(model, windows)
    assert torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)
