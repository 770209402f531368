import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from spikebrain import AdaptiveThreshold, SpikeLinear, SpikeSettings, Ternary, decode, record, to_spiking
from spikebrain.coding import TwosComplement
from spikebrain.errors import InputError
from spikebrain.models import Recording

IDS = torch.arange(12)[None]


def by_hand_layer():
    return SpikeLinear.from_linear(nn.Linear(4, 3), neuron=AdaptiveThreshold(k=3.0), name="x")


# Thresholds 0.5 and 1: counts [2, -2, 8, 0] and [7, -3, -2, 0].
BY_HAND = torch.tensor([[1.0, -1.0, 4.0, 0.0], [7.0, -3.0, -2.0, 0.0]])


def test_by_hand():
    layer = by_hand_layer()
    with record(layer) as recording:
        layer(BY_HAND)
    found = recording.layers[""]
    assert dict(found.count_histogram) == {2: 1, -2: 2, 8: 1, 0: 2, 7: 1, -3: 1}
    assert (found.num_tokens, found.in_features, found.out_features) == (2, 4, 3)
    # Bits: 2, -2 and 8 have one, 7 three, -3 two, -2 one: 9 spikes of either sign in 4 timesteps of 8 places.
    assert (found.num_spikes, found.num_timesteps, found.num_slots) == (9, 4, 32)


def test_calls_of_different_length_add_up():
    layer = by_hand_layer()
    with record(layer) as recording:
        layer(BY_HAND[:1])  # 8 needs 4 timesteps: 16 places
        layer(BY_HAND[1:])  # 7 needs 3: 12 places
    assert (recording.layers[""].num_slots, recording.layers[""].num_timesteps) == (28, 4)


def test_the_model_is_as_it_was(tiny_llama):
    model = to_spiking(tiny_llama)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}
    with torch.no_grad():
        before = model(IDS).logits
        with record(model):
            during = model(IDS).logits
        with pytest.raises(RuntimeError, match="user"), record(model):
            raise RuntimeError("of the user")
        after = model(IDS).logits
    assert torch.equal(before, during)
    assert torch.equal(before, after)
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert {name: set(vars(module)) for name, module in model.named_modules()} == attributes
    assert all(m.observers == [] for m in model.modules() if isinstance(m, SpikeLinear))


def test_layers_and_nesting(tiny_llama):
    model = to_spiking(tiny_llama)
    with record(model) as everything, record(model, layers=("*.down_proj",)) as some:
        model(IDS)
    assert len(everything.layers) == 14
    assert list(some.layers) == [f"model.layers.{i}.mlp.down_proj" for i in range(2)]
    for name, layer in some.layers.items():
        assert layer == everything.layers[name]
        assert layer.count_histogram.total() == 12 * 40


def test_trains_only_when_asked(tiny_llama):
    model = to_spiking(tiny_llama, SpikeSettings(encoder=Ternary()))
    name = "model.layers.0.mlp.up_proj"
    with record(model) as without, record(model, layers=(name,), keep_trains=True) as kept:
        model(IDS)
    assert not without.trains
    train = kept.spikes_of(name)
    assert train.spikes.shape[1:] == (12, 24)
    assert train.num_spikes == kept.layers[name].num_spikes
    counts = decode(train)
    assert {int(c): int((counts == c).sum()) for c in counts.unique()} == dict(kept.layers[name].count_histogram)
    with pytest.raises(InputError, match="keep_trains=True"):
        without.spikes_of(name)


def test_trains_of_different_length_are_padded_and_the_padding_is_known():
    layer = by_hand_layer()
    with record(layer, keep_trains=True) as recording:
        layer(BY_HAND[:1])
        layer(BY_HAND[1:])
    first, second = recording.trains[""]
    assert (first.num_timesteps, second.num_timesteps) == (4, 3)
    train = recording.spikes_of("")
    assert train.timestep_weight.tolist() == [8, 4, 2, 1]  # the second call's 4, 2, 1 are the last three
    assert torch.equal(decode(train), torch.cat([decode(first), decode(second)]))
    assert train.num_spikes == first.num_spikes + second.num_spikes
    num_second = second.spikes.shape[1]
    assert recording.ran_timesteps("").tolist() == [[True] + [False] * num_second] + [[True] * (1 + num_second)] * 3


def test_trains_of_equal_timesteps_are_padded_at_their_end(tiny_llama):
    model = to_spiking(tiny_llama, SpikeSettings(encoder=Ternary()))
    with record(model, layers=("*0.mlp.down_proj",), keep_trains=True) as recording:
        model.generate(IDS[:, :6], max_new_tokens=3, do_sample=False)
    name = "model.layers.0.mlp.down_proj"
    lengths = [(t.num_timesteps, t.spikes.shape[1]) for t in recording.trains[name]]
    ran = recording.ran_timesteps(name)
    assert ran.sum(0).tolist() == [length for length, tokens in lengths for _ in range(tokens)]
    assert bool((ran[:-1] | ~ran[1:]).all())  # none runs after one that was added
    counts = torch.cat([decode(train) for train in recording.trains[name]])
    assert torch.equal(decode(recording.spikes_of(name)), counts)


def test_trains_that_no_padding_joins():
    recording = Recording({})
    for num_timesteps in (3, 4):  # the first weighs -4 in one and -8 in the other
        train = TwosComplement().encode(torch.tensor([[1, -2]], dtype=torch.int32), num_timesteps=num_timesteps)
        recording.trains.setdefault("a", []).append(train)
    with pytest.raises(InputError, match=r"call 0 has timesteps of weight \[-4, 2, 1\].*\[-8, 4, 2, 1\].*one by one"):
        recording.spikes_of("a")
    with pytest.raises(InputError, match="one by one"):
        recording.ran_timesteps("a")


def test_a_recording_prints_a_table():
    layer = by_hand_layer()
    with record(layer) as recording:
        assert "0 tokens" in repr(recording)  # before anything ran
        layer(BY_HAND)
    # 9 spikes in 8 channels; 32 places.
    assert repr(recording).splitlines() == [
        "Recording of SpikeLinear: 1 layers, 2 tokens",
        "kind of layer  layers  spikes per channel  firing rate  timesteps",
        "                    1              1.1250       28.12%          4",
    ]


@pytest.mark.slow
def test_threads_share_a_recording(tiny_llama):
    model = to_spiking(tiny_llama)
    batches = [torch.randint(0, 256, (1, 10)) for _ in range(12)]

    def run(num_threads) -> Recording:
        with record(model) as recording, ThreadPoolExecutor(num_threads) as pool:
            list(pool.map(model, batches))
        return recording

    assert run(1).layers == run(4).layers


def test_counts_of_any_size():
    # Beyond the ceiling of the threshold counts can be huge; the histogram must not reserve a bin for each.
    layer = SpikeLinear.from_linear(nn.Linear(2, 1, bias=False))
    layer.weight.zero_()
    with record(layer) as recording:
        layer(torch.tensor([[3e9, -3e10]]))
    assert dict(recording.layers[""].count_histogram) == {300_000: 1, -3_000_000: 1}


def test_nothing_to_record(tiny_llama):
    with pytest.raises(InputError, match="Call to_spiking first"), record(tiny_llama):
        pass
    with (
        pytest.raises(InputError, match=r"record: layers 'x': expected a pattern.*Patterns that match: \*model\*"),
        record(to_spiking(tiny_llama), layers=("x",)),
    ):
        pass


def test_order_is_that_of_the_first_runs(tiny_llama):
    model = to_spiking(tiny_llama)
    with record(model) as recording:
        model(IDS)
        model(IDS)
    block = [
        "",
        ".input_layernorm",
        ".self_attn",
        ".self_attn.q_proj",
        ".self_attn.k_proj",
        ".self_attn.v_proj",
        ".self_attn.o_proj",
        ".post_attention_layernorm",
        ".mlp",
        ".mlp.gate_proj",
        ".mlp.up_proj",
        ".mlp.down_proj",
    ]
    blocks = [f"model.layers.{i}{name}" for i in range(2) for name in block]
    assert recording.order == ["model.embed_tokens", *blocks, "model.norm", "lm_head"]
    # A recording that goes on after it was restored keeps the order.
    state = json.loads(json.dumps(recording.state()))
    with record(model) as restored:
        restored.restore(state)
        model(IDS)
    assert restored.order == recording.order
    assert restored.layers["model.layers.0.mlp.up_proj"].num_tokens == 36
    assert restored.layers["model.layers.0.mlp.up_proj"].weight_reads[0].num_groups == 36
