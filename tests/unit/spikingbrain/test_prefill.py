"""Prefill in portions: the numbers of one call, memory that does not grow, and bad input."""

import pytest
import torch

import spikebrain as sb
from spikebrain.errors import InputError
from spikebrain.models.spikingbrain import SpikingBrainCache, parse_layers, tiny_7b, tiny_76b


def model_of(preset=tiny_7b, *, spiking=False, **changes):
    model = sb.SpikingBrainForCausalLM(preset(**changes)).eval()
    return sb.to_spiking(model) if spiking else model


@pytest.mark.parametrize("spiking", [False, True])
@pytest.mark.parametrize(
    ("preset", "changes"),
    [(tiny_7b, {"window": 10}), (tiny_76b, {"window": 7}), (tiny_7b, {"layers": parse_layers("full,gla+full")})],
)
def test_portions_give_the_numbers_of_one_call(preset, changes, spiking):
    model = model_of(preset, spiking=spiking, **changes)
    ids = torch.randint(256, (2, 45))
    with torch.no_grad():
        expected = model(ids, cache=(whole := SpikingBrainCache(model.settings)), logits_to_keep=1).logits
    seen = []
    found = sb.prefill(model, ids, portion=16, done=seen.append)
    assert seen == [16, 16, 13]
    tolerance = 0.02 if spiking else 1e-5  # a count may differ by one where float rounding differs
    torch.testing.assert_close(found.logits, expected, atol=tolerance, rtol=tolerance)
    assert found.cache.num_bytes == whole.num_bytes
    # It goes on from a cache.
    half = sb.prefill(model, ids[:, :20], portion=16)
    rest = sb.prefill(model, ids[:, 20:], portion=100, cache=half.cache)
    assert rest.cache.num_tokens == 45
    torch.testing.assert_close(rest.logits, expected, atol=tolerance, rtol=tolerance)


def test_the_state_does_not_grow():
    model = model_of(window=10)
    sizes = {sb.prefill(model, torch.zeros(1, n, dtype=torch.int64), portion=20).cache.num_bytes for n in (20, 60, 400)}
    assert len(sizes) == 1


@pytest.mark.usefixtures("as_users")
def test_bad_input():
    model, ids = model_of(), torch.zeros(1, 8, dtype=torch.int64)
    for portion in (0, -1, 2.0, True):
        with pytest.raises(InputError, match=r"prefill.portion: expected a number of tokens >= 1, got"):
            sb.prefill(model, ids, portion=portion)
    with pytest.raises(InputError, match="at least one token"):
        sb.prefill(model, ids[:, :0])
    with pytest.raises(InputError, match="expected a SpikingBrainCache"):
        sb.prefill(model, ids, cache=object())
    with pytest.raises(InputError, match=r"ends at token 8, and the model was made for 7 positions\. Shorten it"):
        sb.prefill(model_of(max_position_embeddings=7), ids)
    with pytest.raises(InputError, match="expected a model on a CUDA GPU, got one on cpu"):
        sb.PrefillGraph(model, 8)


def test_a_portion_that_does_not_fit_leaves_the_state_as_it_was(monkeypatch):
    model = model_of(window=5)
    ids = torch.randint(256, (1, 30))
    expected = sb.prefill(model, ids[:, :10])
    cache = sb.prefill(model, ids[:, :10]).cache
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (2**20, 2**30))
    mlp = model.model.layers[2].mlp
    with monkeypatch.context() as patch:

        def too_large(x):
            raise torch.OutOfMemoryError("no memory")

        patch.setattr(mlp, "forward", too_large)
        with pytest.raises(InputError, match=r"a portion of 20 tokens x 1 does not fit .* pass portion=\d+"):
            sb.prefill(model, ids[:, 10:], cache=cache)
    assert cache.num_tokens == 10
    again, right = (sb.prefill(model, ids[:, 10:], cache=one).logits for one in (cache, expected.cache))
    assert torch.equal(again, right)
