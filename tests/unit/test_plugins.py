"""Plug-ins of other packages: found by entry points, used by commands, and named when something is wrong with them."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from made_packages import TINY, install, install_tiny
from torch import nn

import spikebrain as sb
from spikebrain.backends import BACKENDS
from spikebrain.chip import MAPPINGS, chip_names, load_description
from spikebrain.coding import ENCODERS
from spikebrain.energy import load_table, table_names
from spikebrain.errors import InputError
from spikebrain.jobs import doctor
from spikebrain.neuro import NEURONS
from spikebrain.registry import describe
from spikebrain.testing import (
    check_backend,
    check_chip,
    check_encoder,
    check_energy_table,
    check_mapping,
    check_neuron,
)

pytestmark = pytest.mark.usefixtures("as_users")
OWN = "from spikebrain.coding import Ternary\nclass Own(Ternary):\n    pass\n"


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder of packages on Python's path; what was imported from it is forgotten afterwards."""
    folder = tmp_path / "site"
    folder.mkdir()
    before = set(sys.modules)
    monkeypatch.syspath_prepend(folder)
    yield folder
    for name in set(sys.modules) - before:
        if str(folder) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture
def tiny(site):
    install_tiny(site)
    return site


def test_each_kind_is_listed_and_made(tiny):
    assert "spikebrain_tiny" not in sys.modules
    for registry, name in ((ENCODERS, "tiny-code"), (NEURONS, "tiny-neuron"), (BACKENDS, "tiny-backend")):
        assert list(registry)[-1] == name
        value = registry.create(name)
        assert registry.name_of(value) == name
        assert registry.resolve(name, "x") == value
    assert "tiny-mapping" in MAPPINGS
    assert "tiny_table" in table_names()
    assert load_table("tiny_table")["synop"] == 2.5
    assert "tiny-chip" in chip_names()
    assert load_description("tiny-chip").name == "tiny-chip"
    settings = sb.SpikeSettings(encoder="tiny-code", neuron="tiny-neuron", backend="tiny-backend")
    assert settings.neuron.steps == 7
    assert " #" in describe(settings.encoder)  # a report does not go on with edited code


@pytest.mark.slow
def test_an_author_proves_a_plug_in_in_a_line(tiny):
    check_encoder("tiny-code", examples=10)
    check_neuron("tiny-neuron", examples=10)
    check_backend("tiny-backend", examples=10)
    check_energy_table("tiny_table")


@pytest.mark.slow
def test_an_author_proves_a_chip_and_a_mapping(tiny):
    check_chip("tiny-chip", examples=5)
    check_mapping("tiny-mapping", examples=5)


@pytest.mark.slow
def test_commands_list_and_use_them(tiny, run, model_folder, text, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    code, out, _ = run("doctor")
    assert code == 0
    for name in ("tiny-code", "tiny-neuron", "tiny-backend", "tiny-mapping", "tiny_table", "tiny-chip"):
        assert any(name in line and "spikebrain-tiny 0.1.0" in line and "yes" in line for line in out.splitlines())
    short = ("--text", text, "--num-tokens", 16, "--neuron", "tiny-neuron", "--encoder", "tiny-code")
    out = tmp_path / "r"
    code, _, err = run("report", model_folder, *short, "--backend", "tiny-backend", "--context", 16, "--out", out)
    assert code == 0, err
    found = json.loads((out / "report.json").read_text())
    assert (found["settings"]["encoder"], found["settings"]["backend"]) == ("tiny-code", "tiny-backend")
    assert "LargestOverSteps" in found["settings"]["neuron"]
    assert found["exactness"]["num_checked"] > found["exactness"]["num_mismatches"] == 0
    code, shown, err = run("energy", out, "--table", "tiny_table")
    assert code == 0, err
    assert "1 nm" in shown
    code, shown, err = run("eval", model_folder, *short, "--context", 16, "--out", tmp_path / "e")
    assert code == 0, err
    assert "spiking: int8 weights, spike trains of LargestOverSteps(steps=7)" in shown
    chip = ("--chip", "tiny-chip", "--mapping", "tiny-mapping", "--num-tokens", 2, "--out", tmp_path / "s")
    code, shown, err = run("simulate", model_folder, "--text", text, "--encoder", "tiny-code", *chip)
    assert code == 0, err
    assert "0 of" in shown
    code, _, err = run("report", model_folder, *short, "--context", 8, "--k", 2, "--out", out)
    assert code == 2
    assert "--k: has no effect on --neuron LargestOverSteps(steps=7), which has none" in err


def test_a_saved_model_finds_them_again(tiny, tiny_llama, tmp_path):
    spiking = sb.to_spiking(tiny_llama, sb.SpikeSettings(encoder="tiny-code", neuron="tiny-neuron"))
    sb.save(spiking, tmp_path / "m.safetensors")
    again = sb.load(tmp_path / "m.safetensors").model
    ids = torch.arange(8)[None]
    with torch.no_grad():
        assert torch.equal(again(ids).logits, spiking(ids).logits)


FAULTS = {
    "cannot be imported": ("own:Own", "import no_such_package_of_this_name", r"ModuleNotFoundError: .*no_such_package"),
    "ends Python": ("own:Own", "raise SystemExit(3)", "SystemExit: 3"),
    "has no such name": ("own:Other", OWN, "AttributeError: .*Other"),
    "is no class": ("own:VALUE", "VALUE = 3", "expected a class derived from Encoder, got 3"),
    "is an object": (
        "own:VALUE",
        OWN + "VALUE = Own()",
        r"expected a class derived from Encoder, got Ternary\(\)|got Own",
    ),
    "is of another kind": ("own:Cpu", "from spikebrain import Cpu", "expected a class derived from Encoder"),
    "lacks methods": (
        *("own:Own", "from spikebrain import Encoder\nclass Own(Encoder):\n    def encode(self, c, n): pass"),
        "expected a class with all methods of Encoder; Own lacks timesteps_for",
    ),
    "is no entry point": ("own own", OWN, "Error: "),
}


@pytest.mark.parametrize(("value", "module", "message"), FAULTS.values(), ids=FAULTS)
def test_one_that_cannot_be_used_is_named_and_the_others_go_on(tiny, value, module, message):
    install(tiny, "broken-codes", {"encoders": {"own": value}}, {"own": module}, "2.5")
    with pytest.raises(InputError, match=rf"^encoder 'own': the plug-in of broken-codes 2.5 \({value}\) .*{message}"):
        sb.SpikeSettings(encoder="own")
    assert "own" not in ENCODERS
    assert "tiny-code" in ENCODERS
    assert sb.SpikeSettings(encoder="tiny-code", neuron="tiny-neuron").encoder == ENCODERS.create("tiny-code")
    rows = {row["name"]: row for row in doctor.examine()["plug_ins"]}
    assert rows["own"]["package"] == "broken-codes 2.5"
    assert "cannot be used" in rows["own"]["fault"]
    assert {row["fault"] for name, row in rows.items() if name != "own"} == {None}
    with pytest.raises(InputError, match=r"expected an object such as .*ternary.*tiny-code; got 'nothing'"):
        sb.SpikeSettings(encoder="nothing")


def test_a_class_without_defaults_is_named(site):
    module = "from spikebrain import Ternary\nclass Own(Ternary):\n    def __init__(self, a): pass\n"
    install(site, "own-codes", {"encoders": {"own": "own:Own"}}, {"own": module})
    with pytest.raises(InputError, match=r"encoder 'own': Own\(\) of own failed: TypeError.*Give each of its settings"):
        ENCODERS.create("own")


SHADOWS = [
    ("encoders", "ternary", lambda: sb.SpikeSettings(encoder="ternary"), lambda: sb.SpikeSettings(encoder="binary")),
    (
        "neurons",
        "integrate-and-fire",
        lambda: NEURONS.create("integrate-and-fire"),
        lambda: NEURONS.create("tiny-neuron"),
    ),
    ("energy_tables", "loihi_14nm", lambda: load_table("loihi_14nm"), lambda: load_table("jouppi_7nm")),
    ("chips", "loihi", lambda: load_description("loihi"), lambda: load_description("tiny-chip")),
]


@pytest.mark.parametrize(("group", "name", "ask", "other"), SHADOWS, ids=lambda value: str(value)[:20])
def test_a_name_of_this_package_is_an_error_that_names_both(tiny, group, name, ask, other):
    install(tiny, "shadow", {group: {name: "own:Own"}}, {"own": OWN})
    with pytest.raises(InputError, match=rf"'{name}': spikebrain.* and shadow 1.0 \(own:Own\) both have this name"):
        ask()
    other()
    faults = {row["name"]: row["fault"] for row in doctor.examine()["plug_ins"]}
    assert "both have this name" in faults[name]
    assert "own" not in sys.modules  # nothing is imported that could not be used


def test_a_name_of_another_plug_in_is_an_error_that_names_both(tiny):
    install(tiny, "second", {"encoders": {"tiny-code": "own:Own", "own": "own:Own"}}, {"own": OWN})
    message = r"second 1.0 \(own:Own\) and spikebrain-tiny 0.1.0 \(spikebrain_tiny:NegatedTernary\) both have this name"
    with pytest.raises(InputError, match=message):
        ENCODERS.create("tiny-code")
    assert "tiny-code" not in ENCODERS
    assert "own" in ENCODERS


def test_a_class_that_also_registers_itself_is_one_plug_in(site):
    module = (
        "from spikebrain.coding import ENCODERS, Ternary\n@ENCODERS.register('itself')\nclass Own(Ternary):\n    pass\n"
    )
    install(site, "own-codes", {"encoders": {"itself": "itself:Own"}}, {"itself": module})
    try:
        assert type(ENCODERS.create("itself")).__module__ == "itself"
        assert list(ENCODERS).count("itself") == 1
        assert type(ENCODERS.create("itself")).__name__ == "Own"
    finally:
        ENCODERS._classes.pop("itself", None)


def test_damaged_packages_and_unknown_groups_are_said(tiny):
    install(tiny, "damaged", {"encoders": {}}, {})
    (tiny / "damaged-1.0.dist-info" / "entry_points.txt").write_text("[spikebrain.encoders]\nno equals sign\n")
    install(tiny, "typing-error", {"encoder": {"own": "own:Own"}}, {"own": OWN})
    assert "tiny-code" in ENCODERS
    rows = {row["package"]: row["fault"] for row in doctor.examine()["plug_ins"]}
    assert "entry_points.txt cannot be read" in rows["damaged 1.0"]
    assert "one of the groups" in rows["typing-error 1.0"]
    assert "got spikebrain.encoder." in rows["typing-error 1.0"]


VALUES = {
    "another name": "from spikebrain.chip import load_description\nV = load_description('loihi')",
    "no chip": "V = 'loihi'",
    "no file": "V = '/nowhere/own.toml'",
    "a wrong number": "from dataclasses import replace\nfrom spikebrain.chip import load_description\n"
    "V = load_description('async-45nm')\n"
    "V = replace(V, name='own', core=replace(V.core, add_pj=-1.0))",
}


@pytest.mark.parametrize("module", VALUES.values(), ids=VALUES)
def test_what_an_entry_point_of_a_chip_names_is_checked(site, module):
    install(site, "chips", {"chips": {"own": "own:V"}}, {"own": module})
    with pytest.raises(
        InputError, match=r"^chip 'own': the plug-in of chips 1.0 \(own:V\) cannot be used: .*"
    ) as error:
        load_description("own")
    assert "own" not in chip_names()
    assert any(part in str(error.value) for part in ("called 'own'", "Description", "own.toml", "core.add_pj"))


def test_what_breaks_its_contract_while_it_runs_is_named(site):
    module = (
        "from spikebrain import Ternary, AdaptiveThreshold, Reference\n"
        "class Code(Ternary):\n    def encode(self, count, n): raise KeyError('spikes')\n"
        "class Rule(AdaptiveThreshold):\n    def step(self, x, state=None): return 1 / 0\n"
        "class Sums(Reference):\n    def _accumulate(self, s, t, w): raise OSError('no chip')\n"
    )
    entries = {"encoders": {"own": "own:Code"}, "neurons": {"own": "own:Rule"}, "backends": {"own": "own:Sums"}}
    install(site, "own-codes", entries, {"own": module})
    for settings, message in (
        (
            {"encoder": "own"},
            r"Code\.encode: expected a result, got KeyError: 'spikes'\. Correct the class Code of own",
        ),
        ({"neuron": "own"}, r"Rule\.step: expected a result, got ZeroDivisionError"),
        ({"backend": "own"}, r"Sums\.accumulate: expected a result, got OSError: no chip"),
    ):
        with pytest.raises(InputError, match=message):
            sb.SpikeLinear.from_linear(nn.Linear(4, 3), **settings)(torch.ones(2, 4))


def test_importing_spikebrain_imports_no_plug_in(tiny):
    code = "import sys, spikebrain\nassert 'spikebrain_tiny' not in sys.modules and 'hypothesis' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join([str(tiny), *sys.path])})


@pytest.mark.slow
def test_pip_installs_the_tiny_package(site, tmp_path):
    shutil.copytree(TINY, tmp_path / "source")  # a build leaves files beside its source
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--target", site)
    subprocess.run([sys.executable, "-m", "pip", "install", *options, tmp_path / "source"], check=True)
    assert "tiny-code" in ENCODERS
    assert load_table("tiny_table")["synop"] == 2.5
