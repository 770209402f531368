"""Whatever the layout, the sizes and the cuts of a text: parts give what the whole gives, and rows are independent."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spikebrain.models.spikingbrain import SpikingBrainCache, SpikingBrainForCausalLM, tiny_76b
from spikebrain.models.spikingbrain.gla import chunked_gla, recurrent_gla

plans = st.sampled_from(["gla", "swa", "full", "gla+swa", "gla+full/moe", "gla+swa/moe"])
few = settings(max_examples=15, deadline=None)


@pytest.mark.slow
@given(length=st.integers(1, 90), chunk_size=st.integers(1, 100), shared=st.integers(1, 3), seed=st.integers(0, 99))
@few
def test_chunks_equal_the_recurrence(length, chunk_size, shared, seed):
    torch.manual_seed(seed)
    q, (k, gate) = torch.randn(1, length, 2 * shared, 4), torch.randn(2, 1, length, 2, 4)
    v, g, state = torch.randn(1, length, 2, 3), torch.nn.functional.logsigmoid(gate), torch.randn(1, 2, 4, 3)
    for ours, expected in zip(
        chunked_gla(q, k, v, g, state, chunk_size), recurrent_gla(q, k, v, g, state), strict=True
    ):
        # G_i - G_j is as exact as float32 holds G, which reaches some 80 in the longest chunks.
        torch.testing.assert_close(ours, expected, atol=2e-5, rtol=2e-5)


@pytest.mark.slow
@given(
    layers=st.lists(plans, min_size=1, max_size=3),
    window=st.integers(1, 9),
    window_keys=st.sampled_from(["w", "w+1"]),
    num_sinks=st.integers(0, 3),
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=6),
    padding=st.integers(0, 5),
    seed=st.integers(0, 99),
)
@few
def test_parts_equal_the_whole(layers, window, window_keys, num_sinks, lengths, padding, seed):
    torch.manual_seed(seed)
    sizes = {"hidden_size": 8, "num_heads": 2, "num_kv_heads": 1, "head_dim": 4, "intermediate_size": 8}
    choices = {"window": window, "window_keys": window_keys, "num_sinks": num_sinks, "initializer_range": 0.3}
    model = SpikingBrainForCausalLM(tiny_76b(vocab_size=11, layers=layers, **sizes, **choices)).eval().double()
    ids = torch.randint(0, 11, (2, sum(lengths)))
    mask = torch.ones_like(ids)
    mask[0, : min(padding, sum(lengths) - 1)] = 0
    text, cache = mask.bool(), SpikingBrainCache(model.settings)
    with torch.no_grad():
        whole = model(ids, attention_mask=mask).logits
        parts = []
        for part in ids.split(lengths, 1):
            seen = cache.num_tokens + part.shape[1]
            parts.append(model(part, attention_mask=mask[:, :seen], cache=cache).logits)
        alone = model(ids[:1, text[0]]).logits[0]
    torch.testing.assert_close(torch.cat(parts, 1)[text], whole[text], atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(alone, whole[0, text[0]], atol=1e-9, rtol=1e-9)
