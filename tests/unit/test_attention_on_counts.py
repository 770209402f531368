"""Softmax attention of Transformers on spike counts and INT8: exact scores, all kinds of masks and caches, refusals."""

import copy
import gc
import json
import warnings

import pytest
import torch
from llama_type import cache_of, cache_option, plain_forward, tokens_of
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, BloomConfig, BloomForCausalLM, StaticCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import spikebrain as sb
from spikebrain import (
    AdaptiveThreshold,
    DeadZoneThreshold,
    IntegrateAndFire,
    SpikeLinear,
    SpikeSettings,
    record,
    to_dense,
    to_spiking,
)
from spikebrain.energy import DigitalEnergy, PaperEnergy, SynopEnergy, count_operations, waterfall
from spikebrain.errors import InputError
from spikebrain.jobs import SweepSettings, sweep
from spikebrain.models import describe_decoding
from spikebrain.models.decoding import code_room, kv_room
from spikebrain.models.decoding.attach import decoder_of
from spikebrain.models.decoding.compiled import CompiledDecoder
from spikebrain.models.io import load, save
from spikebrain.models.layers.attention_interface import (
    COUNTS,
    attention_modules,
    query_neuron,
    set_counts,
    unset_counts,
)
from spikebrain.models.layers.observing import observing_queries
from spikebrain.models.spikingbrain import LayerPlan, SpikingBrainForCausalLM, attend_counted, swa, tiny_7b
from spikebrain.models.spikingbrain.attention import Attention, Context
from spikebrain.models.spikingbrain.int8 import rounded_to_int8

SIZES = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
KINDS = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "mistral": {"sliding_window": 5},
    "gemma": {},
    "gemma3_text": {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},  # norms, own scaling
    "granite": {"attention_multiplier": 0.07},
    "phi3": {},  # one projection for queries, keys and values
    "gpt2": {
        "n_embd": 48,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 64,
        "hidden_size": None,
        "num_key_value_heads": None,
    },
}
COUNTED = SpikeSettings(attention="counts")


def tiny(kind="llama", **changes):
    sizes = {name: value for name, value in {**SIZES, **KINDS.get(kind, {}), **changes}.items() if value is not None}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # attention that is far from even
            parameter.add_(0.15 * torch.randn_like(parameter))
    return model


@pytest.fixture
def counted():
    return to_spiking(tiny(), COUNTED)


def stub(k=3.0, **attributes):
    """A module of attention that has nothing but its projection of queries."""
    module = nn.Module()
    module.q_proj = SpikeLinear.from_linear(nn.Linear(4, 4), neuron=AdaptiveThreshold(k))
    for name, value in attributes.items():
        setattr(module, name, value)
    return module


def tensors(length, num_columns, heads=4, kv_heads=2, dim=8, value_dim=None):
    k, v = torch.randn(2, kv_heads, num_columns, dim), torch.randn(2, kv_heads, num_columns, value_dim or dim)
    return torch.randn(2, heads, length, dim), k, v


def as_floats(module, query, key, value, attention_mask, scaling=None, is_causal=None, **others):
    """The same attention as a model's eager function would do it, on the values that counts and codes stand for."""
    query = query_neuron(module)(query).activation()
    key, value = (rounded_to_int8(x).repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if attention_mask is None and query.shape[2] > 1 and getattr(module, "is_causal", True):
        attention_mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    if attention_mask is not None:
        attention_mask = attention_mask | ~attention_mask.any(-1, keepdim=True)
        scores = scores.masked_fill(~attention_mask, -torch.inf)
    return (scores.softmax(-1) @ value).transpose(1, 2), None


@pytest.fixture
def in_floats(monkeypatch):
    """Let the name of attention on counts mean `as_floats`, while a function runs."""

    def run(function, *arguments, **options):
        with monkeypatch.context() as patch:
            patch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, COUNTS, as_floats)
            return function(*arguments, **options)

    return run


def test_scores_are_those_of_plain_integers(monkeypatch):
    q, k, v = tensors(3, 5)
    products, product = [], swa.integer_product
    monkeypatch.setattr(
        swa, "integer_product", lambda *given: products.append((*given, product(*given))) or products[-1][2]
    )
    mask = torch.ones(1, 1, 3, 5, dtype=torch.bool).tril(2)
    o, weights = attend_counted(stub(), q, k, v, mask)
    assert weights is None
    [(count, codes, found)] = products
    for b, h, i, j in [(0, 0, 0, 0), (1, 3, 2, 4), (0, 2, 1, 3)]:
        mean = float(q[b, h, i].abs().sum(dtype=torch.float64) / 8)
        threshold = torch.tensor(mean, dtype=torch.float32) / torch.tensor(3.0)
        counts = [round(float(x / threshold)) for x in q[b, h, i]]
        scale = k[b, h // 2, j].abs().max() / torch.tensor(127.0)
        key = [round(float(x / scale)) for x in k[b, h // 2, j]]
        row = h % 2 * 3 + i  # the two heads of a key head are rows below each other
        assert count[b, h // 2, row].tolist() == counts
        assert codes[b, h // 2, j].tolist() == key
        assert found[b, h // 2, row, j] == sum(a * b for a, b in zip(counts, key, strict=True))
    expected, _ = as_floats(stub(), q, k, v, mask)
    torch.testing.assert_close(o, expected)


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("length", [1, 7])
def test_it_is_the_attention_of_a_hybrid(window, length):
    config = tiny_7b(vocab_size=97, window=4, window_keys="w", k=2.5, spiking="as-described")
    ours = Attention(config, LayerPlan(("full" if window is None else "swa",))).eval()
    ours.q_proj = SpikeLinear.from_linear(ours.q_proj)
    columns = 7 if length == 7 or window is None else 4  # a hybrid keeps the columns of a window only
    q, k, v = tensors(length, columns, config.num_heads, config.num_kv_heads, config.dim)
    one, zero = torch.ones(2, length, 1, config.dim), torch.zeros(2, length, 1, config.dim)  # no rotation
    with torch.no_grad():
        if length == 7:
            expected = ours._softmax(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), Context(one, zero), None)
        else:
            query, columns_of, core = ours._softmax_inputs(q, k, v)
            expected = swa.attend(query, columns_of, core).transpose(1, 2)
    mask = None
    if window is not None and length > 1:
        i = torch.arange(7)
        mask = ((i[:, None] >= i) & (i[:, None] - i < window))[None, None]
    with torch.no_grad():
        found, _ = attend_counted(stub(2.5), q, k, v, mask)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_models(kind, in_floats):
    model = tiny(kind)
    ids = torch.randint(3, 97, (2, 9))
    spiking = to_spiking(model, COUNTED)
    assert (model.config._attn_implementation, spiking.config._attn_implementation) == ("sdpa", COUNTS)
    assert len(attention_modules(spiking)) == 2
    found = spiking(ids).logits
    torch.testing.assert_close(found, in_floats(lambda: spiking(ids).logits), atol=2e-4, rtol=1e-4)
    plain = to_spiking(model)(ids).logits
    assert not torch.allclose(found, plain, atol=1e-3)
    # Near what the same model does in floating point: queries at the k of all layers, keys and values of 8 bits.
    assert (found - plain).norm() < 0.35 * plain.norm()


def test_k_of_queries_is_that_of_their_projection():
    neurons = {
        "*0.self_attn.q_proj": DeadZoneThreshold(6.0),
        "*q_proj": AdaptiveThreshold(2.0),
        "*": AdaptiveThreshold(),
    }
    coarse = {"*1.self_attn.q_proj": ((2, 3),)}
    spiking = to_spiking(tiny(), SpikeSettings(neuron=neurons, coarse=coarse, attention="counts"))
    first, second = attention_modules(spiking).values()
    assert (query_neuron(first), query_neuron(second)) == (AdaptiveThreshold(6.0), AdaptiveThreshold(2.0))
    spiking(torch.arange(3, 9)[None])


@pytest.mark.parametrize("kind", ["llama", "mistral", "gpt2"])
@torch.no_grad()
def test_padding_is_seen_by_nobody(kind):
    spiking = to_spiking(tiny(kind), COUNTED)
    ids = torch.randint(3, 97, (2, 9))
    padded = torch.cat([torch.zeros(2, 3, dtype=torch.long), ids], 1)
    mask = (torch.arange(12) >= 3).long().expand(2, -1)
    positions = (torch.arange(12) - 3).clamp(min=0).expand(2, -1)
    found = spiking(padded, attention_mask=mask, position_ids=positions).logits[:, 3:]
    torch.testing.assert_close(found, spiking(ids).logits, atol=1e-5, rtol=1e-5)
    right = torch.cat([ids, torch.zeros(2, 3, dtype=torch.long)], 1)
    found = spiking(right, attention_mask=mask.flip(1)).logits[:, :9]
    torch.testing.assert_close(found, spiking(ids).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma3_text", "gpt2"])
@torch.no_grad()
def test_a_prompt_at_once_and_token_by_token(kind, static):
    spiking = to_spiking(tiny(kind), COUNTED)
    ids = torch.randint(3, 97, (2, 11))
    whole = spiking(ids).logits
    cache = StaticCache(config=spiking.config, max_cache_len=16) if static else None
    found = []
    for piece in ids.split([4, 1, 1, 3, 1, 1], 1):
        output = spiking(piece, use_cache=True, **cache_option(cache))
        cache = cache_of(output)
        found.append(output.logits)
    torch.testing.assert_close(torch.cat(found, 1), whole, atol=1e-5, rtol=1e-5)


def test_long_texts_go_by_blocks(monkeypatch, counted):
    ids = torch.randint(3, 97, (1, 40))
    mask = torch.ones(1, 40, dtype=torch.long)
    mask[0, :2] = 0
    with torch.no_grad():
        whole = [counted(ids).logits, counted(ids, attention_mask=mask).logits]
        monkeypatch.setattr(swa, "_BLOCK", 7)
        for expected, options in zip(whole, ({}, {"attention_mask": mask}), strict=True):
            torch.testing.assert_close(counted(ids, **options).logits, expected, atol=1e-5, rtol=1e-5)


def test_values_may_be_of_another_width_than_keys():
    q, k, v = tensors(5, 5, value_dim=6)
    mask = torch.ones(1, 1, 5, 5, dtype=torch.bool).tril()
    for options in ({"attention_mask": None}, {"attention_mask": mask}, {"attention_mask": None, "is_causal": False}):
        module = stub(is_causal=options.get("is_causal", True))
        expected, _ = as_floats(module, q, k, v, options["attention_mask"], scaling=0.2)
        found, _ = attend_counted(module, q, k, v, scaling=0.2, **options)
        assert found.shape == (2, 5, 4, 6)
        torch.testing.assert_close(found, expected)


@torch.no_grad()
def test_dtypes(counted):
    q, k, v = tensors(5, 5)
    halves = [x.bfloat16() for x in (q, k, v)]
    found, expected = (
        attend_counted(stub(), *halves, None)[0],
        attend_counted(stub(), *map(torch.Tensor.float, halves), None)[0],
    )
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected.bfloat16())
    ids = torch.arange(3, 12)[None]
    torch.testing.assert_close(
        copy.deepcopy(counted).double()(ids).logits.float(), counted(ids).logits, atol=1e-3, rtol=1e-3
    )
    assert counted.bfloat16()(ids).logits.dtype == torch.bfloat16


def test_gradients_pass(counted, in_floats):
    q, k, v = (x.requires_grad_() for x in tensors(4, 4))
    found, _ = attend_counted(stub(), q, k, v, None, scaling=0.2)
    expected, _ = as_floats(stub(), q, k, v, None, scaling=0.2)
    torch.testing.assert_close(found, expected)
    direction = torch.randn_like(found)
    given = torch.autograd.grad(found, (q, k, v), direction)
    for one, other in zip(given, torch.autograd.grad(expected, (q, k, v), direction), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_dense_again(counted):
    model = to_spiking(tiny())
    ids = torch.arange(3, 12)[None]
    expected = to_dense(model)(ids).logits
    set_counts(model)
    dense = to_dense(model)
    assert (dense.config._attn_implementation, model.config._attn_implementation) == ("sdpa", COUNTS)
    assert torch.equal(dense(ids).logits, expected)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@torch.no_grad()
def test_saved_and_loaded(kind, tmp_path):
    spiking = to_spiking(tiny(kind), COUNTED)
    ids = torch.arange(3, 12)[None]
    expected = spiking(ids).logits
    save(spiking, tmp_path / "file.safetensors")
    save(spiking, tmp_path / "folder")
    ways = [
        lambda: load(tmp_path / "file.safetensors").model,
        lambda: load(tmp_path / "folder").model,
        lambda: AutoModelForCausalLM.from_pretrained(tmp_path / "folder"),
        lambda: type(spiking).from_pretrained(tmp_path / "folder"),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for again in (way() for way in ways):
            assert again.config._attn_implementation == COUNTS
            assert again.conversion.settings == COUNTED
            assert torch.equal(again(ids).logits, expected)
    other = AutoModelForCausalLM.from_pretrained(tmp_path / "folder", attn_implementation="eager")
    assert other.config._attn_implementation == "eager"


@torch.no_grad()
def test_saved_inside_of_another_module(tmp_path):
    model = nn.ModuleDict({"text": tiny()})
    spiking = to_spiking(model, SpikeSettings(attention="counts"))
    save(spiking, tmp_path / "file.safetensors")
    again = load(tmp_path / "file.safetensors", architecture=model).model
    ids = torch.arange(3, 12)[None]
    assert torch.equal(again["text"](ids).logits, spiking["text"](ids).logits)


def test_a_conversion_says_so(counted):
    assert "attention on counts" in repr(counted.conversion)
    assert "attention on counts" not in repr(to_spiking(tiny()).conversion)


@pytest.mark.parametrize("changed_after", [False, True])
@torch.no_grad()
def test_no_decoder_passes_it_over(changed_after):
    model = tiny(sliding_window=None)
    spiking = to_spiking(model, SpikeSettings() if changed_after else COUNTED)
    ids = torch.randint(3, 97, (1, 6))
    if changed_after:
        tokens_of(spiking, ids, 4)
        set_counts(spiking)
    decoder = decoder_of(spiking)
    assert decoder is not None
    assert describe_decoding(spiking).startswith("Decoding one text by the compiled decoder")
    cache = cache_of(spiking(ids, use_cache=True))
    step = spiking(torch.tensor([[7]]), use_cache=True, **cache_option(cache)).logits
    expected = spiking(torch.cat([ids, torch.tensor([[7]])], 1)).logits[:, -1:]
    torch.testing.assert_close(step, expected, atol=1e-5, rtol=1e-5)
    unset_counts(spiking)
    assert decoder_of(spiking) not in (None, decoder)


def steps(spiking, run, ids, cache, num_tokens):
    """Return the logits of tokens one by one."""
    found = []
    for token in ids[0, :num_tokens]:
        output = run(spiking, input_ids=token[None, None], use_cache=True, **cache_option(cache))
        found.append(output.logits)
    return torch.cat(found, 1)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
@torch.inference_mode()
def test_the_compiled_decoder_does_it_too(kind, monkeypatch):
    """Past the spare rows, after a crop, and after a write to the cache: always as the layers one by one."""
    monkeypatch.setattr(kv_room, "SPARE_ROWS", 3)
    with torch.inference_mode(False):
        spiking = to_spiking(tiny(kind, sliding_window=None), COUNTED)
    ids = torch.randint(3, 97, (1, 30))
    ours, theirs = (cache_of(plain_forward(spiking, input_ids=ids[:, :4], use_cache=True)) for _ in range(2))
    decoded = []
    finish = CompiledDecoder.finish
    monkeypatch.setattr(CompiledDecoder, "finish", lambda self: decoded.append(found := finish(self)) or found)

    def same(num_tokens):
        decoded.clear()
        found = steps(spiking, type(spiking).__call__, ids, ours, num_tokens)
        expected = steps(spiking, plain_forward, ids, theirs, num_tokens)
        torch.testing.assert_close(found, expected, atol=2e-4, rtol=2e-4)
        assert len(decoded) == num_tokens
        assert all(logits is not None for logits in decoded)

    same(20)
    for cache in (ours, theirs):
        cache.crop(-15)  # 24 rows
    same(3)
    for cache in (ours, theirs):
        cache.layers[1].keys[:, :, 2].neg_()
        cache.layers[0].values[:, 0, 5] = 0.7
    same(3)


@torch.inference_mode()
def test_texts_in_turns_keep_their_codes(monkeypatch):
    with torch.inference_mode(False):
        spiking = to_spiking(tiny("qwen3"), COUNTED)
    rounded, quantize = [], code_room.quantize_tokens
    monkeypatch.setattr(code_room, "quantize_tokens", lambda rows: rounded.append(rows.shape[3]) or quantize(rows))
    texts = [torch.randint(3, 97, (1, length)) for length in (5, 9)]
    caches = [cache_of(spiking(text, use_cache=True)) for text in texts]
    for step in range(4):
        for number, cache in enumerate(caches):
            token = torch.full((1, 1), 7 + step)
            texts[number] = torch.cat([texts[number], token], 1)
            found = spiking(token, use_cache=True, **cache_option(cache)).logits
            torch.testing.assert_close(found, spiking(texts[number]).logits[:, -1:], atol=2e-4, rtol=2e-4)
    assert rounded == [5, 9]  # what was read before; later rows are rounded as they are written
    known = decoder_of(spiking)._codes_of
    assert len(known) == 2
    del cache, caches[1]
    gc.collect()
    assert len(known) == 1


@torch.inference_mode()
def test_a_count_that_does_not_fit_takes_the_plain_steps():
    with torch.inference_mode(False):
        spiking = to_spiking(tiny("qwen3"), SpikeSettings(attention="counts", neuron=AdaptiveThreshold(4.0)))
    ids = torch.randint(3, 97, (1, 5))
    cache = cache_of(spiking(ids, use_cache=True))
    decoder = decoder_of(spiking)
    decoder._layers["most_charge"] = 0  # no count of a query fits
    step = spiking(torch.tensor([[7]]), use_cache=True, **cache_option(cache)).logits
    expected = spiking(torch.cat([ids, torch.tensor([[7]])], 1)).logits[:, -1:]
    torch.testing.assert_close(step, expected, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_observed_queries_are_not_passed_over():
    with torch.inference_mode(False):
        spiking = to_spiking(tiny(), COUNTED)
    seen, modules = [], attention_modules(spiking)
    cache = cache_of(spiking(torch.randint(3, 97, (1, 5)), use_cache=True))
    with observing_queries([(module, lambda *found: seen.append(found)) for module in modules.values()]):
        spiking(torch.tensor([[7]]), use_cache=True, **cache_option(cache))
    assert len(seen) == len(modules)


class Mixer(nn.Module):
    """Attention that asks the interface, and has no projection that is known."""

    def __init__(self, config):
        super().__init__()
        self.config, self.mix = config, nn.Linear(4, 4)

    def forward(self, x):
        return ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, None)(self, x, x, x, None)


def refusal(model, settings=COUNTED):
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(InputError) as error:
        to_spiking(model, settings, inplace=True)
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    return str(error.value)


def test_what_is_refused():
    bloom = BloomForCausalLM(BloomConfig(vocab_size=97, hidden_size=16, n_layer=1, n_head=2))
    assert "BloomForCausalLM computes it in BloomAttention itself" in refusal(bloom)
    assert "Sequential has none that is known" in refusal(nn.Sequential(nn.Linear(4, 4)))
    gemma = tiny("gemma2")
    assert "soft-capped scores, which Gemma2Attention 'model.layers.0.self_attn' has" in refusal(gemma)
    oss = tiny("gpt_oss", num_local_experts=2, num_experts_per_tok=1)
    assert "sinks among its scores, which GptOssAttention" in refusal(oss)
    assert "expected a projection of queries called q_proj" in refusal(nn.Sequential(Mixer(tiny().config)))
    assert "got 'as-described', which is for SpikingBrain models" in refusal(
        tiny(), SpikeSettings(attention="as-described")
    )
    hybrid = SpikingBrainForCausalLM(tiny_7b(vocab_size=97))
    assert "got 'counts', which is for Transformers" in refusal(hybrid)
    dense = SpikeSettings(attention="counts", skip=("*1.self_attn.q_proj",))
    assert "expected model.layers.1.self_attn.q_proj to spike" in refusal(tiny(), dense)
    odd = SpikeSettings(
        attention="counts", neuron={"*q_proj": IntegrateAndFire(threshold=0.5), "*": AdaptiveThreshold()}
    )
    assert "by a neuron with a k" in refusal(tiny(), odd)
    with pytest.raises(InputError, match=r"attention: expected None, 'counts' for a Transformer"):
        SpikeSettings(attention="count")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"softcap": 50.0}, "soft-capped scores"),
        ({"s_aux": torch.zeros(4)}, "sinks among the scores"),
        ({"position_bias": torch.zeros(1, 4, 5, 5)}, "a bias for positions"),
        ({"dropout": 0.1}, "expected no dropout, got 0.1"),
        ({"attention_mask": torch.zeros(2, 1, 5, 5)}, "expected a mask of bool, the same for all heads"),
        ({"attention_mask": torch.ones(2, 4, 5, 5, dtype=torch.bool)}, r"got torch.bool of shape \(2, 4, 5, 5\)"),
    ],
)
def test_what_is_refused_when_it_runs(options, message):
    with pytest.raises(InputError, match=message):
        attend_counted(stub(), *tensors(5, 5), **{"attention_mask": None, **options})


def test_queries_are_recorded_by_hand():
    layer = tiny(num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1, head_dim=4)
    spiking = to_spiking(layer, COUNTED)
    module = spiking.model.layers[0].self_attn
    with record(spiking) as recording:
        # Threshold 1 (mean 3 over k = 3): counts 7 = 4 + 2 + 1, -2, 3 = 2 + 1 and 0 are 3 + 1 + 2 spikes; 1, 1, 1 and
        # 9 = 8 + 1 are 1 + 1 + 1 + 2.
        q = torch.tensor([[7.0, -2.0, 3.0, 0.0], [1.0, 1.0, 1.0, 9.0]])[None, None]
        attend_counted(module, q, *torch.randn(2, 1, 1, 2, 4), None)
        part = recording.modules["model.layers.0.self_attn"]
        assert (part.num_spikes, part.num_synops) == (11, 6 * 1 + 5 * 2)
        # Digits of 1 need no shift: two of the first query, four of the second.
        assert part.num_weighted_synops == 4 * 1 + 1 * 2
        # Digits of 1, 2, 4 and 8: three shifts for each of the 1 + 2 scores.
        assert (part.num_shifted_sums, part.zero_point) == (3 * 3, 0)
        mask = torch.tensor([[False, True], [False, False]])[None, None]
        attend_counted(module, q, *torch.randn(2, 1, 1, 2, 4), mask)
        assert part.num_synops == 16 + 6 * 1
    assert "query_observers" not in vars(module)
    attend_counted(module, q, *torch.randn(2, 1, 1, 2, 4), None)
    assert part.num_spikes == 22


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen3"])
@torch.no_grad()
def test_energy_of_a_model(kind):
    model, ids = tiny(kind), torch.randint(3, 97, (2, 9))
    found = {}
    for attention in (None, "counts"):
        spiking = to_spiking(model, SpikeSettings(attention=attention))
        with record(spiking) as recording:
            output = spiking(ids[:, :6], use_cache=True)
            spiking(ids[:, 6:], **cache_option(cache_of(output)))
        found[attention] = count_operations(recording)
    floats, counts = found[None], found["counts"]
    name, dim = "model.layers.1.self_attn", model.model.layers[0].self_attn.head_dim
    part = recording.modules[name]
    pairs = sum(min(i, 5) if kind == "mistral" else i for i in range(1, 10))
    assert (part.num_tokens, part.num_pairs) == (18, 2 * pairs)
    scores, rest = counts.layers[f"{name} scores"], counts.layers[name]
    # The dense models do what they do beside attention in floating point.
    for system in ("int8", "fp16"):
        whole = getattr(scores, system) + getattr(rest, system)
        dense = getattr(floats.layers[name], system)
        assert (whole.num_mac_fp16, whole.kv_bytes) == (dense.num_mac_fp16, dense.kv_bytes)
        assert getattr(scores, system).num_macs == 2 * pairs * 4 * dim
    assert (scores.spiking.num_spikes, scores.spiking.num_synops) == (part.num_spikes, part.num_synops)
    assert scores.spiking.num_activations == 18 * 4 * dim
    assert 0 < part.num_spikes < scores.spiking.num_synops < part.num_spikes * 9
    assert rest.spiking.num_mac_fp16 == rest.int8.num_mac_fp16 == 2 * pairs * 4 * dim  # weights times values
    # (3 + 1/2) * 12 * 128 = 5376 fits 16 bits, and so does 7168 of 16 channels.
    assert scores.spiking.num_add_int16 == part.num_synops
    # INT8 and a scale of 4 bytes for each key and value, in the place of 2 bytes a channel.
    assert rest.spiking.kv_bytes == 2 * 2 * (2 * pairs + 18) * (dim + 4)
    assert rest.int8.kv_bytes == 2 * 2 * (2 * pairs + 18) * 2 * dim

    digital = DigitalEnergy().estimate(counts)
    assert {"additions", "accumulator", "shifts", "encode", "rescale"} <= digital.layers[f"{name} scores"].keys()
    paper = PaperEnergy().estimate(counts)
    assert paper.total_pj == pytest.approx(0.03 * counts.total("spiking").num_synops)
    assert paper.num_macs == floats.total("int8", kind="projection").num_macs + 2 * (2 * pairs * 4 * dim)
    assert f"{name} scores" in SynopEnergy().estimate(counts).layers
    steps = waterfall(counts, DigitalEnergy())
    assert steps[-1].spiking_pj == pytest.approx(digital.total_pj)
    assert counts.uncounted_share == 0
    assert any("attention on counts" in sentence for sentence in counts.assumptions)


@torch.no_grad()
def test_recorded_by_several_calls_and_restored(counted):
    ids = torch.randint(3, 97, (1, 8))
    with record(counted) as recording:
        counted(ids)
        counted(ids)
    with record(counted) as once:
        counted(ids)
    part, other = (r.modules["model.layers.0.self_attn"] for r in (recording, once))
    assert (part.num_spikes, part.num_synops) == (2 * other.num_spikes, 2 * other.num_synops)
    with record(counted) as again:
        pass
    again.restore(recording.state())
    assert again.modules == recording.modules


def test_registered_under_our_name():
    assert ALL_ATTENTION_FUNCTIONS[COUNTS] is attend_counted
    assert sb.models.spikingbrain.attend_counted is attend_counted


def test_commands(run, model_folder, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    same = (model_folder, "--text", text, "--num-tokens", 48)
    how = ("--context", 24, "--device", "cpu")
    code, out, error = run("report", *same, *how, "--attention", "counts", "--out", "found")
    assert code == 0, error
    found = json.loads((tmp_path / "found" / "report.json").read_text())
    assert found["settings"]["attention"] == "counts"
    assert ", attention counts" in out
    kinds = found["energy"]["digital"]["spiking_by_kind_pj"]
    assert kinds["attention: scores, on spikes"] > 0
    assert sum(kinds.values()) == pytest.approx(found["energy"]["digital"]["spiking_total_pj"])
    assert "Where it goes, on spikes: " in out
    assert found["perplexity"]["int8"] != found["perplexity"]["spiking"]
    assert run("export", model_folder, "--attention", "counts", "--out", "spiking")[0] == 0
    assert load(tmp_path / "spiking").model.config._attn_implementation == COUNTS
    code, out, _ = run("report", "spiking", *same[1:], *how, "--out", "again")
    again = json.loads((tmp_path / "again" / "report.json").read_text())
    assert (code, again["settings"]["attention"]) == (0, "counts")
    assert again["perplexity"]["spiking"] == found["perplexity"]["spiking"]
    dense = ("--format", "compressed-tensors", "--out", "int8")
    code, _, error = run("export", model_folder, "--attention", "counts", *dense)
    assert code == 2
    assert "--attention: has no effect in the format compressed-tensors" in error
    code, _, error = run("energy", model_folder, "--attention", "count")
    assert code == 2
    assert "expected None, 'counts' for a Transformer" in error


def test_a_sweep(model_folder, text, tmp_path):
    given = {"model": str(model_folder), "text": text, "num_tokens": 48, "context": 24, "device": "cpu"}
    settings = SweepSettings({"attention": ["none", "counts"]}, objectives=("perplexity", "energy_nj"), **given)
    rows = sweep(settings, tmp_path / "out").rows
    assert [row.settings for row in rows] == [{"attention": None}, {"attention": "counts"}]
    assert rows[0].figures["perplexity"] != rows[1].figures["perplexity"]
    assert rows[0].figures["energy_nj"] != rows[1].figures["energy_nj"]
