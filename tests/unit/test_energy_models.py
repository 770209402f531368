import pytest
import torch
from torch import nn

from spikebrain import AdaptiveThreshold, SpikeLinear, record
from spikebrain.energy import OperationCounts, PaperEnergy, count_operations, load_table
from spikebrain.errors import InputError


def test_counts_by_hand():
    layer = SpikeLinear.from_linear(nn.Linear(4, 3), neuron=AdaptiveThreshold(k=3.0))
    with record(layer) as recording:
        layer(torch.tensor([[1.0, -1.0, 4.0, 0.0], [7.0, -3.0, -2.0, 0.0]]))
    counts = count_operations(recording)
    # 9 spikes (test_record.py) reach 3 outputs each; dense: 2 tokens x 4 x 3.
    assert counts == {"": OperationCounts(num_activations=8, num_spikes=9, num_synops=27, num_macs=24)}


def paper_with(num_spikes, num_activations=100, fan_out=10):
    layer = OperationCounts(num_activations, num_spikes, num_spikes * fan_out, num_activations * fan_out)
    return PaperEnergy().estimate({"layer": layer})


def test_the_papers_own_averages_give_its_numbers():
    # REFERENCE section 3: 1.13 spikes * 0.03 pJ = 0.0339 pJ, printed as 0.034.
    energy = paper_with(113)
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


def test_parts_sum_to_the_total():
    layers = {f"{i}": OperationCounts(10 * i, 7 * i, 70 * i, 100 * i) for i in range(1, 5)}
    energy = PaperEnergy().estimate(layers)
    assert energy.spike_total_pj == pytest.approx(sum(energy.by_layer_pj.values()))
    assert energy.spike_total_pj == pytest.approx(700 * 0.03)
    assert energy.int8_total_pj == pytest.approx(1000 * 0.23)
    assert energy.average_spikes == 0.7


def test_nothing_costs_nothing():
    for counts in ({}, {"silent": OperationCounts(num_activations=10, num_macs=100)}):
        energy = PaperEnergy().estimate(counts)
        assert energy.spike_mac_pj == energy.spike_total_pj == 0
        assert energy.ratio_vs_fp16 is None
        assert energy.saving_vs_int8 == 1


def test_says_what_it_leaves_out():
    energy = paper_with(113)
    assert any("reading weights" in cost for cost in energy.left_out)
    assert "ISSCC 2014" in energy.table.source


def test_counts_are_integers(as_users):
    assert OperationCounts(1, 2, 3, 4) + OperationCounts(10, 20, 30, 40) == OperationCounts(11, 22, 33, 44)
    for wrong in (-1, 1.5):
        with pytest.raises(InputError, match="num_macs"):
            OperationCounts(num_macs=wrong)


def test_table_is_horowitz():
    table = load_table()
    # A MAC is a multiplication and an addition: 1.1 + 0.4 and 0.2 + 0.03.
    assert table["fp16_mac"] == pytest.approx(1.1 + 0.4)
    assert table["int8_mac"] == pytest.approx(0.2 + 0.03)
    assert (table["int8_add"], table["int32_add"]) == (0.03, 0.1)
    assert "45 nm" in table.process


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[energy_pj]\na = 1", "'process'"),
        ("process = '7 nm'\n[energy_pj]\na = 1", "'source'"),
        ("process = '7 nm'\nsource = ' '\n[energy_pj]\na = 1", "'source'"),
        ("process = '7 nm'\nsource = 'x'", r"\[energy_pj\]"),
        ("process = '7 nm'\nsource = 'x'\n[energy_pj]\na = -1", r"energy_pj\.a.*got -1"),
        ("process = '7 nm'\nsource = 'x'\n[energy_pj]\na = nan", r"energy_pj\.a.*got nan"),
        ("process = '7 nm'\nsource = 'x'\n[energy_pj]\na = '1'", r"energy_pj\.a"),
        ("process = ", "TOML"),
    ],
)
def test_bad_tables(tmp_path, text, message):
    path = tmp_path / "own.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        load_table(path)


def test_nothing_to_compare_with(tmp_path):
    path = tmp_path / "own.toml"
    entries = "int8_add = 0\nint32_add = 0\nfp16_mac = 0\nint8_mac = 1"
    path.write_text(f"process = '7 nm'\nsource = 'a paper'\n[energy_pj]\n{entries}")
    with pytest.raises(InputError, match="expected fp16_mac > 0"):
        PaperEnergy(load_table(path)).estimate({})


def test_own_table(tmp_path):
    path = tmp_path / "own.toml"
    path.write_text(
        "process = '7 nm'\nsource = 'a paper'\n[energy_pj]\nint8_add = 0.007\nfp16_mac = 0.5\nint8_mac = 0.077"
    )
    assert load_table(path)["int8_add"] == 0.007
    with pytest.raises(InputError, match="expected an entry 'int32_add'"):
        PaperEnergy(load_table(path)).estimate({})
    with pytest.raises(InputError, match="horowitz_45nm"):
        load_table("horowitz_3nm")
