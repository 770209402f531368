"""Every option of every command: either it always counts, or it is refused where it has no effect."""

import inspect
import json
import sys

import pytest
from fast_first import fast_first

from spikebrain import jobs
from spikebrain.chip import load_description
from spikebrain.cli.contents import command_names, function_of
from spikebrain.cli.messages import option_names
from spikebrain.coding import Ternary
from spikebrain.energy import DigitalEnergy, load_table
from spikebrain.errors import InputError

# What always counts, by command. A new option belongs here or into CASES.
ALWAYS = {
    "report": "model text num_tokens context out seed device",
    "energy": "source table template out assumptions",
    "simulate": "model chip template text num_tokens mode mapping order stream jitter critical_path timeline out",
    "eval": "model tasks text out device",
    "generate": "model prompt prompt_file max_new_tokens temperature device parallel",
    "convert": "model out spiking force",
    "distill": "teacher student out text sample fresh context batch_size accumulation logits_steps learning_rate "
    "spiking precision device seed parallel force",
    "calibrate": "model budget text num_tokens encoder weights compact_scales skip include_head attention out force",
    "doctor": "",
    "tutorial": "out force",
    "export": "model out force",
    "raster": "model out prompt max_new_tokens layers encoder num_neurons num_timesteps potential_of device force",
    "sweep": "spec options model text num_tokens context objectives method workers storage study retry_failed out "
    "device",
}
# Where an option has no effect: arguments before the option and its value. DENSE, SPIKES and the like stand for files.
CASES = {
    "report": {
        name: ["SPIKES"]
        for name in ("neuron", "k", "encoder", "backend", "layers", "skip", "weights", "group_size", "attention")
    },
    "eval": {
        **{
            name: ["SPIKES", "--text", "TEXT", "--context", "16"]
            for name in ("neuron", "k", "encoder", "backend", "layers", "skip", "weights", "group_size", "attention")
        },
        **dict.fromkeys(("data", "limit", "batch_size"), ("DENSE", "--text", "TEXT")),
        **dict.fromkeys(("num_tokens", "context", "layer_tokens"), ("DENSE", "--tasks", "piqa", "--data", "TEXT")),
    },
    "simulate": {
        **{name: ["SPIKES"] for name in ("neuron", "k", "encoder", "layers", "skip", "include_head")},
        **{name: ["SPIKES"] for name in ("weights", "group_size", "compact_scales", "coarse")},
        "seed": ["DENSE"],
    },
    "generate": {"seed": ["FLOAT", "A neuron"]},
    "energy": {
        **dict.fromkeys(("neuron", "k", "encoder", "weights", "attention"), ("SPIKES",)),
        **dict.fromkeys(("text", "num_tokens", "device", "shared_tokens"), ("REPORT",)),
        **dict.fromkeys(
            ("reads_per", "shifts_per", "sums_in", "sram_bytes", "on_chip_bytes", "leakage_w"),
            ("DENSE", "--table", "loihi_14nm"),
        ),
        "token_s": ["DENSE"],
        "block_bytes": ["DENSE"],
    },
    "export": {
        **dict.fromkeys(("text", "num_tokens", "trains", "device", "backend"), ("DENSE", "--out", "NIR")),
        **dict.fromkeys(
            ("neuron", "k", "encoder", "layers", "skip", "weights", "group_size", "attention"),
            ("SPIKES", "--out", "NPZ"),
        ),
        "format": ["DENSE", "--out", "NPZ"],
    },
    "raster": {
        **dict.fromkeys(("text", "num_tokens"), ("DENSE", "--prompt", "A neuron", "--out", "PNG")),
        **dict.fromkeys(("neuron", "k", "skip", "weights"), ("SPIKES", "--num-tokens", 8, "--out", "PNG")),
    },
    "convert": {
        **dict.fromkeys(("calibrate_tokens", "fit", "steps", "placement", "device"), ("DENSE",)),
        **dict.fromkeys(("k", "weights", "format"), ("DENSE",)),
        "layout": ["FLOAT", "--spiking", "as-described"],
        "window": ["DENSE", "--layout", "gla,full"],
        "num_sinks": ["FLOAT", "--spiking", "as-described"],
        "num_experts": ["DENSE", "--layout", "gla,swa"],
        "calibrate": ["DENSE", "--layout", "swa,full"],
        "seed": ["DENSE", "--layout", "swa,full"],
    },
    "sweep": dict.fromkeys(("trials", "seed", "tasks", "data", "limit"), ("-o", "k=2,3")),
    "distill": {
        "minutes": ["DENSE", "FLOAT", "--text", "TEXT", "--attention-steps", "1", "--logits-steps", "1"],
        "logits_rate": ["DENSE", "FLOAT", "--text", "TEXT", "--logits-steps", "0"],
        "checkpointing": ["DENSE", "FLOAT", "--text", "TEXT", "--logits-steps", "0"],
        **dict.fromkeys(("attention_steps", "only_attention"), ("DENSE", "DENSE", "--text", "TEXT")),
        **dict.fromkeys(
            (
                *("k", "dead_zone", "weights", "group_size", "compact_scales", "coarse", "skip", "include_head"),
                *("growth", "budget"),
            ),
            ("DENSE", "FLOAT", "--text", "TEXT"),
        ),
    },
}
# Mostly the usual values: typed, they are as much in vain as others.
VALUES = {
    **{
        "neuron": "adaptive-threshold",
        "k": 3,
        "encoder": "ternary",
        "backend": "cpu",
        "layers": "*",
        "skip": "*",
        "weights": "int8",
        "attention": "counts",
        "group_size": 8,
        "seed": 0,
        "text": "TEXT",
    },
    **{"num_tokens": 512, "device": "auto", "shared_tokens": 1, "reads_per": "channel", "shifts_per": "timestep"},
    **{"sums_in": "register", "sram_bytes": 32768, "on_chip_bytes": 9, "leakage_w": 0, "token_s": 0.1},
    **{"block_bytes": 64, "calibrate_tokens": 4096, "fit": "columns", "steps": 3, "placement": "measured"},
    **{"layout": "7b", "window": 4096, "num_sinks": 0},
    **{"tasks": "piqa", "data": "TEXT", "limit": 1, "batch_size": 1, "context": 16, "layer_tokens": 8},
    **{
        "attention_steps": 1,
        "dead_zone": 0.1,
        "compact_scales": None,
        "coarse": "2:4",
        "growth": 0.5,
        "budget": "read=0.5",
    },
    "trains": None,
    "include_head": None,
    "format": "compressed-tensors",
    **{"num_experts": 4, "trials": 5, "calibrate": "TEXT", "minutes": 10, "logits_rate": 0.1, "checkpointing": None},
    "only_attention": None,
}


@pytest.fixture
def files(model_folder, text, tmp_path):
    """Paths by the names that stand for them above."""
    jobs.convert(jobs.ConvertSettings(str(model_folder)), tmp_path / "float")
    jobs.convert(jobs.ConvertSettings(str(tmp_path / "float"), spiking="as-described"), tmp_path / "spikes")
    (tmp_path / "report.json").write_text("{}")
    names = {"DENSE": model_folder, "FLOAT": tmp_path / "float", "SPIKES": tmp_path / "spikes"}
    names |= {"NIR": tmp_path / "it.nir", "NPZ": tmp_path / "it.npz", "PNG": tmp_path / "it.png"}
    return names | {"TEXT": text, "REPORT": tmp_path / "report.json"}


def test_every_option_says_when_it_counts():
    assert {*command_names()} == ALWAYS.keys()
    for command, names in ALWAYS.items():
        always, sometimes = set(names.split()), CASES.get(command, {}).keys()
        parameters = dict(inspect.signature(function_of(command)).parameters)
        del parameters["screen"]
        assert not always & sometimes
        assert parameters.keys() == always | sometimes, f"{command}: when do these options count?"
        for name in sometimes:  # else one could not tell whether it was typed
            assert parameters[name].default in (None, False)


@pytest.mark.parametrize("command", fast_first(CASES, 3))
def test_options_in_vain_are_refused(command, run, files, tmp_path):
    names = option_names(function_of(command))
    for option, before in CASES[command].items():
        out = () if command == "generate" or option in ("block_bytes", "leakage_w") else ("--out", tmp_path / "out")
        out = () if "loihi_14nm" in before or "--out" in before else out
        given = VALUES[option]
        value = () if given is None else (files.get(str(given), given),)
        typed = [command, *(files.get(word, word) for word in before), names[option], *value, *out]
        code, shown, err = run(*typed)
        assert code == 2, (typed, shown, err)
        if option in ("layout", "num_sinks"):
            assert "is a SpikingBrain model already. It can be put on spikes with --spiking" in err
            assert f"got {names[option]}." in err
        else:
            assert f"error: {names[option]}: has no effect" in err, typed
            assert "`" not in err
        assert not (tmp_path / "out").is_dir() or not any((tmp_path / "out").iterdir())


def test_all_that_is_in_vain_is_named_at_once(run, files, tmp_path):
    code, _, err = run("report", files["SPIKES"], "--layers", "*", "--k", 2, "--out", tmp_path / "r")
    assert code == 2
    assert "which spikes already and keeps its own settings. Leave out --k and --layers." in err
    code, _, err = run("energy", "r.json", "--k", 2, "--num-tokens", 9)
    assert code == 2
    assert "--k: has no effect on r.json, whose model has run already. Leave out --k and --num-tokens." in err


def test_the_library_refuses_arguments_without_options(files, tmp_path):
    energies = load_table("loihi_14nm")
    for job, message in [
        (
            lambda: jobs.report(
                jobs.ReportSettings(
                    str(files["SPIKES"]),
                    encoder=Ternary(),
                ),
                tmp_path / "r",
            ),
            "encoder",
        ),
        (lambda: jobs.energy(jobs.EnergySettings("r.json", num_tokens=512)), "num_tokens"),
        (lambda: jobs.energy_model(energies, reads_per="channel"), "reads_per"),
        (lambda: jobs.energy_model(load_table(), token_s=0.1), "token_s"),
        (lambda: DigitalEnergy(leakage_w=0.1), r"DigitalEnergy\.leakage_w"),
        (lambda: jobs.GenerateSettings(files["FLOAT"], "A", seed=0), "seed"),
        (lambda: jobs.ConvertSettings("m", k=3.0), "k"),
        (lambda: jobs.ConvertSettings("m", fit="columns"), "fit"),
        (lambda: jobs.ConvertSettings("m", calibrate=tmp_path, fit="columns", steps=3), "steps"),
        (lambda: jobs.DistillRun("t", tmp_path, sample=1, attention_steps=0, logits_steps=1, minutes=1.0), "minutes"),
        (lambda: jobs.simulate(jobs.SimulateSettings(seed=0, chip=load_description("loihi")), tmp_path / "s"), "seed"),
    ]:
        with pytest.raises(InputError, match=f"^{message}: .*has no effect") as found:
            job()
        assert "--" not in str(found.value)


@pytest.mark.slow
def test_what_counts_is_not_refused(run, files, text, tmp_path):
    """The same options where they have an effect."""
    short = ("--text", text, "--num-tokens", 16, "--device", "cpu")
    out = ("--out", tmp_path / "e")
    assert run("energy", files["DENSE"], *short, "--block-bytes", 32, "--k", 2, *out)[0] == 0  # the counts are written
    assert run("energy", files["SPIKES"], *short, "--reads-per", "block", "--block-bytes", 32)[0] == 0
    assert run("energy", tmp_path / "e", "--leakage-w", 1, "--token-s", 1e-3)[0] == 0
    code, shown, _ = run("energy", tmp_path / "e", "--table", "loihi_14nm", "--assumptions")
    assert code == 0
    assert "a synaptic operation costs the same whatever the digit" in shown
    assert run("generate", files["SPIKES"], "A", "--temperature", 1, "--seed", 0, "--max-new-tokens", 1)[0] == 0
    sizes = ("--window", 8, "--seed", 1, "--calibrate", text, "--fit", "o-proj", "--spiking", "as-described", "--k", 3)
    assert run("convert", files["DENSE"], *sizes, "--out", tmp_path / "c")[0] == 0


@pytest.mark.slow
def test_an_encoder_without_shifts_says_so(run, files, text):
    short = ("--text", text, "--num-tokens", 16, "--device", "cpu", "--shifts-per", "spike")
    assert "none is shifted" in run("energy", files["DENSE"], *short, "--encoder", "ternary")[2]
    assert "none is shifted" not in run("energy", files["DENSE"], *short)[2]


@pytest.mark.slow
def test_a_report_with_other_settings_says_that_it_starts_again(run, files, text, tmp_path, monkeypatch):
    command = ("report", files["DENSE"], "--text", text, "--num-tokens", 32, "--context", 16, "--out", tmp_path / "r")
    monkeypatch.setattr(sys.modules["spikebrain.jobs.report"], "count_operations", lambda recording: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(*command)
    state = json.loads(json.loads((tmp_path / "r" / "unfinished.json").read_text())["state"])
    assert state["nlls"].keys() == {"float", "int8", "spiking"}
    monkeypatch.undo()
    code, _, err = run(*command, "--k", 2)
    assert code == 0
    said = "unfinished.json is of another text, model, version or settings: this report starts anew."
    assert "".join(said.split()) in "".join(err.split())  # a narrow console wraps, even within a long path
    assert "Going on" not in err
    assert json.loads((tmp_path / "r" / "report.json").read_text())["settings"]["k"] == 2
    (tmp_path / "r" / ".unfinished.json.77.partial").write_text("half")
    code, _, err = run(*command)
    assert code == 0
    assert "anew" not in err
    assert not list((tmp_path / "r").glob("*unfinished*"))


@pytest.mark.parametrize("words", ["--out", "--text", "--table", "--k", "-o", "--text=", "MODEL"])
def test_an_empty_text_is_no_value(run, words):
    """As an unset variable of a shell leaves one: a path would be the current folder."""
    command = "sweep" if words == "-o" else "energy"
    code, shown, err = run(command, *([""] if words == "MODEL" else [words] if words.endswith("=") else [words, ""]))
    assert (code, shown) == (2, "")
    of = "" if words == "MODEL" else f" for {words.removesuffix('=')}"
    assert f"Expected a value{of}, got an empty text." in err
