"""The models of energy by hand, and what can be misused."""

import json

import pytest
import torch
from made_counts import counts_with, layer_with
from torch import nn
from typer.testing import CliRunner

from spikebrain import AdaptiveThreshold, SignedDigit, SpikeLinear, Ternary, record, to_spiking
from spikebrain.analysis import plot_break_even, plot_waterfall
from spikebrain.cli.app import app
from spikebrain.energy import (
    ENERGY_MODELS,
    DigitalEnergy,
    EnergyReport,
    LayerCounts,
    ModelCounts,
    OperationCounts,
    PaperEnergy,
    SynopEnergy,
    break_even,
    count_operations,
    load_table,
    sensitivity,
    waterfall,
)
from spikebrain.errors import InputError

NORM = LayerCounts("rms-norm", *[OperationCounts(num_add_fp32=10, num_sqrt_fp32=1, activation_bytes=8)] * 3)


def test_the_papers_own_averages_give_its_numbers():
    # REFERENCE section 3: 1.13 spikes * 0.03 pJ = 0.0339 pJ, printed as 0.034.
    energy = PaperEnergy().estimate(counts_with(113))
    assert energy.average_spikes == 1.13
    assert energy.spike_mac_pj == pytest.approx(0.0339, abs=1e-15)
    assert (energy.fp16_mac_pj, energy.int8_mac_pj) == (1.5, 0.23)
    assert f"{energy.saving_vs_fp16:.1%}" == "97.7%"
    assert f"{energy.ratio_vs_fp16:.1f}" == "44.2"
    # Against INT8 the paper goes on from the rounded 0.034 pJ: 85.2 % and 6.76x; unrounded 85.3 % and 6.78x.
    assert f"{energy.saving_vs_int8:.1%}" == "85.3%"
    assert f"{energy.ratio_vs_int8:.2f}" == "6.78"
    rounded = round(energy.spike_mac_pj, 3)
    assert (f"{1 - rounded / 0.23:.1%}", f"{0.23 / rounded:.2f}") == ("85.2%", "6.76")
    # It prints 43.48x against FP16, which is 1 / (1 - 0.977).
    assert f"{1 / (1 - 0.977):.2f}" == "43.48"
    assert any("reading weights" in cost for cost in energy.left_out)
    assert "ISSCC 2014" in energy.source


def test_wide_sums_turn_6_78_into_2():
    steps = waterfall(counts_with(113), DigitalEnergy())
    # 0.23 / (1.13 * 0.1) = 2.035; with 32-bit sums in the dense layer too, (0.2 + 0.1) / 0.113 = 2.655.
    assert [round(s.ratio_vs_int8, 3) for s in steps[:4]] == [6.785, 6.785, 2.035, 2.655]
    # FP16 products into FP32: 1.5 / 0.113, then (1.1 + 0.9) / 0.113.
    assert [round(s.ratio_vs_fp16, 2) for s in steps[2:4]] == [13.27, 17.7]


def test_digital_by_hand():
    counts = counts_with(113)
    report = DigitalEnergy().estimate(counts)
    parts = report.layers["layer"]
    # 1130 additions: 0.03 each as 8 bits, 0.07 more as 32.
    assert parts["additions"] == pytest.approx(33.9)
    assert parts["accumulator"] == pytest.approx(79.1)
    assert parts["shifts"] == pytest.approx(40 * 0.13)
    # 99 + 2 + 100 FP32 additions of 0.9, 102 products of 3.7, one reciprocal of 6 MACs of 4.6.
    assert parts["encode"] == pytest.approx(201 * 0.9 + 102 * 3.7 + 6 * 4.6)
    # 20 products; 10 conversions and 10 additions.
    assert parts["rescale"] == pytest.approx(20 * 3.7 + 20 * 0.9)
    # SRAM of 32 KB: 20 pJ per 8 bytes. 816 bytes of weights; 2 * (2 * 100 + 10) bytes of activations.
    assert parts["weights"] == pytest.approx(816 * 2.5)
    assert parts["activations"] == pytest.approx(420 * 2.5)
    int8 = report.int8_layers["layer"]
    assert int8["additions"] + int8["accumulator"] == pytest.approx(1000 * 0.3)
    assert int8["weights"] == pytest.approx(2500)
    assert report.fp16_layers["layer"]["additions"] == pytest.approx(1500)
    assert (
        report.total_pj == pytest.approx(sum(report.parts.values())) == pytest.approx(sum(report.by_layer_pj.values()))
    )
    assert "int32_shift" in report.unverified
    assert "32-bit" not in report.model


def weights_of(**options):
    return DigitalEnergy(**options).estimate(counts_with(113)).layers["layer"]["weights"]


def test_options_by_hand():
    # Once per spike 1.13 reads a weight, once per active channel 0.816, by blocks all.
    assert weights_of(reads_per="spike") == pytest.approx(1130 * 2.5)
    assert weights_of(reads_per="block") == pytest.approx(1000 * 2.5)
    # Banks: 8 KB 1.25 pJ a byte, 1 MB 12.5; DRAM 1300 pJ per 8 bytes. 1000 weights fit into 1000 bytes.
    assert weights_of(sram_bytes=8192) == pytest.approx(816 * 1.25)
    assert weights_of(sram_bytes=8193) == pytest.approx(816 * 2.5)
    assert weights_of(sram_bytes=2**20) == pytest.approx(816 * 12.5)
    assert weights_of(on_chip_bytes=1000) == pytest.approx(816 * 2.5)
    assert weights_of(on_chip_bytes=999) == pytest.approx(816 * 162.5)
    report = DigitalEnergy(on_chip_bytes=1000).estimate(counts_with(113))
    assert report.fp16_layers["layer"]["weights"] == pytest.approx(2000 * 162.5)  # FP16 does not fit
    parts = DigitalEnergy(shifts_per="spike", sums_in="sram").estimate(counts_with(113)).layers["layer"]
    assert parts["shifts"] == pytest.approx(300 * 0.13)
    assert parts["activations"] == pytest.approx((420 + 9040) * 2.5)
    assert DigitalEnergy(accumulator_width=16).estimate(counts_with(113)).parts["accumulator"] == pytest.approx(22.6)
    # 2 W for 3 us a token are 6 uJ, in all three models.
    leaking = DigitalEnergy(leakage_w=2.0, token_s=3e-6).estimate(counts_with(113))
    assert leaking.parts["leakage"] == pytest.approx(6e6)
    assert leaking.int8_layers["(whole chip)"] == leaking.layers["(whole chip)"]


def test_waterfall_ends_at_the_full_model():
    counts = ModelCounts({"layer": layer_with(113), "norm": NORM}, 1)
    for options in ({}, {"reads_per": "block"}, {"leakage_w": 1.0, "token_s": 1e-9}):
        model = DigitalEnergy(**options)
        steps, report = waterfall(counts, model), model.estimate(counts)
        assert steps[-1].spiking_pj == pytest.approx(report.total_pj)
        assert steps[-1].int8_pj == pytest.approx(report.int8_total_pj)
        assert steps[-1].ratio_vs_fp16 == pytest.approx(report.ratio_vs_fp16)
        assert steps[0].ratio_vs_int8 == pytest.approx(PaperEnergy().estimate(counts).ratio_vs_int8)
    # 10 additions and a root of 6 MACs, 8 bytes.
    assert DigitalEnergy().estimate(counts).layers["norm"] == {
        "rest arithmetic": pytest.approx(10 * 0.9 + 6 * 4.6),
        "rest memory": pytest.approx(20),
    }


@pytest.mark.parametrize(
    "options", [{}, {"reads_per": "spike"}, {"shifts_per": "spike", "sums_in": "sram"}, {"reads_per": "block"}]
)
def test_break_even_is_where_both_cost_the_same(options):
    model = DigitalEnergy(**options)
    point = break_even(counts_with(113), model, "layer")
    report = model.estimate(counts_with(113))
    assert point.spiking_pj == pytest.approx(report.total_pj)
    assert point.dense_pj == pytest.approx(report.int8_total_pj)
    assert point.spikes == 1.13
    assert point.silent_fraction == pytest.approx(0.184)
    at_even = point.fixed_pj + point.even_spikes * point.spike_pj + 0.816 * point.channel_pj
    assert at_even == pytest.approx(point.dense_pj)
    assert point.wins == (report.ratio_vs_int8 > 1)
    assert point.spikes_at(0.5) >= point.even_spikes


def test_break_even_by_hand():
    # 1000 outputs of 100 channels: arithmetic 0.1 pJ a spike and output, so 10,000 pJ a spike in each channel; dense
    # 0.3 * 100,000. Encoding, rescaling, shifts: 585.9 + 20 outputs' worth (9,200) + 5.2 = 9,791.1 pJ.
    point = break_even(counts_with(113, outputs=1000), DigitalEnergy(), "layer")
    assert point.arithmetic_spike_pj == pytest.approx(10_000)
    assert point.arithmetic_dense_pj == pytest.approx(30_000)
    assert point.even_spikes_without_memory == pytest.approx((30_000 - 9_791.1) / 10_000)
    assert point.channel_pj == pytest.approx(250_000)
    # With memory: the dense layer reads 18.4 % more weights, 46,000 pJ, that is 4.6 spikes more.
    assert point.even_spikes == pytest.approx(point.even_spikes_without_memory + 4.6)
    assert point.even_silent_fraction == pytest.approx(0.0, abs=1e-9) or point.even_silent_fraction is None
    with pytest.raises(InputError, match="expected a layer that spikes"):
        break_even(counts_with(113), DigitalEnergy(), "other")
    with pytest.raises(InputError, match="had none"):
        break_even(counts_with(0), DigitalEnergy(), "layer")


def test_sensitivity_is_exact():
    model, counts = DigitalEnergy(), counts_with(113)
    found = {s.entry: s for s in sensitivity(counts, model)}
    doubled = DigitalEnergy(load_table().scaled("sram_32kb", 2.0)).estimate(counts)
    assert found["sram_32kb"].ratio_if_doubled == pytest.approx(doubled.ratio_vs_int8)
    halved = DigitalEnergy(load_table().scaled("sram_32kb", 0.5)).estimate(counts)
    assert found["sram_32kb"].ratio_if_halved == pytest.approx(halved.ratio_vs_int8)
    # An energy is the sum of its entries times how often each is used.
    assert sum(s.spiking_share for s in found.values()) == pytest.approx(1)
    assert sum(s.int8_share for s in found.values()) == pytest.approx(1)
    assert "sram_1mb" not in found


def test_nothing_costs_nothing():
    silent = LayerCounts("projection", weight_count=10)
    for counts in (ModelCounts({}), ModelCounts({"silent": silent})):
        for name in ENERGY_MODELS:
            report = ENERGY_MODELS.create(name).estimate(counts)
            assert report.total_pj == report.int8_total_pj == 0
            assert report.ratio_vs_int8 is None
            assert report.parts.keys() <= {"additions", "synaptic operations", "neuron updates"}
        assert sensitivity(counts, DigitalEnergy()) == ()


def test_chip_by_hand():
    report = SynopEnergy(load_table("loihi_14nm")).estimate(counts_with(113))
    # 1130 synaptic operations of 23.6 pJ, 10 outputs of 81 pJ.
    assert report.total_pj == pytest.approx(1130 * 23.6 + 10 * 81)
    assert report.ratio_vs_int8 is None
    assert "neuron updates" not in SynopEnergy(load_table("seneca_22nm")).estimate(counts_with(113)).parts


def test_counts_are_integers(as_users):
    one = OperationCounts(num_spikes=2, num_mac_int8=3)
    assert one + one == 2 * one == OperationCounts(num_spikes=4, num_mac_int8=6)
    for wrong in (-1, 1.5, True):
        with pytest.raises(InputError, match="num_macs"):
            OperationCounts(num_macs=wrong)
    with pytest.raises(InputError, match=r"\* n"):
        one * -1


def recorded(k=3.0, encoder=None, width=4):
    layer = SpikeLinear.from_linear(nn.Linear(width, 3), neuron=AdaptiveThreshold(k), encoder=encoder)
    with torch.no_grad(), record(layer) as recording:
        layer(torch.linspace(-1, 2, 2 * width).view(2, width))
    return recording


def test_adding_runs():
    counts = count_operations(recorded())
    twice = counts + count_operations(recorded())
    assert twice.total("spiking") == 2 * counts.total("spiking")
    assert twice.num_tokens == 4
    report = DigitalEnergy().estimate(counts)
    assert (report + report).total_pj == pytest.approx(DigitalEnergy().estimate(twice).total_pj)
    with pytest.raises(InputError, match=r"same neuron.*k=3\.0.*k=2\.0"):
        counts + count_operations(recorded(k=2.0))
    with pytest.raises(InputError, match="same encoder"):
        counts + count_operations(recorded(encoder=Ternary()))
    with pytest.raises(InputError, match="same part twice"):
        counts + count_operations(recorded(width=5))
    other = ModelCounts({"x": LayerCounts("projection")}, 2, counts.model, counts.neuron, counts.encoder)
    with pytest.raises(InputError, match="another with different layers"):
        counts + other
    with pytest.raises(InputError, match="same run"):
        report + DigitalEnergy().estimate(count_operations(recorded(k=2.0)))
    with pytest.raises(InputError, match="same model"):
        report + DigitalEnergy(reads_per="block").estimate(counts)
    paper = PaperEnergy().estimate(counts)
    with pytest.raises(InputError, match="averages don't add"):
        paper + paper


def test_reads_that_were_not_recorded():
    with pytest.raises(InputError, match=r"blocks of 32 bytes.*got 64 bytes with 1 tokens"):
        count_operations(recorded(), block_bytes=32)
    layer = SpikeLinear.from_linear(nn.Linear(4, 3))
    with pytest.raises(InputError, match="block_bytes"), record(layer, block_bytes=(0,)):
        pass


def test_reports_travel():
    counts = count_operations(recorded())
    report = DigitalEnergy().estimate(counts)
    again = EnergyReport.from_dict(json.loads(report.to_json()))
    assert again == report
    assert sum(row["energy_pj"] for row in report.rows() if row["system"] == "fp16") == pytest.approx(
        report.fp16_total_pj
    )
    assert ModelCounts.from_dict(json.loads(json.dumps(counts.to_dict()))) == counts
    with pytest.raises(InputError, match="from_dict"):
        ModelCounts.from_dict({"layers": {"a": {"kind": "x"}}})
    with pytest.raises(InputError, match="'layers'"):
        EnergyReport.from_dict({})
    # Without dense models there is no ratio.
    chip = EnergyReport("own estimate", {"layer": {"hops": 3.0, "synapses": 4.0}}, num_tokens=1)
    assert (chip.total_pj, chip.ratio_vs_int8) == (7.0, None)
    with pytest.raises(InputError, match=r"\['layer'\]\['hops'\].*got -1"):
        EnergyReport("own estimate", {"layer": {"hops": -1.0}})


def test_like_layers_are_grouped(tiny_llama):
    model = to_spiking(tiny_llama)
    with torch.inference_mode(), record(model) as recording:
        model(torch.arange(5)[None])
    counts = count_operations(recording)
    groups = counts.grouped()
    assert "model.layers.*.mlp.down_proj" in groups.layers
    assert len(groups.layers) < len(counts.layers)
    for system in ("spiking", "int8", "fp16"):
        assert groups.total(system) == counts.total(system)
    a, b = (DigitalEnergy(on_chip_bytes=10_000).estimate(c) for c in (counts, groups))
    assert a.total_pj == pytest.approx(b.total_pj)


@pytest.mark.slow
def test_plots(tmp_path):
    counts = counts_with(113, outputs=300)
    plot_waterfall(waterfall(counts, DigitalEnergy()), tmp_path / "a.png", "a $title")
    plot_waterfall(waterfall(ModelCounts({}), DigitalEnergy()), tmp_path / "nothing.png")
    plot_break_even([break_even(counts, DigitalEnergy(), "layer")], tmp_path / "b.svg")
    assert all(path.stat().st_size > 5000 for path in tmp_path.iterdir())
    drawn = (tmp_path / "b.svg").read_text()
    assert all(f"break-even, {how} memory" in drawn for how in ("with", "without"))
    plot_break_even([], tmp_path / "none.svg")
    assert "Nothing fired, so no layer breaks even." in (tmp_path / "none.svg").read_text()


def run(*arguments):
    result = CliRunner().invoke(app, ["energy", *map(str, arguments)])
    if result.exception:
        raise result.exception
    return result.output


@pytest.mark.slow
def test_command_on_a_model_and_on_its_report(model_folder, tmp_path, as_users):
    text = tmp_path / "text.txt"
    text.write_text("Neurons that fire together wire together. " * 4)
    usual = (model_folder, "--text", text, "--num-tokens", "64")
    said = run(
        *usual, "--out", tmp_path / "out", "--reads-per", "block", "--block-bytes", 16, "--encoder", "signed-digit"
    )
    shown = (
        "total",
        "the paper's estimate",
        "Break-even",
        "rest arithmetic",
        "Not confirmed",
        "SignedDigit",
        "Left out",
    )
    assert [words for words in shown if words not in said] == []
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "energy.html",
        "energy.json",
        "waterfall.png",
        "break_even.png",
    }
    found = json.loads((tmp_path / "out" / "energy.json").read_text())
    counts = ModelCounts.from_dict(found["counts"])
    assert DigitalEnergy(reads_per="block").estimate(counts).total_pj == pytest.approx(
        found["digital"]["spiking_total_pj"]
    )
    assert counts.encoder == repr(SignedDigit())
    assert "Jouppi" in run(tmp_path / "out" / "energy.json", "--table", "jouppi_7nm")
    assert "--assumptions lists them" in said
    listed = run(tmp_path / "out", "--assumptions")  # the folder of energy.json
    assert all(f"- {sentence}"[:60] in listed for sentence in found["digital"]["assumptions"])
    with pytest.raises(InputError, match="nothing is written with the table loihi_14nm"):
        run(tmp_path / "out" / "energy.json", "--table", "loihi_14nm", "--out", tmp_path / "chip")
    assert "loihi" in run(tmp_path / "out" / "energy.json", "--table", "loihi_14nm").lower()
    with pytest.raises(InputError, match=r"text\.json: expected JSON"):
        run(text.rename(tmp_path / "text.json"))
    with pytest.raises(InputError, match="--reads-per: expected"):
        run(*usual, "--reads-per", "row")
