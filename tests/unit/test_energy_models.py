"""Tables, the models of energy by hand, and what can be misused."""

import json

import pytest
import torch
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
    table_names,
    waterfall,
)
from spikebrain.errors import InputError


def layer_with(num_spikes, channels=100, outputs=10, read=0.816):
    """One token through a layer; what is counted besides is as count_spiking_layer says."""
    macs, encoded = channels * outputs, {"num_encoded_tokens": 1, "num_encode_abs": channels}
    rescale = {"num_rescale_convert": outputs, "num_rescale_mul": 2 * outputs, "num_rescale_add": outputs}
    activation_bytes = 2 * (2 * channels + outputs)
    spiking = OperationCounts(
        num_activations=channels,
        num_spikes=num_spikes,
        num_synops=num_spikes * outputs,
        num_add_int32=num_spikes * outputs,
        num_shifts_per_timestep=40,
        num_shifts_per_spike=300,
        **encoded,
        num_encode_add=channels - 1,
        num_encode_compare=2,
        num_encode_div=channels + 2,
        num_encode_round=channels,
        **rescale,
        weight_spike_bytes=num_spikes * outputs,
        weight_channel_bytes=round(read * macs),
        weight_block_bytes=macs,
        activation_bytes=activation_bytes,
        accumulator_bytes=8 * num_spikes * outputs,
    )
    int8 = OperationCounts(num_macs=macs, num_mac_int8=macs, weight_bytes=macs, activation_bytes=activation_bytes)
    fp16 = OperationCounts(num_macs=macs, num_mac_fp16=macs, weight_bytes=2 * macs)
    return LayerCounts("projection", spiking, int8, fp16, weight_count=macs, accumulator_bits=17)


def counts_with(num_spikes=113, **more):
    return ModelCounts({"layer": layer_with(num_spikes, **more)}, 1, "Model", "k=3", "code")


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


def test_horowitz():
    table = load_table()
    # A MAC is a multiplication and an addition.
    for kind, mac in (("int8", 0.23), ("fp16", 1.5), ("fp32", 4.6)):
        assert table[f"{kind}_mac"] == pytest.approx(table[f"{kind}_mul"] + table[f"{kind}_add"]) == pytest.approx(mac)
    assert (table["int8_add"], table["int32_add"], table["int32_mul"]) == (0.03, 0.1, 3.1)
    # 64 bits an access: 10, 20 and 100 pJ are 1.25, 2.5 and 12.5 pJ a byte.
    assert [table.entry(f"sram_{n}").pj_per_byte for n in ("8kb", "32kb", "1mb")] == [1.25, 2.5, 12.5]
    assert "45 nm" in table.process
    assert table.sram(8192) == "sram_8kb"
    with pytest.raises(InputError, match="at most 1,048,576 bytes, got 2,000,000"):
        table.sram(2_000_000)


@pytest.mark.parametrize("name", table_names())
def test_every_table_has_sources(name):
    table = load_table(name)
    assert all(entry.source and entry.node and entry.bits for entry in table.entries.values())
    if "int8_add" in table:
        DigitalEnergy(table)
    else:
        assert "synop" in table
        with pytest.raises(InputError, match=f"{name}: lacks .*int8_add.*SynopEnergy"):
            DigitalEnergy(table)


def test_what_stands_in_for_a_missing_entry():
    report = DigitalEnergy(load_table("jouppi_7nm"), accumulator_width=16).estimate(counts_with(113))
    assert any("16-bit additions cost as much as 32-bit ones" in text for text in report.assumptions)
    assert any("a shift costs as much as an addition" in text for text in report.assumptions)
    assert "dram" not in report.unverified
    assert "sram_32kb" in report.unverified


GOOD = """
format = 1
process = "7 nm"
source = "a paper"
version = "1"
convention = "64 bits"
[sources]
a = "a paper"
[entries.int8_add]
pj = 0.007
bits = 8
node = "7 nm"
source = "a"
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('process = "7 nm"', "", "process: expected a text, got None"),
        ('convention = "64 bits"', "convention = ' '", "convention: expected a text, got ' '"),
        ('version = "1"', "version = 1", "version: expected a text, got 1"),
        ('a = "a paper"', 'a = ""', r"sources\.a"),
        ("bits = 8\n", "", r"entries\.int8_add\.bits: expected an integer from 1 to 2\^50, got None"),
        ("pj = 0.007", "pj = -1", r"entries\.int8_add\.pj: expected a number from 0 to 1e\+12, in picojoules, got -1"),
        ("pj = 0.007", "pj = nan", r"entries\.int8_add\.pj"),
        ("pj = 0.007", "pj = '1'", r"entries\.int8_add\.pj"),
        ("pj = 0.007", "joule = 1", r"entries\.int8_add\.joule: unknown; expected one of pj, bits"),
        ('source = "a"\n', "", r"entries\.int8_add\.source: expected one of a, as in \[sources\], got None"),
        ('source = "a"\n', 'source = "b"\n', r"one of a, as in \[sources\], got 'b'"),
        ('node = "7 nm"', "node = 7", r"entries\.int8_add\.node"),
        ("[entries.int8_add]", "[entries.sram_x]", r"entries\.sram_x\.capacity_bytes"),
        ("[entries.int8_add]", "[other]", r"2 fault\(s\):\n  other: unknown.*\n  entries: expected a table"),
        ("format = 1", "", r"expected 'format = 1' at the top.*horowitz_45nm.toml and add the line"),
        ("format = 1", "format = 2", "got format = 2: the file is for another version of spikebrain"),
        ("format = 1", "format = true", "got format = True"),
        ("pj = 0.007", "pj = ", "TOML"),
    ],
)
def test_bad_tables(tmp_path, old, new, message):
    path = tmp_path / "own.toml"
    path.write_text(GOOD)
    assert load_table(path)["int8_add"] == 0.007
    with pytest.raises(InputError, match="expected an entry 'fp16_mac'"):
        PaperEnergy(load_table(path)).estimate(counts_with())
    assert old in GOOD
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(InputError, match=message) as error:
        load_table(path)
    assert "own.toml" in str(error.value)


def test_all_faults_of_a_table_at_once(tmp_path):
    path = tmp_path / "own.toml"
    path.write_text(GOOD.replace("pj = 0.007", "pj = -1").replace("bits = 8\n", "").replace('version = "1"', ""))
    with pytest.raises(InputError, match=r"3 fault\(s\)") as error:
        load_table(path)
    assert all(f"\n  {key}: expected" in str(error.value) for key in ("version", "entries.int8_add.pj"))
    assert "\n  entries.int8_add.bits: expected an integer from 1 to 2^50, got None" in str(error.value)


def test_unknown_table_and_options(as_users):
    with pytest.raises(InputError, match="horowitz_45nm"):
        load_table("horowitz_3nm")
    for options, name in (
        ({"reads_per": "row"}, "reads_per"),
        ({"sums_in": "dram"}, "sums_in"),
        ({"accumulator_width": 24}, "accumulator_width"),
        ({"leakage_w": -1.0}, "leakage_w"),
        ({"sram_bytes": 0}, "sram_bytes"),
        ({"sram_bytes": 2**30}, "SRAM"),
    ):
        with pytest.raises(InputError, match=name):
            DigitalEnergy(**options)
    free = load_table().scaled("fp16_mac", 0.0)
    with pytest.raises(InputError, match="expected fp16_mac > 0"):
        PaperEnergy(free).estimate(counts_with())
    odd = load_table().scaled("int32_add", 0.1)
    with pytest.raises(InputError, match="int32_add >= int8_add"):
        DigitalEnergy(odd).estimate(counts_with())


def test_plots(tmp_path):
    counts = counts_with(113, outputs=300)
    plot_waterfall(waterfall(counts, DigitalEnergy()), tmp_path / "a.png", "a $title")
    plot_waterfall(waterfall(ModelCounts({}), DigitalEnergy()), tmp_path / "nothing.png")
    plot_break_even([break_even(counts, DigitalEnergy(), "layer")], tmp_path / "b.svg")
    assert all(path.stat().st_size > 5000 for path in tmp_path.iterdir())


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
    for shown in ("total", "eq. 24", "Break-even", "rest arithmetic", "Not confirmed", "SignedDigit", "Left out"):
        assert shown in said
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"energy.json", "waterfall.png", "break_even.png"}
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
