"""Layers whose small counts read coarse rows: exact on every backend, saved, recorded and counted."""

import copy
import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from llama_type import spiking_model
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

import spikebrain as sb
from spikebrain import AdaptiveThreshold, Band, GradedLinear, SpikeSettings
from spikebrain.analysis.exactness import ExactnessCheck
from spikebrain.backends import BACKENDS
from spikebrain.backends.cpu.plain import sums_of_groups
from spikebrain.energy import count_operations
from spikebrain.errors import InputError, SpikebrainError
from spikebrain.jobs.calibration.units import Unit
from spikebrain.jobs.calibration.units import graded as calibrated
from spikebrain.models.layers.coarse import coarser, twice_the_sums
from spikebrain.models.layers.compact import compact, scale_bytes_of, units_of
from spikebrain.models.layers.observing import observing
from spikebrain.models.layers.quantize import QuantizedWeight, dequantize, quantize, quantize_int4
from spikebrain.models.layers.rescale import rescale, rescale_in_units

NEURON = AdaptiveThreshold(k=8.0)


def graded(weights="int4", coarse=((2, 4),), shape=(96, 200), **settings):
    torch.manual_seed(0)
    linear = nn.Sequential(nn.Linear(*shape))
    chosen = SpikeSettings(weights=weights, coarse=coarse, neuron=NEURON, **settings)
    return sb.to_spiking(linear, chosen)[0].eval()


def by_hand(layer, x):
    """Return what the layer must give, from the definition, in float64."""
    spikes = NEURON(x)
    count, lower, y = spikes.count.double(), 0, 0
    for level in layer.levels:
        up_to = np.inf if level.neuron.up_to is None else level.neuron.up_to
        heard = (count.abs() > lower) & (count.abs() <= up_to)
        y = y + (count * heard) @ level.dequantized_weight().double().t()
        lower = up_to
    bias = 0 if layer.bias is None else layer.bias.double()
    return y * spikes.threshold.double() + bias


@pytest.mark.parametrize(
    ("weights", "coarse", "group_size"),
    [("int4", ((2, 4),), None), ("int8", ((2, 2), (4, 9)), None), ("int8", ((4, 6),), 24), ("int4", ((2, 1),), 50)],
)
@pytest.mark.parametrize("num_tokens", [1, 3, 40])
def test_it_computes_what_it_says_on_every_backend(weights, coarse, group_size, num_tokens):
    layer = graded(weights, coarse, group_size=group_size)
    x = 3 * torch.randn(num_tokens, 96)
    expected = by_hand(layer, x)
    outputs = {}
    for name in ["auto", *(n for n in BACKENDS.names() if n != "triton")]:
        for level in layer.levels:
            level.backend = name
        with torch.no_grad():
            outputs[name] = layer(x)
            with observing(layer.levels, lambda *_: None):
                stepwise = layer(x)
        assert torch.equal(outputs[name], stepwise), name
    for name, y in outputs.items():
        assert torch.equal(y, outputs["reference"]), name
    torch.testing.assert_close(outputs["reference"].double(), expected, rtol=1e-4, atol=1e-4)


@given(
    st.lists(st.integers(-40, 40), min_size=1, max_size=30),
    st.lists(st.integers(1, 45), min_size=1, max_size=3, unique=True),
)
@hypothesis_settings(max_examples=60, deadline=None)
def test_bands_divide_the_counts(counts, edges):
    x = torch.tensor([counts], dtype=torch.float32)
    whole = NEURON(x).count
    edges = [0, *sorted(edges), None]
    parts = [Band(NEURON, low, high)(x).count for low, high in pairwise(edges)]
    assert torch.equal(torch.stack(parts).sum(0), whole)
    assert int((torch.stack(parts) != 0).sum(0).max()) <= 1
    for part, low, high in zip(parts, edges[:-1], edges[1:], strict=True):
        heard = part[part != 0].abs()
        assert bool((heard > low).all())
        assert high is None or bool((heard <= high).all())


@pytest.mark.parametrize(
    ("weight_bits", "bits", "has_minimum"), [(4, 2, True), (4, 2, False), (8, 4, False), (8, 2, False)]
)
def test_coarse_rows_are_the_upper_bits_and_stand_for_the_middle(weight_bits, bits, has_minimum):
    fine = quantize_int4(torch.randn(30, 70))
    if weight_bits == 8:
        fine = QuantizedWeight(*quantize(torch.randn(30, 70), 32), group_size=32)
    elif not has_minimum:  # as in Q4_0 files
        fine = QuantizedWeight(fine.weight - 8, fine.scale, None, 32, 4)
    coarse = coarser(fine, bits)
    coarse.check()
    assert (coarse.weight_bits, coarse.group_size) == (bits, 32)
    lowest, step = 0 if has_minimum else -(2 ** (weight_bits - 1)), 2 ** (weight_bits - bits)
    assert torch.equal(coarse.weight.int(), (fine.weight.int() - lowest) // step)
    same_upper_bits = [range(first, first + step) for first in range(lowest, lowest + 2**weight_bits, step)]
    middle = {w: (members[0] + members[-1]) / 2 for members in same_upper_bits for w in members}
    groups = [slice(0, 32), slice(32, 64), slice(64, 70)]
    expected = torch.tensor([[middle[w] for w in row] for row in fine.weight.tolist()])
    for g, group in enumerate(groups):
        expected[:, group] *= fine.scale[:, g, None]
        if has_minimum:
            expected[:, group] += fine.minimum[:, g, None]
    found = dequantize(coarse.weight, coarse.scale, coarse.minimum, 32)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 60),
    st.integers(1, 20),
    st.sampled_from([None, 7, 32]),
    st.booleans(),
    st.sampled_from([1, 3, 40, 5000]),
)
@hypothesis_settings(max_examples=60, deadline=None)
def test_twice_the_sums_are_those_of_middles(seed, num_inputs, num_outputs, group_size, has_minimum, largest):
    rng = np.random.default_rng(seed)
    bits = 4 if has_minimum else int(rng.choice([4, 8]))
    weight = rng.integers(0, 2**bits, (num_outputs, num_inputs)) - (0 if has_minimum else 2 ** (bits - 1))
    count = rng.integers(-largest, largest + 1, (5, num_inputs))
    small = int(rng.integers(1, 9))
    groups = -(-num_inputs // (group_size or num_inputs))
    scale, minimum = torch.from_numpy(rng.random((2, num_outputs, groups)).astype(np.float32))
    minimum = minimum if has_minimum else None
    fine = QuantizedWeight(torch.from_numpy(weight.astype(np.int8)), scale, minimum, group_size, bits)
    coarse = coarser(fine, 2)
    size, is_small = group_size or num_inputs, np.abs(count) <= small
    starts = range(0, num_inputs, size)

    def sums(integers, counts):
        parts = [counts[:, g : g + size] @ integers[:, g : g + size].T for g in starts]
        return torch.from_numpy(np.stack(parts, 1))

    of_group = np.stack([(count * is_small)[:, g : g + size].sum(1) for g in starts], 1)
    upper = [(2, sums(coarse.weight.numpy().astype(np.int64), count * is_small), torch.from_numpy(of_group))]
    found = twice_the_sums(sums(weight, count * ~is_small), upper, bits, minimum)
    expected = [sums_of_groups(weight, row, group_size, [(small, bits - 2)])[0] for row in count]
    assert np.array_equal(found.numpy(), np.stack(expected))


def test_integers_that_leave_upper_bits_unused_have_no_coarse_rows():
    weight = torch.randn(12, 64)
    minimum = weight.reshape(12, 2, 32).amin(2)
    scale = (weight.reshape(12, 2, 32).amax(2) - minimum) / 31  # as Q5_1 files have it: integers up to 31
    integers = ((weight.reshape(12, 2, 32) - minimum[..., None]) / scale[..., None]).round().to(torch.int8)
    fine = QuantizedWeight(integers.reshape(12, 64), scale, minimum, 32)
    with pytest.raises(
        InputError, match=r"up_proj.coarse: expected 8-bit weights that use upper bits, got none beyond"
    ):
        GradedLinear.from_quantized(fine, ((2, 1), (4, 3)), neuron=NEURON, name="up_proj")
    layer = sb.SpikeLinear.from_quantized(fine, neuron=NEURON)
    unit = Unit({"up_proj": calibrated(layer)})
    assert not unit.has_coarse_rows
    assert float(unit.norms[1].abs().max()) == 0
    assert Unit({"up_proj": calibrated(sb.SpikeLinear.from_linear(nn.Linear(64, 12)))}).has_coarse_rows


@pytest.mark.parametrize("where", ["folder", "file.safetensors"])
def test_a_file_whose_coarse_rows_are_no_upper_bits(where, tmp_path):
    settings = SpikeSettings(weights="int4", coarse={"*up_proj": ((2, 4),)}, neuron=NEURON)
    model = spiking_model(settings=settings)
    level = model.model.layers[0].mlp.up_proj.levels[0]
    level.minimum = level.minimum * 1.01  # as an earlier version fitted them
    with pytest.raises(SpikebrainError, match=r"levels.0': expected the upper 2 bits of the layer's own rows, got"):
        sb.load(sb.save(model, tmp_path / where) or tmp_path / where)


def test_equal_weights_and_no_inputs():
    assert torch.equal(coarser(quantize_int4(torch.full((3, 40), 0.5)), 2).minimum, torch.full((3, 2), 0.5))
    assert torch.equal(coarser(quantize_int4(torch.full((3, 40), 0.5)), 2).scale, torch.zeros(3, 2))
    no_inputs = graded("int8", shape=(0, 3))
    assert torch.equal(no_inputs(torch.zeros(2, 0)), no_inputs.bias.expand(2, 3))


@pytest.mark.parametrize("weights", ["int4", "int8"])
def test_the_check_of_a_report_sees_the_kernel_that_joins_levels(weights, monkeypatch):
    layer, x = graded(weights), 3 * torch.randn(5, 96)
    check = ExactnessCheck()
    with torch.no_grad(), check.watch(layer):
        layer(x)
    assert check.fused.num_checked == 5 * 200
    assert check.fused.num_mismatches == 0
    right = sb.SpikeLinear.run_fused

    def wrong(*given, **more):
        found = right(*given, **more)
        return None if found is None else found + 1e-3

    monkeypatch.setattr(sb.SpikeLinear, "run_fused", wrong)
    with torch.no_grad(), check.watch(nn.Sequential(layer)):
        layer(x)
    assert check.fused.num_mismatches > 0
    assert not layer._forward_hooks


def test_gradients_pass_the_layers_own_rows():
    layer, x = graded(), torch.randn(3, 96, requires_grad=True)
    layer(x).sum().backward()
    expected = layer.dequantized_weight().sum(0).expand(3, -1)
    torch.testing.assert_close(x.grad, expected)


@pytest.mark.parametrize("where", ["folder", "file.safetensors"])
def test_saved_and_loaded(where, tmp_path):
    settings = SpikeSettings(weights="int4", coarse={"*mlp*": ((2, 4),)}, neuron=NEURON, include_head=True)
    model = spiking_model(settings=settings)
    sb.save(model, tmp_path / where)
    found = sb.load(tmp_path / where).model
    assert found.conversion.settings == settings
    ids = torch.randint(0, 300, (1, 12))
    with torch.no_grad():
        expected = model(ids).logits
        assert torch.equal(found(ids).logits, expected)
        if where == "folder":
            again = AutoModelForCausalLM.from_pretrained(tmp_path / where)
            assert torch.equal(again(ids).logits, expected)
    kinds = {type(module) for module in found.model.layers[0].mlp.children()} - {nn.SiLU}
    assert GradedLinear in kinds
    assert "GradedLinear" not in str(found.model.layers[0].self_attn)


@pytest.mark.parametrize("where", ["folder", "file.safetensors"])
def test_saved_and_loaded_where_layers_are_transposed_and_read_each_others_weights(where, tmp_path):
    model = GPT2LMHeadModel(GPT2Config(vocab_size=60, n_embd=32, n_layer=2, n_head=2, n_positions=32)).eval()
    spiking = sb.to_spiking(model, SpikeSettings(weights="int4", coarse=((2, 4),), neuron=NEURON))
    sb.save(spiking, tmp_path / where)
    found = sb.load(tmp_path / where).model
    ids = torch.randint(0, 60, (1, 12))
    with torch.no_grad():
        assert torch.equal(found(ids).logits, spiking(ids).logits)


def test_a_copy_and_a_dense_model():
    model = spiking_model(settings=SpikeSettings(weights="int4", coarse=((2, 4),), neuron=NEURON))
    dense = sb.to_dense(model)
    assert not any(isinstance(module, GradedLinear | sb.SpikeLinear) for module in dense.modules())
    layer, linear = model.model.layers[0].mlp.up_proj, dense.model.layers[0].mlp.up_proj
    assert torch.equal(linear.weight, layer.dequantized_weight())
    ids = torch.randint(0, 300, (1, 5))
    with torch.no_grad():
        assert torch.equal(copy.deepcopy(model)(ids).logits, model(ids).logits)


def test_a_recording_counts_each_channel_once():
    x = 3 * torch.randn(11, 96)
    layer, plain = graded(), graded(coarse=())
    with torch.no_grad(), sb.record(layer) as found:
        layer(x)
    with torch.no_grad(), sb.record(plain) as expected:
        plain(x)
    coarse, own = found.layers["levels.0"], found.layers["levels.1"]
    assert coarse.count_histogram + own.count_histogram == expected.layers[""].count_histogram
    assert coarse.is_coarse
    count = NEURON(x).count.abs()
    heard = int(((count > 0) & (count <= 4)).sum())
    assert coarse.num_active_channels == coarse.count_histogram.total() == heard
    assert own.num_active_channels == int((count > 4).sum())
    statistics = [sb.spike_statistics(one.layers.values()) for one in (found, expected)]
    for name in ("mean_spikes", "mean_count", "silent_fraction", "max_count"):
        assert getattr(statistics[0], name) == getattr(statistics[1], name)

    totals = [count_operations(one) for one in (found, expected)]
    spiking, plain_spiking = (one.total("spiking") for one in totals)
    assert spiking.weight_channel_bytes == heard * 200 // 4 + int((count > 4).sum()) * 200 // 2
    assert spiking.num_synops == plain_spiking.num_synops
    for same in ("num_activations", "num_encode_div", "activation_bytes", "parameter_bytes", "num_encoded_tokens"):
        assert getattr(spiking, same) == getattr(plain_spiking, same), same
    for system in ("int8", "fp16"):
        assert totals[0].total(system) == totals[1].total(system)


def test_scales_of_a_files_4_bit_weights_are_two_bytes():
    layer = graded(coarse=())
    for tensor in (layer.scale, layer.minimum):
        tensor.copy_(tensor.half().float())
    with torch.no_grad(), sb.record(layer) as found:
        layer(torch.randn(5, 96))
    assert found.layers[""].scale_bytes == 200 * 2 * 2 * 3
    assert count_operations(found).total("spiking").parameter_bytes == 5 * 200 * (2 * 2 * 3 + 2)


@pytest.mark.parametrize("coarse", [((3, 4),), ((2, 0),), ((4, 2), (2, 5)), ((2, 4), (4, 4))])
def test_levels_that_cannot_be(coarse):
    with pytest.raises(InputError, match=r"SpikeSettings.coarse: expected pairs \(bits, up_to\) of integers, both"):
        SpikeSettings(coarse=coarse)


@pytest.mark.parametrize("neuron", [sb.AdaptiveThreshold(k=4.0), sb.neuro.Band(sb.AdaptiveThreshold(k=2.0), 0, 3)])
def test_a_level_that_gets_a_neuron_of_its_own(neuron):
    model, x = sb.to_spiking(nn.Sequential(nn.Linear(40, 8)), sb.SpikeSettings(coarse=((4, 3),))), torch.randn(2, 40)
    with torch.no_grad():
        expected, level = model(x), model[0].levels[0]
        usual, level.neuron = level.neuron, neuron
        with pytest.raises(InputError, match=r"GradedLinear\.levels: expected spiking layers .* bands of one neuron"):
            model(x)
        level.neuron = usual
        assert torch.equal(model(x), expected)
        assert model[0].own.run_fused(x, upper=model[0].upper) is not None
        level.encoder = "latency"  # it may lose counts, so kernels that add them up must not run
        assert model[0].own.run_fused(x, upper=model[0].upper) is None


def test_as_many_bits_as_the_layer_has():
    with pytest.raises(InputError, match="expected fewer bits than the 4 of the layer's own rows, got 4"):
        graded(coarse=((4, 4),))


def test_compact_scales_are_integers_of_few_bits_times_a_unit():
    torch.manual_seed(2)
    fine = quantize_int4(torch.randn(20, 160) * torch.rand(20, 1))
    found = compact(fine)
    assert torch.equal(found.weight, fine.weight)
    for before, after in ((fine.scale, found.scale), (fine.minimum, found.minimum)):
        largest = before.abs().amax(1, keepdim=True)
        assert bool(((after - before).abs() <= largest / 127 / 2 * 1.13).all())
        assert torch.equal(after.half().float(), after)  # so kernels keep them in float16
    assert scale_bytes_of(fine.scale, fine.minimum) == 20 * 5 * 2 * 4
    assert scale_bytes_of(found.scale, found.minimum) == 20 * (10 + 8)  # 5 groups of 15 bits, two floats
    assert scale_bytes_of(found.scale, None) == 20 * (5 + 4)
    assert scale_bytes_of(fine.scale.half().float(), None) == 20 * 5 * 2
    assert scale_bytes_of(fine.scale[:, :1], None) == 20 * 4


@pytest.mark.parametrize("has_minimum", [True, False])
def test_units_give_the_scales_back(has_minimum):
    torch.manual_seed(2)
    fine = quantize_int4(torch.randn(20, 160) * torch.rand(20, 1))
    found = compact(fine if has_minimum else QuantizedWeight(fine.weight - 8, fine.scale, None, 32, 4))
    units = units_of(found.scale, found.minimum)
    assert torch.equal(units.steps * units.unit[:, None], found.scale)
    assert (units.minimum_steps is None) == (not has_minimum)
    if has_minimum:
        assert torch.equal(units.minimum_steps * units.minimum_unit[:, None], found.minimum)
    assert units_of(fine.scale, found.minimum) is None
    assert units_of(found.scale, fine.minimum if has_minimum else fine.scale) is None
    assert units_of(torch.zeros(3, 4), None).unit.tolist() == [0, 0, 0]


def test_scaled_sums_of_groups_are_added_in_integers():
    layer = graded(coarse=(), compact_scales=True)
    sums = torch.randint(-5000, 5000, (7, 3, 200))
    counts, threshold = torch.randint(-90, 90, (7, 3)), torch.rand(7, 1)
    units = layer.units
    of_groups = (sums.double() * units.steps.t().double()).sum(1) * units.unit.double()
    of_minima = (counts.double() @ units.minimum_steps.t().double()) * units.minimum_unit.double()
    found = rescale_in_units(sums, units, threshold, counts)
    torch.testing.assert_close(found.double(), (of_groups + of_minima) * threshold.double(), rtol=1e-6, atol=1e-5)
    plain = rescale(sums, layer.scale, threshold, layer.minimum, counts)
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-3)


def test_units_follow_the_layer():
    layer = graded(coarse=(), compact_scales=True)
    known = layer.units
    assert layer.units is known
    layer.scale.mul_(2)
    assert torch.equal(layer.units.unit, 2 * known.unit)
    layer.scale[0, 0] += 1e-3
    assert layer.units is None
    with torch.inference_mode():  # where PyTorch counts no changes
        layer = graded(coarse=(), compact_scales=True)
        layer.scale = layer.scale.clone()
        assert layer.units is layer.units
        layer.scale.mul_(2)
        assert torch.equal(layer.units.unit, 2 * known.unit)
    layer = graded(coarse=(), compact_scales=True)
    layer.neuron = AdaptiveThreshold(k=1e5)  # sums might leave 32 bits
    assert layer.units is None
    copied = copy.deepcopy(graded(coarse=(), compact_scales=True))
    assert torch.equal(copied.half().units.unit, known.unit)  # scales stay in float32


def test_counts_beyond_32_bits_take_the_separate_steps():
    layer = graded(coarse=(), compact_scales=True)
    layer.neuron = AdaptiveThreshold(k=8.0, ceiling=1e-4)  # where it binds, counts are larger than k says
    x = torch.randn(3, 96)
    assert layer.units is not None
    with torch.no_grad(), observing([layer], lambda *_: None):
        expected = layer(x)
    with torch.no_grad():
        assert torch.equal(layer(x), expected)
    exact = layer.neuron(x).activation().double() @ layer.dequantized_weight().double().t() + layer.bias.double()
    torch.testing.assert_close(expected.double(), exact, rtol=1e-4, atol=1e-4)


def test_compact_scales_in_a_layer():
    layer, plain = graded(coarse=(), compact_scales=True), graded(coarse=())
    x = torch.randn(5, 96)
    with torch.no_grad(), sb.record(layer) as found:
        y = layer(x)
    assert found.layers[""].scale_bytes == 200 * (6 + 8)
    assert 0 < float((y - plain(x)).norm() / y.norm()) < 0.02
    with pytest.raises(InputError, match="compact_scales: expected weights in groups, got one scale an output in 0"):
        graded("int8", (), compact_scales=True)
    with pytest.raises(InputError, match="a group_size below its number of inputs; or leave it out with `skip`"):
        graded("int4", (), shape=(32, 8), compact_scales=True)  # all inputs are one group


def test_a_conversion_says_how_many_layers_have_coarse_rows():
    model = spiking_model(settings=SpikeSettings(weights="int4", coarse={"*q_proj": ((2, 4),)}, neuron=NEURON))
    assert f"weights int4, {len(model.model.layers)} with coarse rows for small counts" in repr(model.conversion)


def test_a_pattern_that_matches_nothing():
    with pytest.raises(InputError, match="coarse"):
        graded(coarse={"*nothing*": ((2, 4),)})


@pytest.mark.parametrize("settings", [{"above": -1}, {"above": 4, "up_to": 4}, {"up_to": 0}, {"neuron": "none"}])
def test_bands_that_cannot_be(settings):
    with pytest.raises(InputError, match=r"Band\.|neuron"):
        Band(**settings)


@pytest.mark.slow
def test_a_report_counts_layers_and_names_their_neurons(run, tiny_llama, tokenizer, text, tmp_path):
    neurons = {"*layers.0*": sb.DeadZoneThreshold(6.0), "*down_proj": AdaptiveThreshold(4.0), "*": NEURON}
    coarse = {"*self_attn*": ((2, 4),)}
    for number, neuron in ((1, NEURON), (2, neurons)):
        spiking = sb.to_spiking(tiny_llama, SpikeSettings(weights="int4", coarse=coarse, neuron=neuron))
        sb.save(spiking, tmp_path / "model", tokenizer)
        out = tmp_path / f"report{number}"
        sizes = ("--text", text, "--num-tokens", 40, "--context", 20)
        code, shown, err = run("report", tmp_path / "model", *sizes, "--out", out)
        assert code == 0, err
        found = json.loads((out / "report.json").read_text())
        assert found["model"]["num_spiking_layers"] == 14
        assert "14 layers on spikes, " in shown
        assert len(found["layers"]) == 14 + 8  # 8 of which have coarse rows beside their own
        if number == 1:
            assert found["settings"]["neuron"] == str(NEURON)
            assert found["settings"]["k"] == 8.0
            assert {row["k"] for row in found["layers"]} == {8.0}
        else:
            k = found["settings"]["k"]
            assert k["model.layers.*.self_attn.q_proj"] == [6.0, 8.0]
            assert k["model.layers.*.mlp.down_proj"] == [6.0, 4.0]
            assert found["settings"]["neuron"] == ", ".join(
                map(str, (neurons["*layers.0*"], NEURON, neurons["*down_proj"]))
            )
            table = [line.split() for line in shown.splitlines() if "q_proj" in line]
            assert ["model.layers.*.self_attn.q_proj", "1", "6"] in table
            assert ["model.layers.*.self_attn.q_proj", "1", "8"] in table


@pytest.mark.slow
def test_many_neurons_are_not_listed_one_by_one(run, tiny_llama, tokenizer, text, tmp_path):
    neurons = {
        f"*layers.{i}.self_attn.{p}_proj": AdaptiveThreshold(2.0 + i + j) for i in (0, 1) for j, p in enumerate("qkvo")
    }
    sb.save(sb.to_spiking(tiny_llama, SpikeSettings(neuron={**neurons, "*": NEURON})), tmp_path / "model", tokenizer)
    sizes = ("--text", text, "--num-tokens", 20, "--context", 20)
    code, shown, err = run("report", tmp_path / "model", *sizes, "--out", tmp_path / "report")
    assert code == 0, err
    first = AdaptiveThreshold(2.0)
    # k from 2 to 6, and 8.
    assert f"14 layers on spikes, 6 neurons that differ by layer, such as {first}, code" in " ".join(shown.split())
