"""The compiled decoder beside the model's own code: integers bit for bit, logits to rounding, when it stands aside."""

import copy
import gc
import weakref

import numpy as np
import pytest
import torch
from fast_first import fast_first
from llama_type import MODELS, SETTINGS, cache_of, cache_option, plain_forward, spiking_model, tokens_of
from torch import nn
from torch.nn import functional as F

import spikebrain
from spikebrain import (
    AdaptiveThreshold,
    BidirectionalBitwise,
    GradedLinear,
    RateDistortionThreshold,
    Reference,
    SpikeSettings,
    Ternary,
    describe_decoding,
    record,
)
from spikebrain.backends.cpu import decoder_parts
from spikebrain.backends.cpu.plain import sums_of_groups
from spikebrain.compiled import compiled
from spikebrain.models.decoding import decoder_of
from spikebrain.models.decoding.compiled import CompiledDecoder
from spikebrain.models.decoding.kv_room import room_of
from spikebrain.models.decoding.tables import shares
from spikebrain.models.layers.observing import observing
from spikebrain.models.layers.quantize import QuantizedWeight, dequantize, rounded_to
from spikebrain.models.layers.stored import StoredWeight, note_stored, rounded_before
from spikebrain.neuro import Band, without_band

# Kernels on a GPU do not know these.
CHOSEN = RateDistortionThreshold(8.0, spike_price=1.0, read_price=2.0)
CPU_SETTINGS = {
    **SETTINGS,
    "counts by price": SpikeSettings(neuron=CHOSEN, include_head=True),
    "counts by price, small ones read 2 bits of 4": SpikeSettings(neuron=CHOSEN, weights="int4", coarse=((2, 4),)),
}


@pytest.mark.parametrize("name", fast_first(MODELS, 2))
@pytest.mark.parametrize("settings", list(CPU_SETTINGS))
@torch.inference_mode()
def test_integers_are_exact_and_logits_those_of_the_model(name, settings, threads):
    model = spiking_model(name, CPU_SETTINGS[settings])
    cache = cache_of(plain_forward(model, input_ids=torch.randint(0, 300, (1, 7)), use_cache=True))
    theirs = copy.deepcopy(cache)
    decoder = decoder_of(model)
    layers, rows = decoder.tables.modules, decoder.tables.projections
    inputs = [np.zeros(row["num_inputs"], np.float32) for row in rows]
    own = [layer.own if isinstance(layer, GradedLinear) else layer for layer in layers]
    sums = [np.zeros((len(getattr(layer, "groups", [0])), len(layer.weight)), np.int32) for layer in own]
    for row, x, total in zip(rows, inputs, sums, strict=True):
        row["seen_input"], row["seen_sums"] = x.ctypes.data, total.ctypes.data
    for position in range(7, 10):
        token = torch.randint(0, 300, (1, 1))
        expected = plain_forward(model, input_ids=token, use_cache=True, **cache_option(theirs)).logits
        room = room_of(cache, decoder.num_key_heads, decoder.head_dim)
        found = decoder.decode(token, torch.tensor([[position]]), room.memory, position)
        room.show(cache.layers, room.views(position + 1))
        checked = 0
        for number, (layer, rows_of) in enumerate(zip(layers, own, strict=True)):
            if isinstance(rows_of, spikebrain.SpikeLinear):
                count = without_band(rows_of.neuron) if rows_of is not layer else rows_of.neuron
                count = count(torch.from_numpy(inputs[number])).count.numpy()
                levels = layer.upper if rows_of is not layer else []
                reads = [(level.neuron.up_to, rows_of.weight_bits - level.weight_bits) for level in levels]
                exact, _ = sums_of_groups(rows_of.weight.numpy(), count, rows_of.group_size, reads)
                assert np.array_equal(sums[number], exact)
                checked += 1 + len(levels)
        assert checked == len([m for m in model.modules() if isinstance(m, spikebrain.SpikeLinear)])
        # The same state goes in, so only a count that lies on a rounding's edge may differ.
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
        for ours, other in zip(cache.layers, theirs.layers, strict=True):
            torch.testing.assert_close(ours.keys[:, :, :position], other.keys[:, :, :position], rtol=0, atol=2e-2)
        theirs = copy.deepcopy(cache)


@pytest.fixture
def calls(monkeypatch):
    """Lengths of the text before each token that the decoder got."""
    found = []
    start = CompiledDecoder.start
    monkeypatch.setattr(CompiledDecoder, "start", lambda self, *given: found.append(given[3]) or start(self, *given))
    return found


def test_generate_uses_it_and_gives_the_same_tokens(calls, monkeypatch):
    model = spiking_model()
    ids = torch.randint(0, 300, (1, 5))
    found = tokens_of(model, ids)
    assert calls == list(range(5, 5 + 19))  # the first token comes from the prompt's own pass
    monkeypatch.delattr(model, "forward")
    assert torch.equal(found, tokens_of(model, ids))


@pytest.mark.slow
def test_more_tokens_than_there_is_room_for(calls, monkeypatch):
    model = spiking_model()
    found = tokens_of(model, torch.tensor([[1]]), 600)  # rooms of 258 and 774 rows
    assert len(calls) == 599
    monkeypatch.delattr(model, "forward")
    # One pass over the whole text predicts the same tokens.
    with torch.inference_mode():
        logits = model(found).logits
    chosen = logits[0, :-1].gather(1, found[0, 1:, None])[:, 0]
    assert float((logits[0, :-1].amax(1) - chosen).max()) < 1e-2


@torch.inference_mode()
def test_nobodys_cache_changes():
    model = spiking_model()
    prompt = torch.randint(0, 300, (1, 6))
    first = model(prompt, use_cache=True)
    cache = cache_of(first)
    model(torch.tensor([[3]]), **cache_option(cache))
    kept, rows = copy.deepcopy(cache), [layer.keys for layer in cache.layers]
    before = [row.clone() for row in rows]
    cache.crop(-1)
    other = model(torch.tensor([[9]]), **cache_option(cache)).logits
    assert all(torch.equal(row, same) for row, same in zip(rows, before, strict=True))
    assert all(torch.equal(layer.keys, row) for layer, row in zip(kept.layers, before, strict=True))
    torch.testing.assert_close(
        other, model(torch.cat([prompt, torch.tensor([[9]])], 1)).logits[:, -1:], rtol=0, atol=1e-4
    )


@torch.inference_mode()
def test_what_is_not_one_plain_token_takes_the_models_own_code(calls):
    model = spiking_model()
    prompt = torch.randint(0, 300, (2, 6))

    def fresh(rows=1):
        return cache_option(cache_of(plain_forward(model, input_ids=prompt[:rows], use_cache=True)))

    token = torch.tensor([[3]])
    model(token)
    model(token.expand(2, 1), **fresh(2))
    model(torch.tensor([[3, 4]]), **fresh())
    model(token, output_hidden_states=True, **fresh())
    model(token, attention_mask=torch.tensor([[0, 1, 1, 1, 1, 1, 1]]), **fresh())
    model(inputs_embeds=torch.randn(1, 1, 64), **fresh())
    with torch.autocast("cpu", torch.bfloat16):
        model(token, **fresh())
    with spikebrain.checking_plugins():
        model(token, **fresh())
    with observing([model.model.layers[0].mlp.up_proj], lambda *_: calls.append("observed")):
        model(token, **fresh())
    assert calls == ["observed"] * 2  # by the prompt, and by the token
    calls.clear()
    with record(model) as recording:
        model(token, **fresh())
    assert recording.layers["model.layers.0.self_attn.q_proj"].num_tokens == 7
    assert calls == []
    model(token, attention_mask=torch.ones(1, 7), **fresh())
    model(input_ids=token, **fresh())
    assert calls == [6, 6]


class InMemory(StoredWeight):
    """A file's integers for a dense layer."""

    why_none = None

    def __init__(self, found):
        self.found = found

    def read(self):
        return self.found


def check_next_token(model):
    """Compare the decoder's logits with those of the model's own code."""
    options = cache_option(cache_of(model(torch.tensor([[1, 2]]), use_cache=True)))
    theirs = cache_option(copy.deepcopy(next(iter(options.values()))))
    logits = model(input_ids=torch.tensor([[3]]), **options).logits
    expected = plain_forward(model, input_ids=torch.tensor([[3]]), **theirs).logits
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("group_size", [32, 64, None])
@torch.inference_mode()
def test_a_dense_layer_is_read_as_its_file_has_it(group_size):
    with torch.inference_mode(False):
        model = spiking_model()
        integers = torch.randint(-127, 128, (300, 64), dtype=torch.int8)
        found = QuantizedWeight(integers, torch.rand(300, 64 // (group_size or 64)), None, group_size, 8)
        model.lm_head.weight.data = dequantize(found.weight, found.scale, None, group_size)
    note_stored(model.lm_head, InMemory(found))
    check_next_token(model)
    assert (decoder_of(model).tables.projections[-1]["scale"] != 0) == (group_size is not None)
    model.lm_head.weight[0, 0] += 0.001  # no longer what the file has
    assert decoder_of(model).tables.projections[-1]["scale"] == 0


@torch.inference_mode()
def test_a_dense_layer_that_was_rounded_before_is_read_as_integers():
    """A converted model that was saved has the floats of its file's integers, and no note."""
    with torch.inference_mode(False):
        model = spiking_model()
        found = rounded_to(8, torch.randn(300, 64), 32)
        model.lm_head.weight.data = dequantize(found.weight, found.scale, None, 32)
    record = decoder_of(model).tables.projections[-1]
    assert record["scale"] != 0
    assert record["block"] == 32
    check_next_token(model)
    model.lm_head.weight[299, 63] += 1e-6
    assert decoder_of(model).tables.projections[-1]["scale"] == 0


@pytest.mark.parametrize(
    "weight",
    [torch.randn(20, 64), torch.full((4, 32), torch.inf), torch.randn(4, 33)],
    ids=["floats", "infinite", "width"],
)
def test_other_weights_were_not_rounded_before(weight):
    assert rounded_before(weight) is None


@torch.inference_mode()
def test_a_changed_model_is_noticed():
    model = spiking_model()
    options = cache_option(cache_of(model(torch.tensor([[1, 2]]), use_cache=True)))
    model(input_ids=torch.tensor([[3]]), **options)
    first = decoder_of(model)
    assert decoder_of(model) is first
    layer = model.model.layers[1].mlp.down_proj
    layer.neuron = AdaptiveThreshold(2.0)
    second = decoder_of(model)
    assert second is not first
    layer.bias = nn.Parameter(torch.ones(64))
    third = decoder_of(model)
    assert third not in (first, second)
    layer.encoder = Ternary()
    assert decoder_of(model) is not third
    handle = layer.register_forward_hook(lambda *_: None)
    assert decoder_of(model) is None
    assert "hooks" in describe_decoding(model)
    handle.remove()
    layer.encoder = BidirectionalBitwise()
    assert decoder_of(model) is not None
    with observing([layer], lambda *_: None):
        assert decoder_of(model) is None
        assert "is observed" in describe_decoding(model)
    before = decoder_of(model)
    model.double().float()  # parameters keep their objects and lie elsewhere
    assert decoder_of(model) is not before
    layer.forward = layer.forward
    assert decoder_of(model) is None
    del layer.forward
    model.to(torch.bfloat16)
    assert decoder_of(model) is None
    model.float()
    twin = copy.deepcopy(model)
    assert decoder_of(twin) is not decoder_of(model)
    assert twin.forward.__self__ is twin


def _set_edge(layer, edge):
    lower, own = layer.levels
    lower.neuron, own.neuron = Band(lower.neuron.neuron, 0, edge), Band(own.neuron.neuron, edge)


@pytest.mark.parametrize(
    ("change", "still_fits"),
    [
        (lambda layer: _set_edge(layer, 3), True),
        (lambda layer: setattr(layer, "levels", nn.ModuleList(copy.deepcopy(list(layer.levels)))), True),
        (lambda layer: setattr(layer.own, "scale", layer.own.scale.clone()), True),
        (lambda layer: layer.own.weight.mul_(1), True),
        (lambda layer: setattr(layer.levels[0], "backend", Reference()), False),
        (lambda layer: layer.register_forward_hook(lambda *_: None), False),
        (lambda layer: layer.levels[0].observers.append(lambda *_: None), False),
    ],
    ids=["edge", "levels", "scale", "in place", "backend", "hook", "observer"],
)
@torch.no_grad()
def test_a_changed_layer_with_coarse_rows_is_noticed(change, still_fits):
    model = spiking_model(settings=SpikeSettings(weights="int4", coarse=((2, 2),)))
    first = decoder_of(model)
    assert first is not None
    assert decoder_of(model) is first
    change(model.model.layers[1].mlp.down_proj)
    second = decoder_of(model)
    assert second is not first
    assert (second is not None) == still_fits


@pytest.mark.parametrize("settings", [SpikeSettings(), SpikeSettings(weights="int4")], ids=["8 bits", "4 bits"])
@pytest.mark.parametrize("name", ["weight", "scale", "minimum"])
@torch.inference_mode()
def test_numbers_that_changed_in_place_are_noticed(settings, name):
    with torch.inference_mode(False):
        model = spiking_model(settings=settings)
    options = cache_option(cache_of(model(torch.tensor([[1, 2]]), use_cache=True)))
    theirs = cache_option(copy.deepcopy(next(iter(options.values()))))
    before = model(input_ids=torch.tensor([[3]]), **options).logits
    for block in model.model.layers:
        changed = getattr(block.mlp.down_proj, name)
        if changed is not None:
            changed.copy_(changed.flip(0).clone())
    if changed is not None:
        next(iter(options.values())).crop(-1)
        after = model(input_ids=torch.tensor([[3]]), **options).logits
        expected = plain_forward(model, input_ids=torch.tensor([[3]]), **theirs).logits
        torch.testing.assert_close(after, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
        assert float((after - before).abs().max()) > 1e-2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.to(torch.bfloat16), r"is torch.bfloat16, not float32"),
        (
            lambda m: setattr(m.model.layers[0].mlp.up_proj, "neuron", AdaptiveThreshold(1.0)),
            "block 0 .* different neurons",
        ),
        (
            lambda m: setattr(m.model.layers[0].mlp.up_proj, "backend", Reference()),
            r"up_proj has the backend Reference",
        ),
        (lambda m: setattr(m.config, "hidden_act", "gelu"), "activation is gelu"),
    ],
)
def test_it_says_why_not(change, message):
    model = spiking_model()
    assert describe_decoding(model).startswith("Decoding one text by the compiled decoder")
    change(model)
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(describe_decoding(model))


@pytest.mark.parametrize("dtype", fast_first([torch.bfloat16, torch.float16, torch.float64]))
def test_other_dtypes_take_the_models_own_code_and_say_so(dtype, calls):
    model = spiking_model().to(dtype)
    assert describe_decoding(model).endswith(f"is {dtype}, not float32; model.float() makes it so.")
    ids = torch.randint(0, 300, (1, 5))
    found = tokens_of(model, ids, 4)
    assert calls == []
    del model.forward
    assert torch.equal(found, tokens_of(model, ids, 4))


@torch.inference_mode()
def test_the_caches_memory_is_freed_with_it():
    model = spiking_model()
    cache = cache_of(model(torch.tensor([[1, 2]]), use_cache=True))
    model(input_ids=torch.tensor([[3]]), **cache_option(cache))
    memory = weakref.ref(cache._kv_room.memory)
    assert decoder_of(model)._memory_of_cache() is memory()
    del cache
    gc.collect()
    assert memory() is None


def test_a_projection_of_a_class_that_it_does_not_know():
    model = spiking_model()
    model.model.layers[2].mlp.down_proj = nn.Sequential(model.model.layers[2].mlp.down_proj)
    assert "a projection of block 2 is a Sequential" in describe_decoding(model)
    model.lm_head = nn.Sequential(model.lm_head)
    assert "Sequential" in describe_decoding(model)


def test_other_models_and_settings_say_why_not():
    assert "Linear is none of LlamaForCausalLM" in describe_decoding(nn.Linear(2, 2))
    assert "no layer of its blocks spikes" in describe_decoding(MODELS["llama"]())


@torch.inference_mode()
def test_an_error_names_the_layer_as_ever():
    model = spiking_model()
    options = cache_option(cache_of(model(torch.tensor([[1, 2]]), use_cache=True)))
    model.model.layers[1].input_layernorm.weight[3] = torch.nan
    with pytest.raises(spikebrain.SpikebrainError, match=r"layers\.1\.self_attn\.q_proj"):
        model(input_ids=torch.tensor([[3]]), **options)


@compiled
def exp_of_all(x, out):
    for i in range(x.shape[0]):
        out[i] = decoder_parts.exp(x[i])


def test_exp():
    x = np.linspace(-87, 88, 200_001).astype(np.float32)
    found = np.empty_like(x)
    exp_of_all(x, found)
    exact = np.exp(x.astype(np.float64))
    assert np.abs(found / exact - 1).max() < 2**-23
    assert decoder_parts.exp(np.float32(-1e30)) < 1e-37
    assert decoder_parts.exp(np.float32(0)) == 1


def test_parts_between_projections():
    x, weight, up, out = (torch.randn(48).numpy() for _ in range(4))
    decoder_parts.rms_norm(x, weight, np.float32(1e-5), out)
    expected = F.rms_norm(torch.from_numpy(x), (48,), torch.from_numpy(weight), 1e-5)
    torch.testing.assert_close(torch.from_numpy(out), expected)
    decoder_parts.silu_product(x, up, out)
    torch.testing.assert_close(torch.from_numpy(out), F.silu(torch.from_numpy(x)) * torch.from_numpy(up))


@pytest.mark.parametrize("widths", [[576, 192, 192], [1], [64, 64], [49152], [100, 3, 77]])
@pytest.mark.parametrize("num_shares", [1, 2, 3, 16])
@pytest.mark.parametrize("unit", [16, 128])
def test_shares_hold_every_output_once(widths, num_shares, unit):
    found = shares(widths, num_shares, unit)
    assert 1 <= len(found) <= num_shares
    assert all(share for share in found)
    for which, width in enumerate(widths):
        pieces = sorted((start, stop) for share in found for w, start, stop in share if w == which)
        assert [n for start, stop in pieces for n in range(start, stop)] == list(range(width))
        assert all(start % unit == 0 for start, _ in pieces)
