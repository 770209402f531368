"""The whole model: decoding equals prefill, padding, generate, sinks, training, what transformers does with it."""

import math

import pytest
import torch
from fast_first import fast_first
from transformers import AutoModelForCausalLM, DynamicCache, StaticCache

from spikebrain import spikingbrain_settings
from spikebrain.analysis.perplexity import one_thread
from spikebrain.errors import InputError
from spikebrain.models.conversion import to_spiking
from spikebrain.models.spikingbrain import (
    SpikingBrainCache,
    SpikingBrainForCausalLM,
    layout,
    parse_layers,
    tiny_7b,
    tiny_76b,
)
from spikebrain.models.spikingbrain.norm import RMSNorm

EVERYTHING = "gla,swa,full,gla+swa/moe,gla+full"
CONFIGS = {
    "7b": tiny_7b(initializer_range=0.2),
    "everything": tiny_76b(layers=parse_layers(EVERYTHING), initializer_range=0.1, window=5, num_sinks=3),
    "76b": tiny_76b(layers=layout("76b", 7)[3:], initializer_range=0.1, window=9),
    "no sinks": tiny_76b(layers=parse_layers(EVERYTHING), initializer_range=0.1, window=5, num_sinks=0),
}


@pytest.fixture(params=fast_first(CONFIGS, 2))
def model(request):
    return SpikingBrainForCausalLM(CONFIGS[request.param]).eval()


@pytest.fixture
def ids():
    return torch.randint(0, 256, (2, 30))


@torch.no_grad()
def in_parts(model, ids, lengths, mask=None):
    cache, logits = SpikingBrainCache(model.settings), []
    for part in ids.split(lengths, 1):
        seen = cache.num_tokens + part.shape[1]
        logits.append(model(part, cache=cache, attention_mask=None if mask is None else mask[:, :seen]).logits)
    return torch.cat(logits, 1), cache


@pytest.mark.parametrize("lengths", [[1] * 30, [15] + [1] * 15, [3, 17, 1, 1, 8]])
def test_decoding_equals_prefill(model, ids, lengths):
    with torch.no_grad():
        expected = model(ids).logits
    logits, cache = in_parts(model, ids, lengths)
    torch.testing.assert_close(logits, expected, atol=5e-5, rtol=1e-4)
    assert cache.num_tokens == cache.get_seq_length() == 30


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["as-described", "as-released"])
@pytest.mark.parametrize("name", ["7b", "everything"])
def test_decoding_equals_prefill_on_spikes(name, setting, ids):
    # In float64, where no rounding error turns one count into another.
    model = to_spiking(SpikingBrainForCausalLM(CONFIGS[name]).eval().double(), spikingbrain_settings(setting))
    with torch.no_grad():
        expected = model(ids).logits
    logits, _ = in_parts(model, ids, [9, 7, *[1] * 10, 4])
    torch.testing.assert_close(logits, expected, atol=1e-9, rtol=1e-9)


def test_a_padded_row_is_the_row_alone(model, ids):
    mask = torch.ones_like(ids)
    mask[0, :9] = 0
    with torch.no_grad():
        padded, alone = model(ids, attention_mask=mask).logits[0, 9:], model(ids[:1, 9:]).logits[0]
        other = model(ids.where(mask.bool(), 7), attention_mask=mask).logits[0, 9:]
    torch.testing.assert_close(padded, alone, atol=5e-5, rtol=1e-4)
    torch.testing.assert_close(padded, other, atol=0, rtol=0)
    logits, _ = in_parts(model, ids, [4, 8, *[1] * 18], mask)
    torch.testing.assert_close(logits[0, 9:], alone, atol=5e-5, rtol=1e-4)


def test_mask_of_the_new_tokens_only(model, ids):
    mask = torch.ones_like(ids)
    mask[0, :9] = 0
    expected, _ = in_parts(model, ids, [20, 10], mask)
    cache = SpikingBrainCache(model.settings)
    with torch.no_grad():
        parts = [model(ids[:, :20], attention_mask=mask[:, :20], cache=cache), model(ids[:, 20:], cache=cache)]
    torch.testing.assert_close(torch.cat([p.logits for p in parts], 1), expected)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}])
def test_generate(model, ids, options):
    mask = torch.ones_like(ids)
    mask[0, :9] = 0
    settings = {"attention_mask": mask, "max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, **options}
    written = model.generate(ids, **settings)
    assert torch.equal(written, model.generate(ids, use_cache=False, **settings))
    alone = model.generate(ids[:1, 9:], **{**settings, "attention_mask": mask[:1, 9:]})
    assert torch.equal(written[0, 30:], alone[0, 21:])
    if not options:
        from_embeddings = model.generate(inputs_embeds=model.model.embeddings(ids), **settings)
        assert torch.equal(from_embeddings, written[:, 30:])


def test_sampling_and_going_on_with_a_cache(model, ids):
    settings = {"max_new_tokens": 4, "pad_token_id": 0, "attention_mask": torch.ones_like(ids)}
    assert model.generate(ids, do_sample=True, num_return_sequences=2, **settings).shape == (4, 34)
    cache = SpikingBrainCache(model.settings)
    with torch.no_grad():
        model(ids[:, :20], cache=cache)
    gone_on = model.generate(ids, cache=cache, do_sample=False, **settings)
    assert torch.equal(gone_on, model.generate(ids, do_sample=False, **settings))


@pytest.mark.slow
def test_state_is_constant_but_for_full_attention(ids):
    def num_bytes(config, length):
        model = SpikingBrainForCausalLM(config).eval()
        return in_parts(model, ids[:1].repeat(1, 3)[:, :length], [20] + [1] * (length - 20))[1].num_bytes

    # Two states [2, 16, 16] and two windows of 17 keys and values [2, 16] with a byte that says whether they are text.
    assert num_bytes(tiny_7b(), 25) == num_bytes(tiny_7b(), 90) == 4 * (2 * 512 + 2 * 17 * 64) + 2 * 17
    with_full = tiny_7b(layers=parse_layers("gla,full"))
    assert num_bytes(with_full, 90) - num_bytes(with_full, 25) == 65 * (4 * 64 + 1)
    # On spikes a key is 16 bytes and a float scale.
    model = to_spiking(SpikingBrainForCausalLM(tiny_7b()).eval())
    assert in_parts(model, ids[:1], [30])[1].num_bytes == 4 * 2 * 512 + 2 * (17 * 2 * 2 * (16 + 4) + 17)


@pytest.mark.slow
def test_sinks_are_seen_by_every_token_and_change_nothing_else(ids):
    model = SpikingBrainForCausalLM(CONFIGS["everything"]).eval()
    with torch.no_grad():
        before, cache = model(ids).logits, SpikingBrainCache(model.settings)
        model(ids, cache=cache)
        assert cache.layers[1].columns.num_pinned == 3
        assert cache.layers[1].columns.tensors[0].shape[2] == 3 + 6
        model.model.sinks += 0.5
        after = model(ids).logits
    # The first token and the last, which is far outside the window of 5.
    assert bool(((after - before).abs().amax(-1) > 1e-4).all())


def test_sinks_equal_tokens_in_front_of_the_text(ids):
    """Full attention with one sink is the text with one more token in front, at position -1."""
    config = tiny_7b(layers=parse_layers("full,full"), num_sinks=1, initializer_range=0.2)
    model = SpikingBrainForCausalLM(config).eval()
    plain = SpikingBrainForCausalLM(config.replace(num_sinks=0)).eval()
    plain.load_state_dict(model.state_dict(), strict=False)
    with torch.no_grad():
        x = torch.cat([model.model.sinks[None].expand(2, -1, -1), model.model.embeddings(ids)], 1)
        torch.testing.assert_close(model(ids).logits, plain(inputs_embeds=x).logits[:, 1:], atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["7b", "76b"])
def test_training_lowers_the_loss(name, ids):
    model = SpikingBrainForCausalLM(CONFIGS[name].replace(initializer_range=0.02)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(8):
        found = model(ids, labels=ids)
        assert found.cache is None
        found.loss.backward()
        losses.append(found.loss.item())
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0] - 1.0
    if name == "76b":
        assert found.aux_loss.requires_grad
        assert found.aux_loss.item() >= 0.99


def test_every_parameter_learns(ids):
    model = SpikingBrainForCausalLM(CONFIGS["everything"]).train()
    model(ids, labels=ids).loss.backward()
    without = {n for n, p in model.named_parameters() if p.grad is None or not bool(p.grad.any())}
    assert {name for name in without if ".experts." not in name} == set()  # an expert may be silent


def test_loss(ids):
    model = SpikingBrainForCausalLM(CONFIGS["everything"].replace(aux_loss_weight=0.5)).eval()
    labels = ids.clone()
    labels[:, :10] = -100
    # On one thread: float sums over fewer tokens may be divided among threads in another way.
    with torch.no_grad(), one_thread():
        found = model(ids, labels=labels)
        nll = torch.nn.functional.cross_entropy(found.logits[:, 9:-1].flatten(0, 1), ids[:, 10:].flatten())
        torch.testing.assert_close(found.loss, nll + 0.5 * found.aux_loss)
        assert torch.equal(model(ids, logits_to_keep=3).logits, found.logits[:, -3:])


def test_gradient_checkpointing_gives_the_same_gradients(ids):
    model = SpikingBrainForCausalLM(CONFIGS["everything"]).train()

    def gradients():
        model.zero_grad()
        model(ids, labels=ids).loss.backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    expected = gradients()
    model.gradient_checkpointing_enable()
    found = gradients()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    with pytest.raises(InputError, match="can't be used with gradient checkpointing"):
        model(ids, cache=SpikingBrainCache(model.settings))


def test_hidden_states(model, ids):
    with torch.no_grad():
        found = model(ids, output_hidden_states=True)
    assert len(found.hidden_states) == model.settings.num_layers + 1
    assert torch.equal(found.hidden_states[0], model.model.embeddings(ids))
    assert torch.equal(model.lm_head(found.hidden_states[-1]), found.logits)
    assert isinstance(model(ids, return_dict=False), tuple)


def test_save_and_load_of_transformers(model, ids, tmp_path):
    model.save_pretrained(tmp_path)
    read = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(read) is SpikingBrainForCausalLM
    assert read.settings == model.settings
    assert all(torch.equal(read.state_dict()[name], x) for name, x in model.state_dict().items())
    tied = SpikingBrainForCausalLM(tiny_7b(tie_word_embeddings=True))
    assert tied.lm_head.weight is tied.model.embeddings.weight


def test_bfloat16_norm_sees_the_unrounded_sum():
    # 1 + 3 * 2^-8 = 1.01172 is a tie and rounds to 1.015625. With a second channel of 1 the root of the mean square is
    # 1.005876 for the exact sum, 1.007843 for the rounded one; 1 / 1.005876 = 0.99416 rounds to 0.99609375 (steps of
    # 2^-8), 1 / 1.007843 = 0.99222 to 0.9921875.
    x, residual = torch.tensor([[3 * 2.0**-8, 0.0]]).bfloat16(), torch.ones(1, 2).bfloat16()
    norm = RMSNorm(2, eps=0.0)
    normed, total = norm.after_residual(x, residual)
    assert total.tolist() == [[1.015625, 1.0]]
    assert normed[0, 1].item() == 0.99609375
    assert norm(total)[0, 1].item() == 0.9921875


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes(model, ids, dtype):
    with torch.no_grad():
        expected = model(ids).logits
        found = model.to(dtype)(ids)
    assert found.logits.dtype == dtype
    if dtype == torch.float64:
        torch.testing.assert_close(found.logits.float(), expected, atol=1e-4, rtol=1e-3)
    else:
        assert float((found.logits.float() - expected).abs().mean() / expected.std()) < 0.1


@pytest.mark.parametrize("setting", [None, "as-described"])
def test_training_in_mixed_precision(ids, setting):
    model = SpikingBrainForCausalLM(CONFIGS["everything"]).train()
    if setting is not None:
        model = to_spiking(model, spikingbrain_settings(setting))
    expected = model(ids, labels=ids).loss.item()
    with torch.autocast("cpu", torch.bfloat16):
        found = model(ids, labels=ids)
    found.loss.backward()
    assert found.loss.item() == pytest.approx(expected, rel=0.02)
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters() if p.grad is not None)


def test_resized_vocabulary(ids):
    model = SpikingBrainForCausalLM(tiny_7b()).eval()
    model.resize_token_embeddings(300)
    assert model.settings.vocab_size == to_spiking(model).settings.vocab_size == 300
    with torch.no_grad():
        found = model(ids, labels=ids)
    assert found.logits.shape == (2, 30, 300)
    assert found.loss.item() == pytest.approx(math.log(300), rel=0.05)


def test_wrong_arguments(ids):
    model = SpikingBrainForCausalLM(tiny_7b()).eval()
    cache = SpikingBrainCache(model.settings)
    model(ids, cache=cache)
    for arguments, message in [
        ({}, "either input_ids or inputs_embeds"),
        ({"input_ids": ids[:, :0]}, "at least one token"),
        ({"input_ids": ids, "attention_mask": ids[:, :7]}, r"attention_mask: expected shape \(2, 30\)"),
        ({"input_ids": ids, "position_ids": ids[:, :7]}, "position_ids: expected"),
        ({"input_ids": ids[:1], "cache": cache}, "expected 2 rows, as in the cache, got 1"),
        ({"input_ids": ids, "output_attention": True}, r"unknown arguments \['output_attention'\]"),
        ({"input_ids": ids, "token_type_ids": ids}, r"unknown arguments \['token_type_ids'\]"),
    ]:
        with pytest.raises(InputError, match=message):
            model(**arguments)
    spiking = to_spiking(model)
    cache = SpikingBrainCache(spiking.settings)
    spiking(ids, cache=cache)
    with torch.no_grad(), pytest.raises(InputError, match=r"under torch\.no_grad"):
        spiking(ids, cache=cache)
    with pytest.raises(InputError, match="can't take tokens back"):
        cache.crop(-1)


@pytest.mark.parametrize("kind", ["dynamic", "static", "tuple"])
@pytest.mark.usefixtures("as_users")
def test_a_cache_of_transformers_is_refused(kind):
    model = SpikingBrainForCausalLM(tiny_7b()).eval()
    make = {
        "dynamic": DynamicCache,
        "static": lambda: StaticCache(config=model.config, max_cache_len=32),
        "tuple": tuple,
    }
    ids = torch.arange(5)[None]
    for name in ("cache", "past_key_values"):
        with pytest.raises(InputError, match=r"expected a SpikingBrainCache, got (Dynamic|Static|tuple)"):
            model(ids, **{name: make[kind]()})
    if kind != "tuple":
        with pytest.raises(InputError, match=r"expected a SpikingBrainCache"):
            model.generate(ids, past_key_values=make[kind](), max_new_tokens=2)
