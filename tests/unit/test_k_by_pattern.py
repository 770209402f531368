"""k for kinds of layers, in one setting: in jobs and on the command line."""

import pytest

import spikebrain as sb
from spikebrain import jobs
from spikebrain.cli.options import k_of
from spikebrain.errors import InputError
from spikebrain.files import read_json
from spikebrain.jobs.given import for_all_layers, k_in_words, spike_settings
from spikebrain.models import choose_layers
from spikebrain.models.layers import spiking_layers
from spikebrain.neuro import AdaptiveThreshold, IntegrateAndFire

BY_KIND = ("--k", "*down_proj=4", "--k", "3.5")


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (None, None),
        ([], None),
        (["2.5"], 2.5),
        (["*=2"], 2.0),
        (["*down_proj=4", "3"], {"*down_proj": 4.0, "*": 3.0}),
        (["3", "*down_proj=4"], {"*down_proj": 4.0, "*": 3.0}),  # a number alone is for the others, wherever it stands
        (["*down_proj=4,*up_proj=2, 3"], {"*down_proj": 4.0, "*up_proj": 2.0, "*": 3.0}),
        (["a=b=2"], {"a=b": 2.0}),
    ],
)
def test_typed(typed, expected):
    found = k_of(typed)
    assert found == expected
    if isinstance(expected, dict):
        assert [*found] == [*expected]
        assert k_of([k_in_words(found)]) == expected


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["many"], "k: expected a number such as 3, or PATTERN=NUMBER such as .*; got 'many'"),
        (["*down_proj="], "k: expected a number"),
        (["2", "3"], "k: expected one number for all other layers, got two"),
        (["2,3"], "k: expected one number for all other layers, got two"),
        (["*a=2", "*a=3"], r"k: expected one number for the pattern '\*a', got two"),
    ],
)
def test_typed_wrong(typed, message):
    with pytest.raises(InputError, match=message):
        k_of(typed)


def test_settings_of_jobs():
    settings = jobs.ReportSettings(k={"*down_proj": 4.0}).spike_settings()
    assert settings.neuron == {"*down_proj": AdaptiveThreshold(4.0), "*": AdaptiveThreshold(3.0)}
    assert for_all_layers(2.0) == 2.0
    assert for_all_layers({"a": 1.0, "*": 2.0}) == {"a": 1.0, "*": 2.0}
    with pytest.raises(InputError, match="k: has no effect on `neuron`"):
        spike_settings(jobs.ReportSettings(neuron=IntegrateAndFire(), k={"*down_proj": 4.0}))
    with pytest.raises(InputError, match=r"AdaptiveThreshold\.k: expected"):
        jobs.ReportSettings(k={"*down_proj": 0.0}).spike_settings()


def test_a_pattern_behind_others_is_no_effect(tiny_llama):
    for patterns in ({"*": 3.0, "*down_proj": 4.0}, {"*mlp*": 2.0, "*down_proj": 4.0, "*": 3.0}):
        with pytest.raises(InputError, match=r"neuron '\*down_proj': has no effect, since earlier patterns match all"):
            choose_layers(tiny_llama, sb.SpikeSettings(neuron=sb.neuron_with_k(patterns)))
    choose_layers(tiny_llama, sb.SpikeSettings(neuron=sb.neuron_with_k({"*mlp*": 2.0, "*attn*": 4.0, "*": 3.0})))


@pytest.mark.slow
def test_commands_take_patterns(run, model_folder, text, tmp_path):
    short = (model_folder, "--text", text, "--num-tokens", 16)
    out = tmp_path / "report"
    code, shown, err = run("report", *short, "--context", 16, *BY_KIND, "--device", "cpu", "--out", out)
    assert code == 0, err
    found = read_json(out / "report.json")
    assert found["settings"]["k"] == {"*down_proj": 4.0, "*": 3.5}
    assert {row["name"].rpartition(".")[2]: row["k"] for row in found["layers"]} == {
        **dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj"), 3.5),
        "down_proj": 4.0,
    }
    lines = [line.split() for line in shown.splitlines()]
    assert ["model.layers.*.mlp.down_proj", "2", "4"] in lines
    assert ["model.layers.*.mlp.up_proj", "2", "3.5"] in lines
    for typed in (
        ("energy", *short, "--device", "cpu"),
        ("simulate", *short, "--out", tmp_path / "chip"),
        ("export", *short, "--device", "cpu", "--out", tmp_path / "it.npz"),
    ):
        code, _, err = run(*typed, *BY_KIND, "--quiet")
        assert (code, err) == (0, ""), typed


def test_a_wrong_pattern_is_called_as_it_was_typed(run, model_folder, text, tmp_path):
    short = (model_folder, "--text", text, "--num-tokens", 16, "--context", 16, "--out", tmp_path / "r")
    code, shown, err = run("report", *short, "--k", "*dwn_proj=4")
    assert (code, shown) == (2, "")
    assert "error: --k '*dwn_proj': expected a pattern that matches the name of a layer" in err
    assert "*down_proj*" in err
    code, _, err = run("report", *short, "--k", "*=3,*down_proj=4")
    assert code == 2
    assert "error: --k '*down_proj': has no effect, since earlier patterns match all of its layers." in err
    for command in (("report", *short), ("eval", *short[:3])):
        code, shown, err = run(*command, "--k", "2", "--k", "*down_proj=many")
        assert (code, shown) == (2, "")
        assert "Invalid value for '--k': expected a number such as 3, or PATTERN=NUMBER" in err
    code, _, err = run("report", *short, "--k", "0")
    assert "error: --k: expected a finite number > 0" in err
    code, _, err = run("report", *short, "--k", "*down_proj=0")
    assert code == 2
    assert "error: --k: expected a finite number > 0" in err


@pytest.mark.slow
def test_a_spikingbrain_model_keeps_them(run, model_folder, tmp_path):
    out = tmp_path / "it"
    typed = ("convert", model_folder, "--layout", "gla,full", "--spiking", "as-described", "--out", out)
    code, _, err = run(*typed, "--k", "*down_proj=4,*q_proj=2,*=3")
    assert code == 0, err
    model = sb.load(out).model
    k = {name.rpartition(".")[2]: layer.neuron.k for name, layer in spiking_layers(model).items()}
    assert (k["down_proj"], k["q_proj"], k["o_proj"]) == (4.0, 2.0, 3.0)
    assert model.settings.k == 2.0  # of queries
    code, _, err = run(*typed[:-1], tmp_path / "b", "--k", "*layers.1.*=2", "--k", "3")
    assert code == 2
    assert "expected the same one for all query projections, got AdaptiveThreshold(k=3.0" in err
