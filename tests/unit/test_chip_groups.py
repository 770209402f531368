"""Weights in groups and in few bits on a chip: exact sums of each group, and what rescaling takes, by hand."""

import json
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import spikebrain as sb
from spikebrain.backends import Chip, Reference
from spikebrain.chip import BYTES, ByRate, CoarseRows, InOrder, Weights, load_description, plan, simulate_layer
from spikebrain.chip.checks import placed
from spikebrain.cli.app import app
from spikebrain.coding import ENCODERS, SpikeTrain
from spikebrain.energy import load_table
from spikebrain.errors import InputError
from spikebrain.models import SpikeLinear, SpikeSettings
from spikebrain.models.layers.observing import observing
from spikebrain.models.layers.quantize import QuantizedWeight
from spikebrain.simulation.describe import describe_simulation
from spikebrain.simulation.layers import layers_of
from spikebrain.simulation.model import simulate_model, survey_model
from spikebrain.simulation.orders import learn_orders
from spikebrain.simulation.weights import weights_of
from spikebrain.testing.chips import changed

ASYNC = load_description("async-45nm")
# What a Q4_1 file has: groups of 32 with a scale and a minimum in 16 bits each.
STORED = Weights(4, 32, 32, has_minimum=True)


def test_memory_by_hand():
    # 576 inputs of 4 bits in 18 groups of 32 bits: 288 + 72 bytes an output. Of 10 outputs, 3600 bytes.
    assert STORED.num_bytes(576, 10) == 3600
    assert BYTES.num_bytes(576, 10) == 5760
    # 3 inputs of 2 bits and two groups of 7 bits, 20 bits an output: 3 outputs take 7.5 bytes.
    assert Weights(2, 2, 7).num_bytes(3, 3) == 8
    # A core of 4000 bytes. Sums take 4 bytes each: two groups, and for 2 tokens what is rescaled and what meets: 24
    # bytes an output beside the 360 of its weights. 10 outputs fit; of bytes with 16 bytes of sums, 6.
    small = changed(ASYNC, core={"sram_bytes": 4000})
    assert [len(block) for block in InOrder().place(576, 20, small, weights=STORED).output_blocks] == [10, 10]
    assert len(InOrder().place(576, 20, small).output_blocks) == 4
    # Half of that holds no output of 4 or more whole groups with all 576 inputs: blocks of inputs are whole groups.
    tiny = changed(ASYNC, core={"sram_bytes": 200})
    placement = InOrder().place(100, 3, tiny, weights=STORED)
    assert all(block.start % 32 == 0 for block in placement.input_blocks)
    assert placement.input_blocks[-1].stop == 100


def by_hand():
    """Counts 1, 3, 0 and -1 (in spikes of weight 2 and 1), two outputs, two groups of two channels."""
    spikes = np.array([[[0, 1, 0, 0]], [[1, 1, 0, -1]]], np.int8)
    weight = np.array([[1, 2], [3, 4], [5, 6], [7, 8]], np.int8)
    return spikes, np.array([2, 1]), weight


def test_a_layer_in_numbers():
    placement = InOrder().place(4, 2, ASYNC, weights=Weights(4, 2, 32, has_minimum=True))
    found = simulate_layer(*by_hand(), ASYNC, placement)
    # 1 * (1, 2) + 3 * (3, 4), and -(7, 8).
    assert found.group_sums.tolist() == [[[10, 14], [-7, -8]]]
    assert found.sums.tolist() == [[3, 6]]
    a = found.activity
    # Four sums are rescaled: a product with the scale and one of the minimum, and two additions. At home one product
    # with the threshold for each of two outputs. Three packets add to the sum of counts.
    assert (a.num_multiplies, a.num_adds) == (4 * 2 + 2, 4 * 2 + 3)
    # Three packets read and write two sums each, and each rescaled sum is read and added to another.
    assert a.num_updates == 3 * 2 + 4 + 4
    # All weights lie in one block of 32 bytes, all parameters in another. Channel 0 reads the weights, 1 has them
    # still, 3 reads first the parameters of the first group, then its weights; the end, parameters of the second.
    assert a.num_sram_blocks == 1 + 0 + 2 + 1
    assert found.energy_pj["dense rest"] == pytest.approx(10 * 3.7 + 11 * 0.9)
    # Without groups, but with minima: at home two products with scale and threshold and one of the minimum, and the
    # sum of counts of three packets.
    alone = InOrder().place(4, 2, ASYNC, weights=Weights(4, has_minimum=True))
    found = simulate_layer(*by_hand(), ASYNC, alone)
    assert found.group_sums is None
    assert (found.activity.num_multiplies, found.activity.num_adds) == (3 * 2, 2 + 3)


def test_silent_groups_cost_nothing():
    spikes, timestep_weight, weight = by_hand()
    spikes[:, :, 3] = 0
    placement = InOrder().place(4, 2, ASYNC, weights=Weights(4, 2, 32, has_minimum=True))
    found = simulate_layer(spikes, timestep_weight, weight, ASYNC, placement)
    assert found.outcome.num_rescaled.tolist() == [2]
    silent = simulate_layer(0 * spikes, timestep_weight, weight, ASYNC, placement)
    assert silent.outcome.num_rescaled.tolist() == [0]
    assert silent.activity.num_sram_blocks == 0
    assert silent.sums.tolist() == [[0, 0]]


def test_a_packet_of_a_third_group_waits():
    """Groups of one channel, one output: a spike each nanosecond, and 20 ns to rescale (two operations of 10 ns)."""
    ideal = load_description("ideal-45nm")
    chip = changed(ideal, encoder={"spike_ns": 1.0}, digital={"operation_ns": 10.0, "lanes": 1})
    placement = InOrder().place(3, 1, chip, weights=Weights(8, 1, 16))
    run = np.ones((1, 1, 3), np.int8), np.ones(1), np.array([[5], [6], [7]], np.int8), chip, placement
    for implementation in ("engine", "simpy"):
        found = simulate_layer(*run, trace=True, implementation=implementation)
        trace, core = found.outcome.trace, found.network.names.index("accumulate 0")
        begin, end = (times[trace.station == core].tolist() for times in (trace.begin_ps, trace.end_ps))
        # The second packet ends the first group, which the unit has until 22 ns. The third waits until then and ends
        # the second group, until 42 ns; the end of the token the third, until 62 ns.
        assert begin == [1000, 2000, 3000, 22000]
        assert end == [1000, 2000, 22000, 62000]
        assert found.end_ps.tolist() == [72000]  # and 10 ns for the product with the threshold
        assert found.group_sums.tolist() == [[[5], [6], [7]]]
    # With a unit for each of two cores of a tile, they would not wait for each other: they share its lanes.
    shared = changed(chip, digital={"lanes": 2}, mesh={"cores_per_tile": 2})
    assert simulate_layer(*run[:3], shared, placement).end_ps.tolist() == [62000 + 5000]


def test_what_is_refused():
    loihi = load_description("loihi")
    with pytest.raises(InputError, match=r"^up: loihi: expected weights with one scale an output.*group_size=32"):
        plan({"up": (64, 8)}, loihi, InOrder(), weights={"up": STORED})
    assert len(plan({"up": (64, 8)}, loihi, InOrder(), weights={"up": Weights(4)})["up"].cores) == 1
    few = changed(ASYNC, core={"register_accumulators": 1, "register_pj": 2.5, "accumulator_banks": 1})
    with pytest.raises(InputError, match=r"2 accumulators in registers, one for each of two groups"):
        InOrder().place(64, 8, few, weights=STORED)
    with pytest.raises(InputError, match=r"holds no group of weights and its accumulators \(44 bytes\)"):
        InOrder().place(64, 8, changed(ASYNC, core={"sram_bytes": 43}), weights=STORED)
    placement = InOrder().place(4, 2, ASYNC, weights=Weights(4, 2))
    spikes, timestep_weight, weight = by_hand()
    with pytest.raises(InputError, match=r"expected weights of 4 bits, -8 to 7, got 1 to 8"):
        simulate_layer(spikes, timestep_weight, weight, ASYNC, placement)
    with pytest.raises(InputError, match=r"order: expected the 2 channels of a group beside each other"):
        simulate_layer(spikes, timestep_weight, weight - 1, ASYNC, placement, order=np.array([0, 2, 1, 3]))
    for wrong, message in (
        ({"bits": 5}, "bits: expected 8, 4 or 2, got 5"),
        ({"group_size": 0}, "group_size: expected None or an integer >= 1, got 0"),
        ({"parameter_bits": 16}, "parameter_bits: expected 0 or more, and 0 without groups"),
    ):
        with pytest.raises(InputError, match=message):
            Weights(**wrong)


class OnlyBytes(InOrder):
    """A mapping of somebody else, whose cut knows nothing of other weights."""

    def cut(self, in_features, out_features, chip):
        return 1, 2


class Mixing(InOrder):
    """One that cuts through groups."""

    def place(self, *args, **kwargs):
        found = super().place(*args, **kwargs)
        cores = tuple(
            replace(core, inputs=inputs, outputs=range(2)) for core in found.cores for inputs in (range(3), range(3, 8))
        )
        return replace(found, cores=cores, num_input_blocks=2)


def test_mappings_of_others(as_users):
    assert len(placed(OnlyBytes(), 8, 2, ASYNC).cores) == 2
    with pytest.raises(InputError, match=r"OnlyBytes\.cut: expected a parameter `weights` for a layer of 4 bits"):
        placed(OnlyBytes(), 8, 2, ASYNC, weights=Weights(4, 4))
    with pytest.raises(InputError, match=r"Mixing\.place.*cores of whole groups of 4 inputs"):
        placed(Mixing(), 8, 2, changed(ASYNC, mesh={"cores_per_tile": 2}), weights=Weights(4, 4))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 70),
    st.integers(1, 9),
    st.integers(0, 3),
    st.sampled_from([None, 1, 3, 16, 32]),
    st.sampled_from([8, 4, 2]),
    st.booleans(),
    st.sampled_from([name for name in ENCODERS if not ENCODERS.create(name).lossy]),
    st.integers(0, 2**32),
)
def test_layers_give_the_sums_and_outputs_of_reference(
    num_in, num_out, num_tokens, group_size, bits, has_minimum, encoder, seed
):
    rng = torch.Generator().manual_seed(seed)
    least = 0 if has_minimum and bits < 8 else -(2 ** (bits - 1))
    weight = torch.randint(least, least + 2**bits, (num_out, num_in), generator=rng, dtype=torch.int8)
    num_groups = 1 if group_size is None else -(-num_in // group_size)
    scale, minimum = torch.rand(2, num_out, num_groups, generator=rng)
    quantized = QuantizedWeight(weight, scale, minimum if has_minimum else None, group_size, bits)
    chip = changed(ASYNC, core={"sram_bytes": 400, "queue_packets": 1}, mesh={"cores_per_tile": 2})
    x = 3 * torch.randn(num_tokens, num_in, generator=rng)
    seen, sums, outputs = [], [], []
    for backend in (Chip(chip, on_simulation=seen.append), Reference()):
        layer = SpikeLinear.from_quantized(quantized, encoder=encoder, backend=backend)
        with observing([layer], lambda _, step: sums.append(step.accumulation)), torch.no_grad():
            outputs.append(layer(x))
    if num_tokens:
        assert torch.equal(*sums)
        assert len(seen) == 1
        assert seen[0].placement.weights.bits == bits
    assert torch.equal(*outputs)


class Simulator(Reference):
    """A backend of somebody else that is told how weights lie."""

    knows_memory = True
    wrong = 0
    memory: ClassVar[list] = []

    def accumulate_in_memory(self, train, weight, memory):
        self.memory.append(memory)
        spikes, step = train.spikes, memory.group_size
        parts = [
            self.accumulate(SpikeTrain(spikes[..., i : i + step], train.timestep_weight), weight[:, i : i + step])
            for i in range(0, weight.shape[1], step)
        ]
        return torch.stack(parts, -2) + self.wrong


class WrongSimulator(Simulator):
    """One whose sums are wrong."""

    wrong = 1


def test_a_backend_of_others_is_told_how_weights_lie_and_checked(as_users):
    torch.manual_seed(0)
    linear, x = torch.nn.Linear(40, 6), torch.randn(3, 40)
    settings = {"weight_bits": 4, "group_size": 16}
    with torch.no_grad():
        expected = SpikeLinear.from_linear(linear, backend="reference", **settings)(x)
        assert torch.equal(SpikeLinear.from_linear(linear, backend=Simulator(), **settings)(x), expected)
        # Three groups, each with a scale and a minimum of four bytes for 6 outputs.
        assert Simulator.memory[-1] == (4, 16, 3 * 6 * 8, True)
        with pytest.raises(InputError, match=r"WrongSimulator\.accumulate_in_memory: expected the exact sum"):
            SpikeLinear.from_linear(linear, backend=WrongSimulator(), **settings)(x)


def small_llama(settings, model):
    return sb.to_spiking(model, settings).eval()


KINDS = {
    "groups": SpikeSettings(group_size=16),
    "int4": SpikeSettings(weights="int4"),
    "compact": SpikeSettings(weights="int4", group_size=8, compact_scales=True),
    "coarse": SpikeSettings(weights="int4", coarse=((2, 2),)),
    "two levels": SpikeSettings(coarse=((2, 1), (4, 4)), group_size=24),
}


@pytest.mark.parametrize("mode", ["decode", "prefill"])
@pytest.mark.parametrize("kind", list(KINDS))
def test_a_whole_model(tiny_llama, kind, mode):
    spiking = small_llama(KINDS[kind], tiny_llama)
    ids = torch.arange(4)
    found = simulate_model(spiking, ids, ASYNC, mode=mode, trace=True)
    layers = layers_of(spiking)
    assert list(found.layers) == list(layers)
    assert sum(layer.num_mismatches for layer in found.layers.values()) == 0
    assert sum(layer.num_sums for layer in found.layers.values()) == 4 * sum(
        one.scale.numel() for one in layers.values()
    )
    report = found.energy_report()
    assert report.total_pj == pytest.approx(sum(found.energy_pj.values()))
    # A recorded survey gives the same.
    again = simulate_model(spiking, ids, ASYNC, mode=mode, surveyed=survey_model(spiking, ids))
    assert again.energy_pj == found.energy_pj
    assert np.array_equal(again.end_ps, found.end_ps)


def test_what_a_layer_of_a_model_takes_in_a_core(tiny_llama):
    up = "model.layers.0.mlp.up_proj"
    found = {}
    for kind, chosen in KINDS.items():
        spiking = small_llama(chosen, tiny_llama)
        found[kind] = weights_of(layers_of(spiking))
    # 24 inputs: two groups of 16 with a float32 scale, which float16 has not; one group of 32 is one scale an output.
    assert found["groups"][up] == Weights(8, 16, 32)
    assert found["int4"][up] == Weights(4, has_minimum=True)
    # Three groups of 15 bits in 6 bytes, and two floats: 14 bytes for three groups, 37.3 bits each.
    assert found["compact"][up] == Weights(4, 8, 38, has_minimum=True)
    assert found["coarse"][up] == Weights(4, has_minimum=True)
    assert found["two levels"][up] == Weights(8)


def test_coarse_rows_in_numbers():
    spikes, timestep_weight, weight = by_hand()
    rows = CoarseRows(4, np.array([[1, 5], [9, 9], [9, 9], [13, 15]], np.int16), np.array([[True, False, True, True]]))
    bytewise = changed(ASYNC, core={"block_bytes": 1})
    run = (spikes, timestep_weight, weight, bytewise, InOrder().place(4, 2, bytewise))
    found = simulate_layer(*run, coarse=[rows])
    # In halves: count 1 reads (1, 5), count 3 twice (3, 4), and count -1 (13, 15).
    assert found.sums.tolist() == [[1 + 3 * 6 - 13, 5 + 3 * 8 - 15]]
    # A whole row is two bytes, its upper half one.
    assert (found.activity.num_sram_blocks, simulate_layer(*run).activity.num_sram_blocks) == (1 + 2 + 1, 3 * 2)
    assert found.activity.num_synops == simulate_layer(*run).activity.num_synops
    order = np.array([3, 1, 0, 2])
    assert simulate_layer(*run, coarse=[rows], order=order).sums.tolist() == found.sums.tolist()
    # One spike does not tell a core how large the count is.
    narrow = changed(ASYNC, packet={"payload": "spike", "payload_bits": 2})
    simulate_layer(*run[:3], narrow, run[4])
    with pytest.raises(InputError, match=r"can't hold sign and digit of 2 timesteps, and which of 2 kinds of rows"):
        simulate_layer(*run[:3], narrow, run[4], coarse=[rows])
    with pytest.raises(InputError, match=r"CoarseRows\.read: expected channels that read one kind of rows each"):
        simulate_layer(*run, coarse=[rows, rows])
    with pytest.raises(InputError, match=r"CoarseRows: expected weights \(4, 2\) and read \(1, 4\)"):
        simulate_layer(*run, coarse=[replace(rows, read=rows.read[:, :3])])
    for wrong in ({"bits": 8}, {"bits": 0}, {"weight": rows.weight.astype(np.int32)}):
        with pytest.raises(InputError, match=r"CoarseRows: expected int16 rows of 1 to 7 bits, fewer than the layer's"):
            simulate_layer(*run, coarse=[replace(rows, **wrong)])
    with pytest.raises(InputError, match=r"CoarseRows\.read: expected bool, got int64"):
        simulate_layer(*run, coarse=[replace(rows, read=rows.read.astype(np.int64))])


@pytest.mark.parametrize("implementation", ["engine", "simpy"])
def test_coarse_rows_of_any_size_are_added_exactly(implementation):
    spikes, timestep_weight, weight = by_hand()
    rows = CoarseRows(4, np.full((4, 2), 2**15 - 1, np.int16), np.ones((1, 4), bool))
    wide = changed(ASYNC, packet={"payload_bits": 32})
    run = (np.abs(spikes), timestep_weight * 2**14, weight, wide, InOrder().place(4, 2, wide))
    found = simulate_layer(*run, coarse=[rows], implementation=implementation)
    assert found.sums.tolist() == [[5 * 2**14 * (2**15 - 1)] * 2]


@pytest.mark.parametrize("encoder", list(ENCODERS))
def test_coarse_rows_with_every_code(tiny_llama, encoder):
    spiking = small_llama(replace(KINDS["two levels"], encoder=encoder), tiny_llama)
    if encoder == "poisson":
        with pytest.raises(
            InputError, match=r"q_proj.*: expected a code that keeps a channel's spikes whatever others"
        ):
            simulate_model(spiking, torch.arange(3), ASYNC)
        return
    found = simulate_model(spiking, torch.arange(3), ASYNC)
    assert sum(layer.num_mismatches for layer in found.layers.values()) == 0


def test_coarse_rows_read_less(tiny_llama):
    narrow, ids = changed(ASYNC, core={"block_bytes": 2}), torch.arange(3)
    found = simulate_model(small_llama(KINDS["coarse"], tiny_llama), ids, narrow)
    # MACs are those of the dense layer, once.
    plain = simulate_model(small_llama(SpikeSettings(weights="int4"), tiny_llama), ids, narrow)
    assert found.activity.num_macs == plain.activity.num_macs
    assert [len(layer.placement.cores) for layer in found.layers.values()] == [
        len(layer.placement.cores) for layer in plain.layers.values()
    ]
    first, other = (run.layers["model.layers.0.self_attn.q_proj"] for run in (found, plain))
    assert first.num_spikes == other.num_spikes
    assert first.activity.num_sram_blocks < other.activity.num_sram_blocks
    assert replace(first.activity, num_sram_blocks=0, leaking_core_ps=0) == replace(
        other.activity, num_sram_blocks=0, leaking_core_ps=0
    )
    # The paper's estimate is spikes per channel and token times an addition.
    num_spikes = sum(layer.num_spikes for layer in found.layers.values())
    num_channels = 3 * sum(layer.placement.cores[-1].inputs.stop for layer in plain.layers.values())
    paper = describe_simulation(found)["energy_per_mac_pj"]["paper"]
    assert paper == pytest.approx(num_spikes / num_channels * load_table()["int8_add"])


@pytest.mark.slow
def test_learned_orders_keep_groups(tiny_llama):
    spiking = small_llama(SpikeSettings(weights="int4", group_size=10), tiny_llama)
    ids = torch.arange(12)
    orders = learn_orders(spiking, ids, ByRate())
    assert any(not np.array_equal(order, np.arange(len(order))) for order in orders.values())
    found = simulate_model(spiking, ids, ASYNC, orders=orders)
    assert all(layer.num_mismatches == 0 for layer in found.layers.values())


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.integers(1, 9), st.integers(0, 2**32))
def test_orders_of_whole_groups(num_inputs, group_size, seed):
    order = np.random.default_rng(seed).permutation(num_inputs)
    kind = Weights(4, group_size)
    found = kind.whole_groups(order)
    assert sorted(found.tolist()) == list(range(num_inputs))
    assert sorted(kind.groups_in(found).tolist()) == list(range(-(-num_inputs // group_size)))
    # Within a group channels are as they were.
    place = np.argsort(order)
    for start in range(0, num_inputs, group_size):
        mine = [n for n in found.tolist() if start <= n < start + group_size]
        assert (np.diff(place[mine]) > 0).all()


@pytest.mark.slow
def test_command(model_folder, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("A neuron fires when its potential passes the threshold, and rests. " * 4)
    arguments = [
        "simulate",
        str(model_folder),
        "--text",
        str(text),
        "--num-tokens",
        "4",
        "--out",
        str(tmp_path / "out"),
    ]
    result = CliRunner().invoke(app, [*arguments, "--weights", "int4", "--coarse", "2:3", "--order", "by-rate"])
    assert result.exit_code == 0, result.output
    assert "Exactness: 0 of" in result.output
    written = json.loads((tmp_path / "out" / "simulation.json").read_text())
    assert written["settings"]["neuron"].startswith("AdaptiveThreshold(")
    assert written["layers"][0]["name"] == "model.layers.0.self_attn.q_proj"
    small = tmp_path / "small.toml"
    small.write_text(ASYNC.varied({"mesh.columns": 4, "mesh.rows": 3, "core.sram_bytes": 4000}).to_toml())
    result = CliRunner().invoke(app, [*arguments, "--weights", "int4", "--coarse", "2:3", "--chip", str(small)])
    assert "14 layers need" in str(result.exception)
    assert "--layers '*self_attn*' fits." in str(result.exception)
    result = CliRunner().invoke(app, [*arguments, "--group-size", "8", "--chip", "loihi"])
    assert "expected weights with one scale an output" in str(result.exception)
