"""The compiled decoder of SpikingBrain models beside the models' own code, and its parts beside the plain rules."""

import copy
import gc
import weakref

import numpy as np
import pytest
import torch
from fast_first import fast_first
from torch.nn import functional as F

import spikebrain
from spikebrain import (
    AdaptiveThreshold,
    DeadZoneThreshold,
    SpikeLinear,
    SpikeSettings,
    describe_decoding,
    record,
    to_spiking,
)
from spikebrain.backends.cpu import hybrid
from spikebrain.models.conversion.to_spiking import spikingbrain_settings
from spikebrain.models.decoding import decoder_of
from spikebrain.models.decoding.hybrid import HybridDecoder
from spikebrain.models.spikingbrain import (
    SpikingBrainCache,
    SpikingBrainForCausalLM,
    parse_layers,
    tiny_7b,
    tiny_76b,
)
from spikebrain.models.spikingbrain.gla import recurrent_gla
from spikebrain.models.spikingbrain.int8 import quantize_tokens

LAYERS = parse_layers("gla,full,gla+swa,swa")
MODELS = {
    "7b": lambda: (tiny_7b(window=5), spikingbrain_settings()),
    "76b": lambda: (tiny_76b(window=5), spikingbrain_settings()),
    "76b, equal experts": lambda: (tiny_76b(window=5, equal_experts=True), spikingbrain_settings(weights="int4")),
    "76b, two of four experts": lambda: (
        tiny_76b(num_experts_per_token=2, num_shared=2, expert_intermediate_size=40, tie_word_embeddings=True),
        spikingbrain_settings(k=40.0),
    ),
    "full gate, window of w keys": lambda: (
        tiny_7b(layers=LAYERS, gate="full", window=3, window_keys="w", num_sinks=3, qkv_bias=False),
        spikingbrain_settings(),
    ),
    "4 bits, wide heads": lambda: (
        tiny_7b(layers=LAYERS, head_dim=24, gate_rank=32),
        spikingbrain_settings(weights="int4"),
    ),
    "attention in float, head too": lambda: (
        tiny_7b(layers=LAYERS, window=5),
        SpikeSettings(layers=("*_proj", "*.gk_proj.0", "lm_head"), include_head=True),
    ),
    "dead zone": lambda: (
        tiny_76b(window=5),
        SpikeSettings(layers=("*_proj",), neuron=DeadZoneThreshold(8.0, dead_zone=0.5)),
    ),
    "half dense": lambda: (
        tiny_76b(window=5),
        SpikeSettings(layers=("*.q_proj", "*.up_proj", "*.experts.1.*"), attention="as-described"),
    ),
}


def spiking_model(name="7b"):
    config, settings = MODELS[name]()
    model = SpikingBrainForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # norms and biases that are not 1 and 0
            parameter.add_(0.1 * torch.randn_like(parameter))
    return to_spiking(model, settings, inplace=True)


def plain_forward(model, ids, cache, **options):
    return SpikingBrainForCausalLM.forward(model, ids, cache=cache, **options)


def prompt_read(model, length=4):
    cache = SpikingBrainCache(model.settings)
    plain_forward(model, torch.randint(0, 256, (1, length)), cache)
    return cache


def assert_same(ours, theirs):
    assert ours.num_tokens == theirs.num_tokens
    assert torch.equal(ours.num_valid, theirs.num_valid)
    for mine, other in zip(ours.layers, theirs.layers, strict=True):
        for part, expected in zip(mine.tensors(), other.tensors(), strict=True):
            assert part.dtype == expected.dtype
            # A code may lie on a rounding's edge.
            tolerance = 2e-5 if part.dtype == torch.float32 else 1
            torch.testing.assert_close(part.float(), expected.float(), rtol=2e-5, atol=tolerance)


@pytest.fixture
def calls(monkeypatch):
    """Lengths of the text before each token that the decoder has done."""
    found = []
    step = HybridDecoder.step

    def noting(self, ids, cache, *rest):
        output = step(self, ids, cache, *rest)
        found.extend([] if output is None else [cache.num_tokens - 1])
        return output

    monkeypatch.setattr(HybridDecoder, "step", noting)
    return found


@pytest.mark.parametrize("name", fast_first(MODELS))
@torch.inference_mode()
def test_integers_are_exact_and_logits_and_state_those_of_the_model(name, threads):
    torch.manual_seed(0)
    model = spiking_model(name)
    cache = prompt_read(model)
    decoder = decoder_of(model)
    pairs = zip(decoder.tables.projections, decoder.tables.modules, strict=True)
    spiking = [(row, layer) for row, layer in pairs if isinstance(layer, SpikeLinear)]
    inputs = [torch.empty(layer.in_features) for _, layer in spiking]
    sums = [torch.empty(len(layer.groups), layer.out_features, dtype=torch.int32) for _, layer in spiking]
    for (row, _), x, total in zip(spiking, inputs, sums, strict=True):
        row["seen_input"], row["seen_sums"] = x.data_ptr(), total.data_ptr()
    routed = 0
    for _ in range(12):  # the windows of 5 tokens overflow
        token, theirs = torch.randint(0, 256, (1, 1)), copy.deepcopy(cache)
        expected = plain_forward(model, token, theirs)
        for x in inputs:
            x.fill_(torch.nan)
        found = decoder.step(token, cache, None, None)
        for (_, layer), x, total in zip(spiking, inputs, sums, strict=True):
            if x.isnan().any():
                routed += 1
                continue
            count = layer.neuron(x).count.long()
            for one, group in zip(total, layer.groups, strict=True):
                assert torch.equal(one.long(), layer.weight[:, group].long() @ count[group])
        torch.testing.assert_close(found.logits, expected.logits, rtol=2e-5, atol=2e-5 * float(expected.logits.std()))
        assert (found.aux_loss is None) == (expected.aux_loss is None)
        if found.aux_loss is not None:
            torch.testing.assert_close(found.aux_loss, expected.aux_loss)
        assert found.cache is cache
        assert_same(cache, theirs)
    assert (routed > 0) == ("experts" in "".join(n for n, m in model.named_modules() if isinstance(m, SpikeLinear)))


@pytest.mark.parametrize("name", fast_first(["7b", "76b"]))
@torch.inference_mode()
def test_back_and_forth_between_the_decoder_and_the_models_own_code(name, calls):
    torch.manual_seed(1)
    model = spiking_model(name)
    cache, theirs = prompt_read(model), None
    theirs = copy.deepcopy(cache)
    for number in range(24):
        ids = torch.randint(0, 256, (1, 2 if number % 7 == 6 else 1))
        # Every third call with one token and every call with two takes the model's own code.
        if number % 3 == 2:
            found = plain_forward(model, ids, cache).logits
        else:
            found = model(ids, cache=cache).logits
        expected = plain_forward(model, ids, theirs).logits
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * float(expected.std()))
        theirs = copy.deepcopy(cache)
    assert len(calls) == sum(number % 3 != 2 and number % 7 != 6 for number in range(24))


@pytest.mark.parametrize("name", fast_first(["7b", "76b"]))
def test_generate_uses_it_and_gives_the_same_tokens(name, calls, monkeypatch):
    torch.manual_seed(2)
    model = spiking_model(name)
    ids = torch.randint(0, 256, (1, 5))
    options = {"max_new_tokens": 20, "min_new_tokens": 20, "do_sample": False, "pad_token_id": 0}
    found = model.generate(ids, **options)
    assert calls == list(range(5, 5 + 19))  # the first token comes from the prompt's own pass
    monkeypatch.delattr(model, "forward")
    assert torch.equal(found, model.generate(ids, **options))


@pytest.mark.parametrize("name", fast_first(["76b", "76b, equal experts", "76b, two of four experts"]))
@torch.inference_mode()
def test_the_tokens_of_a_mixture_are_those_of_its_prefill(name, calls):
    torch.manual_seed(4)
    model = spiking_model(name)
    prompt = torch.randint(0, 256, (1, 5))
    written = model.generate(prompt, max_new_tokens=16, min_new_tokens=16, do_sample=False, pad_token_id=0)
    assert len(calls) == 15
    logits = plain_forward(model, written, None).logits
    assert torch.equal(logits[:, 4:-1].argmax(-1), written[:, 5:])


@torch.inference_mode()
def test_more_tokens_than_there_is_room_for(calls):
    model = spiking_model("full gate, window of w keys")
    cache = SpikingBrainCache(model.settings)
    ids = torch.randint(0, 256, (1, 300))
    plain_forward(model, ids[:, :2], cache)
    for token in ids[0, 2:]:  # the first room has 263 rows
        logits = model(token.view(1, 1), cache=cache).logits
    assert len(calls) == 298
    theirs = SpikingBrainCache(model.settings)
    plain_forward(model, ids, theirs)
    full = [layer.columns.tensors[0].shape[2] for layer in cache.layers if layer.columns]
    assert full == [layer.columns.tensors[0].shape[2] for layer in theirs.layers if layer.columns] == [303, 6, 6]
    assert logits.isfinite().all()


@torch.inference_mode()
def test_states_that_somebody_holds_do_not_change():
    model = spiking_model()
    cache = prompt_read(model)
    model(torch.tensor([[3]]), cache=cache)
    states = [layer.linear for layer in cache.layers if layer.linear is not None]
    before = [state.clone() for state in states]
    twin = copy.deepcopy(cache)
    model(torch.tensor([[4]]), cache=cache)
    assert all(torch.equal(state, same) for state, same in zip(states, before, strict=True))
    model(torch.tensor([[4]]), cache=twin)
    assert_same(cache, twin)


@torch.inference_mode()
def test_what_is_not_one_plain_token_takes_the_models_own_code(calls):
    model = spiking_model()
    token = torch.tensor([[3]])
    model(token)
    model(token, cache=SpikingBrainCache(model.settings))
    model(torch.tensor([[3, 4]]), cache=prompt_read(model))
    model(token, cache=prompt_read(model), output_hidden_states=True)
    model(token, cache=prompt_read(model), labels=token)
    model(token, cache=prompt_read(model), attention_mask=torch.zeros(1, 1))
    assert model(token, cache=prompt_read(model), use_cache=False).cache is None
    two = SpikingBrainCache(model.settings)
    plain_forward(model, torch.randint(0, 256, (2, 4)), two)
    model(token.expand(2, 1), cache=two)
    padded = SpikingBrainCache(model.settings)
    plain_forward(model, torch.randint(0, 256, (1, 4)), padded, attention_mask=torch.tensor([[0, 1, 1, 1]]))
    model(token, cache=padded, attention_mask=torch.tensor([[0, 1, 1, 1, 1]]))
    with record(model):
        model(token, cache=prompt_read(model))
    assert calls == []
    model(token, cache=prompt_read(model), attention_mask=torch.ones(1, 5), position_ids=torch.tensor([[4]]))
    model(input_ids=token, past_key_values=prompt_read(model))
    assert calls == [4, 4]


@torch.inference_mode()
def test_a_cache_of_another_model_is_left_to_the_models_own_code(calls):
    cache = prompt_read(first := spiking_model())
    first(torch.tensor([[3]]), cache=cache)
    other = spiking_model("full gate, window of w keys")
    assert decoder_of(other).step(torch.tensor([[3]]), cache, None, None) is None
    assert calls == [4]


@pytest.mark.parametrize("layers", ["gla", "swa", "full,full"])
@torch.inference_mode()
def test_layers_of_one_kind(layers, calls):
    model = to_spiking(SpikingBrainForCausalLM(tiny_7b(layers=parse_layers(layers), window=5)).eval())
    cache = prompt_read(model)
    for number in range(4):
        theirs = copy.deepcopy(cache)
        token = torch.tensor([[number]])
        expected = plain_forward(model, token, theirs).logits
        found = model(token, cache=cache).logits
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.std()))
    assert len(calls) == 4


@torch.inference_mode()
def test_a_token_that_needs_the_separate_steps_leaves_the_cache_to_them():
    model = spiking_model()
    cache = prompt_read(model)
    model(torch.tensor([[3]]), cache=cache)
    before = copy.deepcopy(cache)
    model.model.layers[2].mlp_norm.weight[3] = torch.nan
    assert decoder_of(model).step(torch.tensor([[4]]), cache, None, None) is None
    assert_same(cache, before)
    with pytest.raises(spikebrain.SpikebrainError, match=r"layers\.2\.mlp\.gate_proj"):
        model(torch.tensor([[4]]), cache=cache)


@pytest.mark.parametrize(("k", "fits"), [(1000.0, True), (3000.0, False)])
@torch.inference_mode()
def test_query_counts_whose_products_might_not_be_exact_take_the_models_own_code(k, fits):
    """A head of 64 channels has a sum of |count| of about 64 k; products are exact up to 2^24 / 128 = 131,072."""
    config = tiny_7b(layers=parse_layers("swa,full"), head_dim=64)
    model = to_spiking(SpikingBrainForCausalLM(config).eval(), spikingbrain_settings(k=k))
    cache = prompt_read(model)
    before, token = copy.deepcopy(cache), torch.tensor([[4]])
    assert (decoder_of(model).step(token, cache, None, None) is not None) == fits
    if not fits:
        assert_same(cache, before)
        assert model(token, cache=cache).logits.isfinite().all()


def test_it_says_why_not():
    model = spiking_model()
    assert describe_decoding(model).startswith("Decoding one text by the compiled decoder")
    model.model.layers[1].mlp.up_proj.neuron = AdaptiveThreshold(1.0)
    assert "block 1 that read the same input have different neurons" in describe_decoding(model)
    config, _ = MODELS["7b"]()
    released = to_spiking(SpikingBrainForCausalLM(config).eval(), spikingbrain_settings("as-released"))
    assert "attention of block 1 spikes as released" in describe_decoding(released)
    assert "no layer of its blocks spikes" in describe_decoding(SpikingBrainForCausalLM(config))
    wrapped = spiking_model()
    wrapped.model.layers[0].attn.o_proj = torch.nn.Sequential(wrapped.model.layers[0].attn.o_proj)
    assert "a projection of block 0 is a Sequential" in describe_decoding(wrapped)


@torch.inference_mode()
def test_the_caches_memory_is_freed_with_it():
    model = spiking_model()
    cache = prompt_read(model)
    model(torch.tensor([[3]]), cache=cache)
    memory = [weakref.ref(part) for group in cache._room.groups for part in group.memory]
    assert len(memory) == 5
    del cache
    gc.collect()
    assert [one() for one in memory] == [None] * 5


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("feature_map", [F.relu, F.sigmoid])
def test_linear_attention(tied, feature_map):
    query, key, value, gate, before = (torch.randn(s) for s in ((3, 8), (8,), (8,), (8,), (8, 8)))
    log_decay = F.logsigmoid(-key) if tied else F.logsigmoid(gate) / 16
    expected, state = recurrent_gla(
        *(one[None, None] for one in (feature_map(query), feature_map(key)[None], value[None], log_decay[None])),
        before[None, None],
    )
    out, after = np.empty((3, 8), np.float32), np.empty((8, 8), np.float32)
    given = (one.numpy() for one in (query, key, value, gate))
    is_sigmoid = int(feature_map is F.sigmoid)
    scaling = np.float32(8**-0.5)
    hybrid.linear_step(*given, int(tied), np.float32(16), is_sigmoid, scaling, before.numpy(), after, out)
    torch.testing.assert_close(torch.from_numpy(out), expected[0, 0])
    torch.testing.assert_close(torch.from_numpy(after), state[0, 0])


@pytest.mark.parametrize("size", [1, 8, 24, 64, 80])
def test_codes_are_those_of_the_cache(size):
    for x in torch.randn(11, size):
        found, (codes, scale) = np.empty(size, np.int8), quantize_tokens(x)
        assert hybrid.quantize(x.numpy(), found) == scale
        assert found.tolist() == codes.tolist()
