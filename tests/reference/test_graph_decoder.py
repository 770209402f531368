"""The graph decoder beside the model's own code: on a GPU, and without a graph in Triton's interpreter."""

import copy

import pytest
import torch
from devices import DEVICES, INTERPRETING, run_in_interpreter
from llama_type import (
    MODELS,
    SETTINGS,
    cache_of,
    cache_option,
    plain_forward,
    spiking_model,
    tokens_of,
)

from spikebrain import AdaptiveThreshold, DeadZoneThreshold, Reference, SpikeLinear, SpikeSettings, describe_decoding
from spikebrain.models.decoding import decoder_of
from spikebrain.models.decoding.fits import projections
from spikebrain.models.decoding.graph import GraphDecoder, why_not_graph
from spikebrain.models.decoding.kv_room import room_of

pytest.importorskip("triton")
CASES = [
    *[(name, "all") for name in MODELS],
    ("llama", "head too, rare spikes"),
    ("llama", "counts of three digits"),
    ("llama", "dead zone"),
    ("qwen2", "half dense"),
    ("qwen2", "4 bits"),
    ("qwen2", "4 bits, dead zone"),
    ("llama", "coarse rows"),
    ("qwen2", "4 bits, coarse rows"),
]
INTERPRETED = [
    ("llama, bias and scaled positions", "all"),
    ("qwen3", "all"),
    ("llama", "head too, rare spikes"),
    ("llama", "dead zone"),
    ("qwen2", "half dense"),
    ("llama", "coarse rows"),
]
SETTINGS = {
    **SETTINGS,
    "counts of three digits": SpikeSettings(neuron=AdaptiveThreshold(400.0)),
    "4 bits": SpikeSettings(weights="int4"),
    "coarse rows": SpikeSettings(
        neuron=DeadZoneThreshold(8.0, dead_zone=0.2), coarse={"*down_proj": ((2, 2), (4, 9)), "*": ((4, 6),)}
    ),
    "4 bits, coarse rows": SpikeSettings(neuron=AdaptiveThreshold(8.0), weights="int4", coarse=((2, 5),)),
    "half dense": SpikeSettings(layers=("*.q_proj", "*.k_proj", "*.v_proj", "*.down_proj")),
}


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETING, reason="this is the process that it starts")
def test_all_of_this_through_the_interpreter():
    run_in_interpreter(__file__)


def model_on(device, name="llama", settings="all", dtype=torch.float32):
    model = spiking_model(name, SETTINGS[settings])
    if device == "cpu":
        # The interpreter takes seconds for a layer.
        del model.model.layers[2:]
        model.config.num_hidden_layers = 2
    return model.to(device, dtype)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("name", "settings"), CASES)
@torch.inference_mode()
def test_integers_are_exact_and_logits_those_of_the_model(device, name, settings):
    if device == "cpu" and (name, settings) not in INTERPRETED:
        pytest.skip("half a minute in the interpreter; a GPU runs it")
    model = model_on(device, name, settings)
    cache = cache_of(plain_forward(model, input_ids=torch.randint(0, 300, (1, 7), device=device), use_cache=True))
    theirs = copy.deepcopy(cache)
    assert why_not_graph(model) is None
    decoder = GraphDecoder(model)
    for position in range(7, 8 if device == "cpu" else 10):
        token = torch.randint(0, 300, (1, 1), device=device)
        expected = plain_forward(model, input_ids=token, use_cache=True, **cache_option(theirs)).logits
        room = room_of(cache, decoder.num_key_heads, decoder.head_dim, decoder.dtype, decoder.device)
        found = decoder.decode(token, torch.tensor([[position]], device=device), room.memory, position)
        room.show(cache.layers, room.views(position + 1))
        # The same state goes in, so only a count that lies on a rounding's edge may differ.
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
        for ours, other in zip(cache.layers, theirs.layers, strict=True):
            torch.testing.assert_close(ours.keys, other.keys, rtol=0, atol=2e-2)
            torch.testing.assert_close(ours.values, other.values, rtol=0, atol=2e-2)
        theirs = copy.deepcopy(cache)
    check_stages(model, decoder)


def check_stages(model, decoder):
    """Run every stage on what is in the decoder's memory, and compare its outputs bit for bit with the plain steps."""
    checked = 0
    groups = [group for block in model.model.layers for group in projections(block)] + [[model.lm_head]]
    plans = [plan for block in decoder._blocks for plan in block] + [decoder._last]
    for group, plan in zip(groups, plans, strict=True):
        if callable(plan):
            continue
        layer = getattr(group[0], "own", group[0])
        seen = torch.empty(1, layer.in_features, dtype=decoder.dtype, device=decoder.device)
        before = plan.stage.y.clone()
        decoder._run(plan._replace(stage=plan.stage._replace(seen=seen)))
        outputs = torch.cat([plain_output(member, seen) for member in group], 1)
        expected = before + outputs if plan.stage.residual else outputs
        if layer.group_size is None:
            assert torch.equal(plan.stage.y, expected)
        else:
            torch.testing.assert_close(plan.stage.y, expected, rtol=1e-5, atol=1e-5)
        assert not plan.stage.failed.any()
        checked += sum(len(levels_of(member)) for member in group)
    assert checked == len([module for module in model.modules() if isinstance(module, SpikeLinear)])


def levels_of(layer):
    return getattr(layer, "levels", [layer])


def plain_output(layer, x):
    plain = copy.deepcopy(layer)
    for level in levels_of(plain):
        level.backend = Reference()
    return plain(x)


@pytest.mark.parametrize("device", DEVICES)
@torch.inference_mode()
def test_long_caches_are_read_in_shares(device):
    model = model_on(device)
    cache = cache_of(plain_forward(model, input_ids=torch.randint(0, 300, (1, 300), device=device), use_cache=True))
    token = torch.tensor([[5]], device=device)
    expected = plain_forward(model, input_ids=token, use_cache=True, **cache_option(copy.deepcopy(cache))).logits
    decoder = GraphDecoder(model)
    room = room_of(cache, decoder.num_key_heads, decoder.head_dim, decoder.dtype, decoder.device)
    for _ in range(2):  # the counters of arrived programs are zero again
        found = decoder.decode(token, torch.tensor([[300]], device=device), room.memory, 300)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


@pytest.mark.parametrize("device", DEVICES)
@torch.inference_mode()
def test_activations_that_are_not_finite_are_left_to_the_separate_steps(device):
    model = model_on(device)
    decoder = GraphDecoder(model)
    cache = cache_of(plain_forward(model, input_ids=torch.tensor([[1, 2]], device=device), use_cache=True))
    room = room_of(cache, decoder.num_key_heads, decoder.head_dim, decoder.dtype, decoder.device)
    given = torch.tensor([[1]], device=device), torch.tensor([[2]], device=device), room.memory, 2
    assert decoder.decode(*given) is not None
    model.model.layers[1].self_attn.o_proj.scale[3] = float("inf")
    assert decoder.decode(*given) is None
    model.model.layers[1].self_attn.o_proj.scale[3] = 1.0
    assert decoder.decode(*given) is not None


@pytest.mark.parametrize("device", DEVICES)
def test_what_it_is_not_for(device):
    model = model_on(device)
    assert why_not_graph(model) is None
    model.model.layers[1].mlp.down_proj.backend = Reference()
    assert "backend" in why_not_graph(model)
    model = model_on(device)
    model.model.layers[0].mlp.up_proj.neuron = AdaptiveThreshold(2.0)
    assert "different neurons" in why_not_graph(model)
    model = model_on(device, settings="half dense")
    assert why_not_graph(model) is None
    mixed = spiking_model("llama", SpikeSettings(layers=("*.q_proj",))).to(device)
    assert "only some" in why_not_graph(mixed)
    model = model_on(device)
    model.model.rotary_emb.rope_type = "dynamic"
    assert "dynamic" in why_not_graph(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("device", DEVICES[1:])
def test_generate_uses_it_and_gives_the_same_tokens(device, dtype, monkeypatch):
    model = model_on(device, "qwen3", dtype=dtype)
    ids = torch.randint(0, 300, (1, 5), device=device)
    calls = []
    start = GraphDecoder.start
    monkeypatch.setattr(GraphDecoder, "start", lambda self, *given: calls.append(given[3]) or start(self, *given))
    found = tokens_of(model, ids, 300)  # rooms of 268 and 800 rows
    assert calls == list(range(5, 5 + 299))
    assert "graph decoder" in describe_decoding(model)
    assert isinstance(decoder_of(model), GraphDecoder)
    monkeypatch.delattr(model, "forward")
    # One pass over the whole text predicts the same tokens, or others that are as likely to rounding: in bfloat16 a
    # count that flips moves a logit of these small random models by a tenth.
    with torch.inference_mode():
        logits = model(found).logits.float()
    chosen = logits[0, 4:-1].gather(1, found[0, 5:, None])[:, 0]
    assert float((logits[0, 4:-1].amax(1) - chosen).max()) < (1e-2 if dtype == torch.float32 else 0.4)


@pytest.mark.parametrize("device", DEVICES[1:])
@torch.no_grad()
def test_a_wrong_guess_is_dropped(device):
    model = model_on(device)
    prompt = torch.randint(0, 300, (1, 5), device=device)

    def after(tokens, change=lambda position: None):
        """Return the logits after each token, and by the model's own code after all of them."""
        cache, found = cache_of(plain_forward(model, input_ids=prompt, use_cache=True)), []
        for position, token in enumerate(tokens):
            change(position)
            found.append(model(token, use_cache=True, **cache_option(cache)).logits)
        return found, plain_forward(model, input_ids=torch.cat([prompt, *tokens], 1)).logits[:, -1:]

    def close(found, expected):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=5e-3 * float(expected.abs().max()))

    # The most likely tokens, which are guessed, with others between.
    tokens = [torch.tensor([[7]], device=device)]
    for step in range(6):
        likely = after(tokens)[0][-1].argmax(-1)
        tokens.append(torch.tensor([[11]], device=device) if step % 3 == 2 else likely)
        found, expected = after(tokens)
        close(found[-1], expected)
    # Two texts in turns.
    first, second = (cache_of(plain_forward(model, input_ids=prompt, use_cache=True)) for _ in range(2))
    for token in tokens:
        one = model(token, use_cache=True, **cache_option(first)).logits
        other = model(token, use_cache=True, **cache_option(second)).logits
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    close(one, expected)
    # Weights that are changed in place after a guess has started.
    norm = model.model.norm.weight
    likely = [tokens[0], after(tokens[:1])[0][-1].argmax(-1)]
    found, _ = after(likely, lambda position: norm.mul_(2) if position == 1 else None)
    close(found[-1], plain_forward(model, input_ids=torch.cat([prompt, *likely], 1)).logits[:, -1:])


@pytest.mark.parametrize("device", DEVICES[1:])
@torch.no_grad()
def test_a_guess_runs_and_its_memory_is_freed(device, monkeypatch):
    model, replays = model_on(device), []
    queue = GraphDecoder._queue
    monkeypatch.setattr(GraphDecoder, "_queue", lambda *token: replays.append(1) or queue(*token))
    ids = torch.randint(0, 300, (1, 5), device=device)
    tokens_of(model, ids, 20)
    assert len(replays) == 20  # 19 tokens, and one that nobody asked for
    tokens_of(model, ids, 20)  # layers record the prompt at their second call
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for _ in range(3):
        tokens_of(model, ids, 20)
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() <= before
    decoder = decoder_of(model)
    del model, decoder


@pytest.mark.parametrize("device", DEVICES)
@torch.inference_mode()
def test_tokens_beyond_the_vocabulary_are_left_to_the_separate_steps(device):
    model = model_on(device)
    decoder = GraphDecoder(model)
    size = len(model.model.embed_tokens.weight)
    memory = torch.zeros(2 * decoder.num_layers, 1, decoder.num_key_heads, 8, decoder.head_dim, device=device)
    position = torch.zeros(1, 1, dtype=torch.int64, device=device)
    for token, is_known in ((size - 1, True), (size, False), (-1, False), (2**40, False), (0, True)):
        ids = torch.tensor([[token]], device=device)
        assert (decoder.decode(ids, position, memory, 0) is not None) == is_known


@pytest.mark.parametrize("device", DEVICES)
def test_an_embedding_that_is_more_than_its_weight_is_not_for_the_graph(device):
    class Scaled(torch.nn.Embedding):
        def forward(self, input):
            return 2 * super().forward(input)

    model = model_on(device)
    plain = model.model.embed_tokens
    for options in ({}, {"max_norm": 1.0}):
        kind = torch.nn.Embedding if options else Scaled
        replaced = kind(*plain.weight.shape, **options, device=device)
        model.model.embed_tokens = replaced
        assert "of which more than the weight is needed" in why_not_graph(model)
    model.model.embed_tokens = plain
    assert why_not_graph(model) is None
