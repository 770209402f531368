"""The search for the setting of each layer: sums against each setting run by itself, prices, budgets, resumption."""

import itertools
import json

import pytest
import torch

import spikebrain as sb
from spikebrain import BidirectionalBitwise, DeadZoneThreshold, SignedDigit, jobs
from spikebrain.energy import DigitalEnergy, count_operations
from spikebrain.errors import InputError
from spikebrain.jobs.calibration import run as calibration
from spikebrain.jobs.calibration.choice import Option, Table, choose, table_of
from spikebrain.jobs.calibration.units import LARGEST, Rule, summing, units_of
from spikebrain.jobs.progress import Silent
from spikebrain.pages import report_page
from spikebrain.pages.figures import Figures
from spikebrain.pages.parts import View


@pytest.fixture
def spiking(tiny_llama):
    return sb.to_spiking(tiny_llama, sb.SpikeSettings(weights="int4"))


def all_units(model, spiking, ids):
    return units_of(model, spiking, spiking.conversion.converted, ids)


def add_sums(model, units, ids, encoder, *rules):
    with summing(model, units, encoder, [rules] * len(units)), torch.no_grad():
        model(input_ids=ids)


@pytest.fixture
def units(tiny_llama, spiking):
    ids = torch.randint(0, 256, (3, 20))
    found = all_units(tiny_llama, spiking, ids)
    add_sums(tiny_llama, found, ids, BidirectionalBitwise(), Rule(3.0), Rule(8.0), Rule(4.0, 1.0), Rule(8.0, 2.0, 1.5))
    return found, ids


def test_layers_that_read_the_same_input_are_a_unit(units, spiking):
    names = [[name.rpartition(".")[2] for name in unit.names] for unit in units[0]]
    assert names == [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]] * 2
    assert {name for unit in units[0] for name in unit.names} == {*spiking.conversion.converted}


@pytest.mark.parametrize(
    "option",
    [
        Option(Rule(3.0)),
        Option(Rule(8.0), 2),
        Option(Rule(8.0), 1, 5),
        Option(Rule(8.0), 0, 3),
        Option(Rule(4.0, 1.0)),
        Option(Rule(8.0, 2.0, 1.5), 0, 4),
    ],
)
@pytest.mark.parametrize("counts", ["read", "spikes", "energy"])
def test_a_table_says_what_a_run_with_that_setting_costs(tiny_llama, units, option, counts):
    found, ids = units
    code = BidirectionalBitwise()
    neuron, small = option.rule.neuron(), ((2, option.small),) if option.small else ()
    if option.silent:
        neuron = DeadZoneThreshold(option.rule.k, dead_zone=(option.silent + 0.5) / option.rule.k)
    settings = sb.SpikeSettings(layers=("*layers.0.self_attn.?_proj",), skip=("*o_proj",), neuron=neuron, coarse=small)
    model = sb.to_spiking(tiny_llama, sb.SpikeSettings(**{**vars(settings), "weights": "int4"}))
    with torch.no_grad(), sb.record(model) as recording:
        model(input_ids=ids)  # the first unit gets the same input as in the float model
    model_counts = count_operations(recording)
    layers = {name: one for name, one in model_counts.layers.items() if one.kind == "projection"}
    expected = {
        "read": sum(one.spiking.weight_channel_bytes + one.spiking.parameter_bytes for one in layers.values()),
        "spikes": sum(one.spiking.num_spikes for one in layers.values()),
        "energy": sum(DigitalEnergy().estimate(model_counts).by_layer_pj[name] for name in layers),
    }[counts]
    table = table_of(found[0], counts, DigitalEnergy(), code)
    cost = float(table.cost[table.at(option)])
    # Rows of an odd number of bytes, the bound of sums and the length of trains are those of the whole model.
    assert cost == pytest.approx(expected, rel={"read": 1e-9, "spikes": 1e-9, "energy": 0.05}[counts])


def test_errors_are_those_of_the_outputs_for_independent_channels(units):
    unit = units[0][0]
    table = table_of(unit, "read", DigitalEnergy(), BidirectionalBitwise())
    best = table.error[[table.at(Option(Rule(k))) for k in (3.0, 8.0)]]
    assert float(best[1]) < float(best[0])
    for silent in (0, 1, 2):  # more silence, or more coarse rows, costs accuracy and saves bytes
        a, b = table.at(Option(Rule(8.0), silent, 0)), table.at(Option(Rule(8.0), silent + 1, 0))
        assert float(table.error[b]) > float(table.error[a])
        assert float(table.cost[b]) < float(table.cost[a])
    for small in (2, 3, 4):
        a, b = table.at(Option(Rule(8.0), 1, small)), table.at(Option(Rule(8.0), 1, small + 1))
        assert float(table.error[b]) > float(table.error[a])
        assert float(table.cost[b]) < float(table.cost[a])


def test_sums_of_two_texts_are_those_of_both(tiny_llama, spiking):
    ids = torch.randint(0, 256, (4, 10))
    apart, together = (all_units(tiny_llama, spiking, ids) for _ in range(2))
    add_sums(tiny_llama, together, ids, SignedDigit(), Rule(4.0))
    for row in ids.split(2):
        add_sums(tiny_llama, apart, row, SignedDigit(), Rule(4.0))
    for one, other in zip(apart, together, strict=True):
        assert one.num_tokens == other.num_tokens == 40
        for name, values in vars(one.sums[Rule(4.0)]).items():
            torch.testing.assert_close(values, getattr(other.sums[Rule(4.0)], name), rtol=1e-5, atol=1e-12)
            assert len(values) == LARGEST + 1


def test_the_choice_is_the_best_of_all_on_the_hull():
    torch.manual_seed(0)
    steps = torch.arange(1.0, 6.0, dtype=torch.float64)
    tables = [
        Table([Option(Rule(1.0), i) for i in range(5)], a / steps, b * steps) for a, b in ((1, 1), (4, 1), (1, 3))
    ]
    sensitivity = (1.0, 2.0, 0.5)
    for budget in (5.0, 9.0, 14.0, 25.0):
        chosen = choose(tables, sensitivity, budget)
        cost = sum(float(t.cost[i]) for t, i in zip(tables, chosen, strict=True))
        loss = sum(s * float(t.error[i]) for s, t, i in zip(sensitivity, tables, chosen, strict=True))
        assert cost <= budget
        for other in itertools.product(range(5), repeat=3):
            if sum(float(t.cost[i]) for t, i in zip(tables, other, strict=True)) <= cost:
                theirs = sum(s * float(t.error[i]) for s, t, i in zip(sensitivity, tables, other, strict=True))
                assert loss <= theirs + 1e-9
    assert choose(tables, sensitivity, 0.0) == [0, 0, 0]


@pytest.mark.parametrize("budget", ["read=0.6", "spikes=1.2", "energy=1.2"])
def test_a_budget_is_kept_and_the_model_carries_it(run, model_folder, text, tmp_path, budget):
    out = tmp_path / "out"
    arguments = ("calibrate", model_folder, "--budget", budget, "--text", text, "--num-tokens", 512, "--out", out)
    code, shown, err = run(*arguments, "--weights", "int4")
    assert code == 0, err
    counts, _, value = budget.partition("=")
    found = json.loads((out / "calibration.json").read_text())
    assert found["calibrated"][counts] <= float(value) * 1.005
    assert found["kind"] == "calibration"
    assert found["paper"][0]["name"] == "paper's rule, k = 2"
    assert "paper's rule, k = 8" in shown
    assert not (out / "unfinished-calibration.json").exists()
    model = sb.load(out).model
    units = {name: unit for unit in found["units"] for name in unit["layers"]}
    for name, unit in units.items():
        neuron = model.conversion.settings.neuron_of(name)
        prices = getattr(neuron, "spike_price", 0.0), getattr(neuron, "read_price", 0.0)
        assert (neuron.k, *prices) == (unit["k"], unit["spike_price"], unit["read_price"])
        assert counts == "spikes" or prices == (0.0, 0.0)
        coarse = model.conversion.settings.coarse_of(name)
        assert coarse == (((2, unit["small"]),) if unit["small"] > unit["silent"] else ())
    spent = [point[counts] for point in found["paper"]]
    assert min(spent) <= max(spent)
    values = [point["value"] for point in found["frontier"]]
    losses = [point["expected_loss"] for point in found["frontier"]]
    assert values == sorted(values)
    assert losses == sorted(losses, reverse=True)
    # Its report has all that, and what other budgets would cost, drawn where this budget is.
    assert run("report", out, "--text", text, "--num-tokens", 64, "--context", 32, "--out", tmp_path / "report")[0] == 0
    reported = json.loads((tmp_path / "report" / "report.json").read_text())
    shown_in_report = ("model", "budget", "text", "float_perplexity", "calibrated", "paper", "frontier")
    assert {key: reported["calibration"][key] for key in shown_in_report} == {
        key: found[key] for key in shown_in_report
    }
    page = report_page.build(Figures(reported, "report.json"), {})
    (section,) = (one for one in page.sections if one.name == "calibration")
    charts = {part.name: json.dumps(part.data) for part in section.parts if isinstance(part, View)}
    assert {key for key, chart in charts.items() if "expected of other budgets" in chart} == {f"calibration-{counts}"}
    assert all(point["name"] in chart for chart in charts.values() for point in found["paper"])


@pytest.mark.parametrize("attention", [None, "counts"])
def test_the_energy_is_that_of_a_recorded_run(model_folder, text, tmp_path, attention):
    settings = {"weights": "int4", "include_head": True, "attention": attention}
    job = jobs.CalibrateSettings(str(model_folder), jobs.Budget("energy", 1.2), text, 512, **settings)
    found = jobs.calibrate(job, tmp_path / "out").found
    model, tokenizer, _ = sb.load(tmp_path / "out")
    assert model.conversion.settings.attention == attention
    ids = torch.tensor(tokenizer(text.read_text()).input_ids)[512:640].view(2, 64)
    with torch.no_grad(), sb.record(model) as recording:
        for row in ids:
            model(input_ids=row[None], use_cache=False)
    report = DigitalEnergy().estimate(count_operations(recording))
    # The bound of sums and the length of trains are those of the whole model.
    assert found.energy == pytest.approx(1 / report.ratio_vs_int8, rel=0.02)


def test_a_run_that_was_interrupted_goes_on(model_folder, text, tmp_path, monkeypatch):
    settings = jobs.CalibrateSettings(str(model_folder), jobs.Budget("read", 0.6), text, 512, weights="int4")
    expected = jobs.calibrate(settings, tmp_path / "whole")
    measured = []
    plain = calibration.divergence_from

    def count(*given):
        if len(measured) == 3:
            raise KeyboardInterrupt
        measured.append(1)
        return plain(*given)

    monkeypatch.setattr(calibration, "divergence_from", count)
    with pytest.raises(KeyboardInterrupt):
        jobs.calibrate(settings, tmp_path / "out")
    measured[:] = [1, 1, 1, 1]  # no limit any more
    assert jobs.calibrate(settings, tmp_path / "out") == expected
    assert len(measured) == 4 + 8 - 3


def test_a_budget_that_cannot_be_kept(model_folder, text, tmp_path):
    told = []
    settings = jobs.CalibrateSettings(str(model_folder), jobs.Budget("read", 0.01), text, 512, weights="int4")
    said = Silent()
    said.say = told.append
    with pytest.raises(InputError, match=r"budget: expected read=0.01 to be possible, got 0\.\d+ at the least"):
        jobs.calibrate(settings, tmp_path / "out", said)
    assert not any("choosing again" in line for line in told)  # since the cheapest of all was measured
    assert not list((tmp_path / "out").glob("*.safetensors"))


@pytest.mark.parametrize("budget", ["read", "read=", "bytes=0.5", "read=0", "spikes=nan", "energy=-1"])
def test_budgets_that_cannot_be(run, model_folder, tmp_path, budget):
    code, _, err = run("calibrate", model_folder, "--budget", budget, "--out", tmp_path / "out")
    assert code == 2
    assert "budget: expected" in err or "Invalid value for '--budget'" in err


def test_a_model_that_spikes_already(run, model_folder, tmp_path):
    assert run("export", model_folder, "--out", tmp_path / "spikes")[0] == 0
    code, _, err = run("calibrate", tmp_path / "spikes", "--budget", "read=0.5", "--out", tmp_path / "out")
    assert code == 2
    assert "spikes already. Calibrate the float model that it was made from." in err


def test_layers_of_a_unit_may_have_other_widths(tiny_llama):
    spiking = sb.to_spiking(tiny_llama, sb.SpikeSettings(weights="int4"))
    wide = sb.to_spiking(tiny_llama, sb.SpikeSettings(weights="int8"))
    name = "model.layers.0.self_attn.v_proj"
    spiking.set_submodule(name, wide.get_submodule(name))
    first = all_units(tiny_llama, spiking, torch.randint(0, 256, (1, 6)))[0]
    assert [layer.levels[0].weight_bits for layer in first.layers.values()] == [2, 2, 4]


def test_layers_that_do_not_run(tiny_llama, spiking):
    tiny_llama.extra = torch.nn.Linear(4, 4)
    spiking.extra = sb.SpikeLinear.from_linear(torch.nn.Linear(4, 4))
    names = (*spiking.conversion.converted, "extra")
    with pytest.raises(InputError, match="but 1 did not, such as extra: an expert, or a part"):
        units_of(tiny_llama, spiking, names, torch.randint(0, 256, (1, 6)))


def test_a_text_that_is_too_short(run, model_folder, tmp_path):
    text = tmp_path / "short.txt"
    arguments = ("calibrate", model_folder, "--budget", "energy=2", "--text", text, "--out", tmp_path / "out")
    expected = (
        "--text: expected at least 4,096 tokens to calibrate on and 128 behind them to measure the result on, got"
    )
    # Rows of 64 tokens, two of them held out: 639 tokens leave 7 to calibrate on, fewer than the least, 512 tokens.
    for length, remedy in ((639, "Give a longer text."), (703, "Give a longer text, or at most --num-tokens 512.")):
        text.write_text("ab" * (length // 2) + "a")
        code, _, err = run(*arguments)
        assert code == 2
        assert f"{expected} {length} in all (short.txt). {remedy}" in err
    code, _, err = run(*arguments, "--num-tokens", 512)
    assert code == 0, err


@pytest.mark.parametrize("command", ["calibrate", "convert", "distill"])
def test_folders_are_no_files(run, model_folder, text, tmp_path, command):
    more = {"calibrate": ("--budget", "read=0.6"), "convert": (), "distill": (model_folder, "--text", text)}[command]
    code, _, err = run(command, model_folder, *more, "--out", tmp_path / "it.safetensors")
    assert code == 2
    assert f"--out {tmp_path / 'it.safetensors'}: expected a folder, got the name of a file." in err
    assert not (tmp_path / "it.safetensors").exists()
