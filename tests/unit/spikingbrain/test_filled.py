"""A cache that was filled with random numbers beside one that a text has filled."""

import pytest
import torch

from spikebrain import to_spiking
from spikebrain.errors import InputError
from spikebrain.models.conversion.to_spiking import spikingbrain_settings
from spikebrain.models.spikingbrain import SpikingBrainCache, SpikingBrainForCausalLM, parse_layers, tiny_7b
from spikebrain.models.spikingbrain.filled import filled_cache

HYBRID = {"layers": parse_layers("gla,swa,gla+swa"), "window": 6}
MODELS = {
    "hybrid, on spikes": (HYBRID, "as-described"),
    "hybrid, as released": (HYBRID, "as-released"),
    "hybrid, float": (HYBRID, None),
    "with sinks and a full layer": (HYBRID | {"num_sinks": 3, "layers": parse_layers("gla+full,swa")}, "as-described"),
    "a Transformer": ({"layers": parse_layers("full,full")}, "as-described"),
}


def made(name):
    changes, attention = MODELS[name]
    torch.manual_seed(0)
    model = SpikingBrainForCausalLM(tiny_7b(**changes)).eval()
    return to_spiking(model, spikingbrain_settings(attention), inplace=True) if attention else model


@pytest.mark.parametrize("num_tokens", [1, 6, 7, 20])
@pytest.mark.parametrize("name", list(MODELS))
@torch.inference_mode()
def test_decoding_from_it_is_decoding_after_a_text(name, num_tokens):
    model = made(name)
    text = SpikingBrainCache(model.settings)
    model(torch.randint(0, 256, (1, num_tokens)), cache=text)
    filled = filled_cache(model, num_tokens)
    assert (filled.num_tokens, filled.num_valid.tolist(), filled.is_padded) == (num_tokens, [num_tokens], False)
    assert filled.num_bytes == text.num_bytes
    for ours, theirs in zip(filled.layers, text.layers, strict=True):
        assert (ours.columns is None) == (theirs.columns is None)
        if ours.columns is not None:
            assert vars(ours.columns).keys() == vars(theirs.columns).keys()
            assert ours.columns.num_pinned == theirs.columns.num_pinned == model.settings.num_sinks
            assert torch.equal(ours.columns.tensors[-1], theirs.columns.tensors[-1])  # which columns are text
        for random, real in zip(ours.tensors(), theirs.tensors(), strict=True):
            assert (random.shape, random.dtype) == (real.shape, real.dtype)
            random.copy_(real)  # now only what the function decides besides the numbers can differ
    for token in torch.randint(0, 256, (10, 1, 1)):
        expected = model(token, cache=text).logits
        assert torch.equal(model(token, cache=filled).logits, expected)


@torch.inference_mode()
def test_the_state_does_not_grow_beyond_the_window():
    model = made("hybrid, on spikes")
    sizes = [filled_cache(model, num).num_bytes for num in (7, 8, 1000, 10**9)]
    assert len(set(sizes)) == 1
    # Three layers, 2 key heads of 8: two states of 8 x 8 float32; two windows of 7 columns of two INT8 vectors and
    # scales, and a flag.
    heads, dim = model.settings.num_kv_heads, model.settings.dim
    assert sizes[0] == 2 * heads * dim * dim * 4 + 2 * 7 * (heads * 2 * (dim + 4) + 1)
    cache = filled_cache(model, 10**9)
    for token in torch.randint(0, 256, (20, 1, 1)):
        assert model(token, cache=cache).logits.isfinite().all()
        assert cache.num_bytes == sizes[0]
    grows = made("a Transformer")
    first, second = (filled_cache(grows, num).num_bytes for num in (10_000, 20_000))
    assert second == 2 * first


def test_numbers_are_random_and_repeat_with_the_seed():
    model = made("hybrid, on spikes")
    one, same, other = (filled_cache(model, 5, seed=seed) for seed in (1, 1, 2))
    for a, b, c in zip(*(list(cache.layers[0].tensors()) for cache in (one, same, other)), strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


@pytest.mark.parametrize("num_tokens", [0, -3, 2.0, True, None, "4"])
@pytest.mark.usefixtures("as_users")
def test_a_length_that_is_none(num_tokens):
    with pytest.raises(InputError, match=r"filled_cache.num_tokens: expected an integer >= 1, got "):
        filled_cache(made("a Transformer"), num_tokens)


def test_a_length_beyond_the_models_positions():
    model = SpikingBrainForCausalLM(tiny_7b(max_position_embeddings=32)).eval()
    assert filled_cache(model, 31).num_tokens == 31
    with pytest.raises(InputError, match=r"expected at most 31, as the model was made for texts of 32 .* got 32"):
        filled_cache(model, 32)
