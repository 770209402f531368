"""What a sweep refuses before it runs, and how it is written: in a file, on the line, and both."""

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest

from spikebrain.chip import chip_names, load_description
from spikebrain.chip.description import PARTS
from spikebrain.cli.commands.sweep import sweep as command
from spikebrain.errors import InputError
from spikebrain.jobs import EnergySettings, ReportSettings, SimulateSettings, SweepSettings
from spikebrain.jobs.energy import DigitalEnergy
from spikebrain.jobs.sweep import OBJECTIVES, Range, read_options, read_spec
from spikebrain.jobs.sweep.bench import chip_of, without_prices
from spikebrain.jobs.sweep.keys import KEYS
from spikebrain.jobs.sweep.results import Row, best_in_words, best_rows, next_steps

SEARCH = Path(__file__).parents[2] / "benchmarks" / "chip_search.toml"
EXAMPLE = Path(__file__).parents[2] / "examples" / "sweep.toml"


def test_keys_are_called_as_the_options_of_other_commands():
    named = {name for cls in (ReportSettings, EnergySettings, DigitalEnergy, SimulateSettings) for name in vars(cls())}
    assert KEYS.keys() - named == {"chip_tokens"}
    known = {effect for objective in OBJECTIVES.values() for effect in objective.effects}
    assert {key.effect for key in KEYS.values()} <= known


def test_every_objective_stands_in_the_help():
    text = Path(command.__code__.co_filename).read_text()
    assert [name for name in OBJECTIVES if name not in text] == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kk": [2, 3]}, "^kk: expected the name of a sweep key, got 'kk'. Did you mean k"),
        ({"encodr": ["ternary"]}, "Did you mean encoder"),
        ({"zzz": [1]}, "There are neuron, k, layers"),
        ({"encoder.*up": ["ternary"]}, "expected KEY or, for neuron and k, KEY.PATTERN"),
        ({"k.": [1.0]}, "expected KEY or, for neuron and k, KEY.PATTERN"),
        ({"k": ["two"]}, "^k: expected a number, got 'two'"),
        ({"k": [True]}, "^k: expected a number, got True"),
        ({"k": [float("nan")]}, "^k: expected a number, got nan"),
        ({"k": [2, 0]}, r"AdaptiveThreshold.k: expected"),
        ({"group_size": [8.5]}, "^group_size: expected an integer or 'all', got 8.5"),
        ({"encoder": ["ternry", "binary"]}, "^encoder: expected one of .*got 'ternry'"),
        ({"weights": ["int3"]}, "^weights: expected one of int8, stored, int4; got 'int3'"),
        ({"k": []}, "^k: expected at least one value, got an empty list"),
        ({"k": [2, 2.0]}, "^k: 2 stands twice"),
        ({}, "^options: expected at least one key with values to sweep"),
        ({"k": 3}, "^options: expected at least one key with values to sweep"),
        ({"k": Range(2.0, 4.0)}, "^k: expected a range with a step in a grid"),
        ({"k": Range(4.0, 2.0, 1.0)}, "^k: expected LOW < HIGH"),
        ({"group_size": Range(8, 16, 0.5)}, "^group_size: step: expected an integer or 'all', got 0.5"),
        ({"encoder": Range(1.0, 2.0, 1.0)}, "^encoder: expected a list of values, got the range"),
        ({"k": Range(1.0, 2.0, 1e-6)}, "^k: expected at most 100,000 values"),
        ({"k": Range(1.0, 9.0, 0.01), "k.*up": Range(1.0, 9.0, 0.01)}, "at most 100,000 combinations, got 641,601"),
        ({"table": ["jouppi_7nm", "horowitz_45nm"]}, "^table: has no effect on perplexity and spikes. .*energy_paper"),
        ({"backend": ["cpu", "reference"]}, "as every backend gives the same sums. Leave it out.*tokens_per_s"),
        ({"chip": ["loihi", "async-45nm"]}, "^chip: has no effect on perplexity and spikes"),
        ({"k": [2, 3], "k.*": [2, 3]}, r"^k: has no effect beside k.\*"),
        ({"k": [2, 3], "neuron": "integrate-and-fire"}, "^k: has no effect on the neuron integrate-and-fire"),
        ({"weights": "stored", "group_size": [8, 16]}, "group_size: has no effect with `weights` stored"),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(InputError, match=message):
        SweepSettings(options)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"objectives": ()}, "^objectives: expected at least one"),
        ({"objectives": ("perplexty",)}, "^objectives: .*Did you mean perplexity"),
        ({"objectives": ("spikes", "spikes")}, "^objectives: spikes stands twice"),
        ({"objectives": ("perplexity",)}, "^encoder: has no effect on perplexity, as these codes are exact"),
        ({"objectives": ("accuracy",)}, "^tasks: expected at least one of winogrande.* for the objective accuracy"),
        ({"objectives": ("accuracy",), "tasks": ("piqa",)}, "^data: expected the folder with the files of the tasks"),
        ({"tasks": ("piqa",)}, "^tasks: has no effect without the objective accuracy"),
        ({"method": "random"}, "^method: expected one of grid, search; got 'random'"),
        ({"trials": 5}, "^trials: has no effect on a grid"),
        ({"seed": 0}, "^seed: has no effect on a grid"),
        ({"method": "search", "trials": 0}, "^trials: expected an integer from 1"),
        ({"context": 4096}, "^num_tokens: expected at least one window"),
        ({"context": 8, "objectives": ("chip_latency_us",)}, "^chip_tokens: expected at most one window of 8 tokens"),
    ],
)
def test_settings_that_cannot_be(given, message):
    with pytest.raises(InputError, match=message):
        SweepSettings({"encoder": ["ternary", "binary"]}, **given)


ON_CHIP = ("chip_pj_per_mac",)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chip.core.lane": [1, 2]}, r"^chip.core.lane: expected the name of a key of a chip.*Did you mean core.lanes"),
        ({"chip.zzz": [1, 2]}, r"^chip.zzz: .*There are mesh.columns, mesh.rows, .*core.off_share.*dram.latency_ns\."),
        ({"chip.": [1, 2]}, r"^chip\.: expected the name of a key of a chip, got ''"),
        ({"chip.barrier.tiles": [1, 2]}, r"^chip.barrier.tiles: expected the name of a key of a chip"),
        ({"chip.core.lanes": [8, 0]}, r"^chip.core.lanes: expected an integer in \[1, 2\^31\), got 0\."),
        ({"chip.core.lanes": [8, 8.5]}, r"^chip.core.lanes: expected an integer, got 8.5"),
        ({"chip.core.add_pj": [-1, 2]}, r"^chip.core.add_pj: expected a number from 0 to 1e\+12, got -1.0"),
        (
            {"chip.core.off_share": Range(0.5, 1.5, 0.5)},
            r"^chip.core.off_share: expected a number from 0 to 1, got 1.5",
        ),
        ({"chip.core.lanes+core.lane": ["1+2"]}, r"key of a chip, got 'core.lane'. Did you mean core.lanes"),
        ({"chip.core.lanes+core.lanes": ["1+2"]}, r"core.lanes stands twice"),
        ({"chip.core.lanes+core.add_pj": ["8+0.1", "8"]}, r"expected 2 values with \+ between, got '8'"),
        ({"chip.core.lanes+core.add_pj": ["8+0.1", "8+x"]}, r"core.add_pj: expected a number, got 'x'"),
        ({"chip.core.lanes+core.add_pj": [8, 9]}, r"expected a text, got 8"),
        ({"chip.handshake.phases": [3, 5]}, r"handshake.phases: expected one of 2, 4, got 3"),
        ({"chip.core.register_accumulators": [8, 9], "chip": "mine.toml"}, r"core.register_pj: missing, since"),
    ],
)
def test_keys_of_a_chip_that_cannot_be(options, message, tmp_path):
    if "chip" in options:
        given = [line for line in load_description("async-45nm").to_toml().splitlines() if "register" not in line]
        (tmp_path / "mine.toml").write_text("\n".join(given))
        options = {**options, "chip": str(tmp_path / "mine.toml")}
    with pytest.raises(InputError, match=message):
        SweepSettings(options, objectives=ON_CHIP)


def test_keys_of_a_chip_have_an_effect_on_chips_only():
    with pytest.raises(InputError, match=r"^chip: has no effect on perplexity and spikes.*chip_pj_per_mac, chip_cores"):
        SweepSettings({"chip.core.lanes": [1, 2]})


def test_keys_of_a_chip():
    typed = ["chip.core.lanes=8:32:8", "chip.core.sram_bytes+core.access_pj=32768+40,131072+80", "chip.core.add_pj=0.1"]
    settings = SweepSettings(read_options([*typed, "chip.packet.multicast=true,false"]), objectives=ON_CHIP)
    assert settings.num_points == 4 * 2 * 2
    assert settings.swept["chip.core.lanes"] == [8, 16, 24, 32]
    points = list(settings.grid())
    chip = chip_of(points[-1])
    assert (chip.core.lanes, chip.core.sram_bytes, chip.core.access_pj, chip.core.add_pj) == (32, 131072, 80.0, 0.1)
    assert chip.packet.multicast is False
    assert chip_of(points[0]).core.sram_bytes == 32768
    before = load_description("async-45nm")
    process, source = chip.sources["core.lanes"]
    assert source == before.sources["core.lanes"][1]  # 32 is what the chip has anyway
    process, source = chip_of(points[0]).sources["core.access_pj"]
    assert process == "45 nm"
    assert source.startswith("varied; async-45nm has 80.0: Horowitz, ISSCC 2014")
    # What is not given is as in the chip, and the file of a chip gives it back.
    assert chip_of({}) == before
    assert chip_of({"chip": "loihi"}) == load_description("loihi")


def test_a_chip_is_written_as_its_file(tmp_path):
    for name in chip_names():
        chip = load_description(name)
        (tmp_path / f"{name}.toml").write_text(chip.to_toml())
        again = load_description(tmp_path / f"{name}.toml")
        assert again == chip
        assert again.sources == chip.sources


def test_prices_decide_on_no_event():
    chip = load_description("async-45nm")
    for part, kind in PARTS.items():
        for key in fields(kind):
            name = f"{part}.{key.name}"
            if name in ("barrier.tiles", "barrier.ns", "packet.payload"):
                continue
            value = chip.value(name)
            other = not value if isinstance(value, bool) else 4 if name == "handshake.phases" else value + 32
            other = 0.5 if name.endswith("_share") else other
            price = name.endswith(("_pj", "_mw", "_share")) or name == "core.wake_ns"
            assert (without_prices(chip.varied({name: other})) == without_prices(chip)) == price, name


def test_the_search_that_found_a_preset():
    settings = SweepSettings(**read_spec(SEARCH))
    assert settings.num_points == 64
    preset = load_description("sliced-45nm")
    found = [chip for chip in map(chip_of, settings.grid()) if chip.core == preset.core]
    assert [replace(chip, name="", sources={}) for chip in found if chip.link == preset.link] == [
        replace(preset, name="", sources={})
    ]


def test_a_file_with_keys_of_a_chip(tmp_path):
    spec = tmp_path / "spec.toml"
    spec.write_text(
        'format = 1\nobjectives = ["chip_pj_per_mac"]\n[options]\n"chip.core.lanes" = [8, 16]\n'
        "[options.chip.core]\nsram_bytes = {low = 1000, high = 2000, step = 500}\n"
    )
    assert SweepSettings(**read_spec(spec)).swept == {
        "chip.core.lanes": [8, 16],
        "chip.core.sram_bytes": [1000, 1500, 2000],
    }


def test_a_combination_that_cannot_be_is_left_to_its_run():
    assert SweepSettings({"weights": ["int8", "stored"], "group_size": ["all", 8]}).num_points == 4


def test_options_on_the_line():
    typed = ["k=2,2.5,3", "encoder=ternary", "group_size=all,32", "k.*down_proj=2:3:0.5", "chip_tokens=4:8"]
    assert read_options([*typed, "stream=true"]) == {
        "k": [2.0, 2.5, 3.0],
        "encoder": "ternary",
        "group_size": [None, 32],
        "k.*down_proj": Range(2.0, 3.0, 0.5),
        "chip_tokens": Range(4, 8),
        "stream": True,
    }
    assert read_options(["k=1:8:log"]) == {"k": Range(1.0, 8.0, None, True)}
    assert SweepSettings(read_options(["k=2:3:0.25"])).swept == {"k": [2.0, 2.25, 2.5, 2.75, 3.0]}
    assert SweepSettings(read_options(["k=1:8"]), method="search").swept == {"k": Range(1.0, 8.0)}
    # Whole numbers of a file are numbers where numbers are meant.
    assert type(SweepSettings({"k": Range(1, 8)}, method="search").swept["k"].low) is float
    with pytest.raises(InputError, match=r"k: is given twice\. Give all its values at once: k=A,B,C"):
        read_options(["k=2", "k=3"])


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("k", "expected KEY=VALUES, such as k=2,3,4"),
        ("k=", "k: expected at least one value, got an empty list"),
        ("k=2,", "k: expected a number, got ''"),
        ("k=1:2:3:4", "expected LOW:HIGH, LOW:HIGH:STEP or LOW:HIGH:log, got '1:2:3:4'"),
        ("k=a:b", "expected LOW:HIGH"),
        ("stream=yes,no", "stream: expected true or false, got 'yes'"),
        ("kay=2", "kay: expected the name of a sweep key"),
    ],
)
def test_options_on_the_line_that_cannot_be(run, typed, message, tmp_path):
    code, _, err = run("sweep", "-o", typed, "--out", tmp_path / "s")
    assert code == 2
    assert message in err
    assert not (tmp_path / "s").exists()


def test_the_example_can_be_read():
    found = read_spec(EXAMPLE)
    assert SweepSettings(**found).num_points == 10
    assert found["objectives"] == ("perplexity", "spikes", "energy_digital")
    assert "text" not in found


def test_a_file_with_patterns_ranges_and_files_beside_it(tmp_path):
    (tmp_path / "text.txt").write_text("text")
    (tmp_path / "mine.toml").write_text("format = 1")
    spec = tmp_path / "spec.toml"
    spec.write_text(
        'format = 1\ntext = "text.txt"\nmethod = "search"\n[options]\ntable = ["mine.toml", "jouppi_7nm"]\n'
        '"k.*up_proj" = 2\nk = {"*down_proj" = [3, 4], "*" = {low = 1.5, high = 4, log = true}}\n'
    )
    assert read_spec(spec) == {
        "text": tmp_path / "text.txt",
        "method": "search",
        "options": {
            "table": [str(tmp_path / "mine.toml"), "jouppi_7nm"],
            "k.*up_proj": 2,
            "k.*down_proj": [3, 4],
            "k.*": Range(1.5, 4, None, True),
        },
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "expected 'format = 1' at the top"),
        ("format = 2", "expected 'format = 1', got format = 2"),
        ("format = 1\nmodle = 'x'", "modle: expected the name of a setting, got 'modle'. Did you mean model"),
        ("format = 1\nk = [2, 3]", "k: expected the name of a setting.*Keys stand in"),
        ("format = 1\ncontext = 'long'", "context: expected an integer, got 'long'"),
        ("format = 1\nobjectives = 'spikes'", "objectives: expected a list of names, got 'spikes'"),
        ("format = 1\noptions = 3", "options: expected a table"),
        ("format = 1\n[options]\nk = {low = 1}", "spec.toml: k: expected a range {low = 1, high = 4}"),
        ("format = 1\n[options]\nk = {low = 1, high = 'x'}", "spec.toml: k: expected a range {low = 1, high = 4}"),
        ("format = ", "expected a TOML file"),
    ],
)
def test_files_that_cannot_be(tmp_path, content, message):
    spec = tmp_path / "spec.toml"
    spec.write_text(content)
    with pytest.raises(InputError, match=message):
        read_spec(spec)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="spec of a sweep: expected one of"):
        read_spec(tmp_path / "spec.toml")


@pytest.mark.slow
def test_the_command_and_its_exit_codes(run, model_folder, text, tmp_path):
    spec = tmp_path / "spec.toml"
    spec.write_text(
        f'format = 1\nmodel = "{model_folder.name}"\ntext = "text.txt"\n[options]\nk = [2, 3]\nencoder = "binary"\n'
    )
    short = ("--num-tokens", 48, "--context", 24, "--device", "cpu", "--out")
    code, shown, err = run("sweep", spec, "-o", "encoder=ternary", *short, tmp_path / "s")
    assert code == 0
    assert "k=2: perplexity" in err
    lines = [line.split() for line in shown.splitlines()]
    assert ["k", "sparsity", "|count|", "<=", "7", "perplexity", "spikes", "front"] in lines
    assert [line[0] for line in lines if line[:1] in (["float"], ["2"], ["3"])] == ["float", "2", "3"]
    assert "spikes: k is best at its least, 2: try k=1.33,2.\n" in shown
    steps = json.loads((tmp_path / "s" / "results.json").read_text())["next_steps"]
    assert steps == [line[:-1] for line in shown.splitlines() if line[:-1] in steps]  # sentences, not pairs
    assert len(steps) == 2
    assert f"<p>{steps[1]}</p>" in (tmp_path / "s" / "results.html").read_text()
    assert shown.splitlines()[-1].startswith(f"Next: spikebrain sweep {spec} --option encoder=ternary --option k=")
    code, _, err = run("sweep", spec, *short, tmp_path / "s")
    assert code == 2
    assert 'spec.encoder: "ternary" there, "binary" here' in err
    assert "another folder (--out), or another --study of the database" in err
    here = ("--model", model_folder, "--text", text)
    mixed = ("-o", "weights=int8,stored", "-o", "group_size=all,7", "--objective", "perplexity")
    code, shown, err = run("sweep", *mixed, *here, *short, tmp_path / "t")
    assert code == 1, err
    assert shown.count("Failed: ") == 2
    assert "Failed: weights=stored group_size=7: " in shown
    for typed, said in [
        (("-o", "k.*nothing=2,3"), "nothing"),
        (
            ("-o", "k.*proj=2,3", "-o", "k.*down_proj=2"),
            "k.*down_proj: has no effect, since earlier patterns match all of its layers",
        ),
        (("-o", "k=2,3", "--storage", "study.db"), "--storage: expected the URL of a database"),
        (("-o", "k=2,3", "--workers", 0), "--workers: expected an integer >= 1, got 0"),
    ]:
        code, _, err = run("sweep", *typed, *here, *short, tmp_path / "u")
        assert code == 2
        assert said in err


def test_rows_that_are_equally_good_give_no_advice():
    settings = SweepSettings({"k": [2.0, 3.0]}, objectives=("spikes",))

    def said(*spikes):
        rows = [Row({"k": k}, {"spikes": n}, None, True) for k, n in zip((2.0, 3.0), spikes, strict=True)]
        return next_steps(rows, settings)

    assert said(1.0, 1.0) == []
    assert said(1.0, 2.0) == [("spikes: k is best at its least, 2: try k=1.33,2", "k=1.33,2")]


@pytest.mark.parametrize(
    ("accuracies", "said"),
    [
        ([0.5, 0.5, 0.5], "all 3 runs are equal"),
        ([0.5, 0.6, 0.6], "k=3, k=4"),
        ([0.5, None, 0.4], "k=2"),
        ([0.5, None, None], "k=2"),
        ([0.6, 0.6, 0.5, 0.6, 0.6, 0.6], "k=2, k=3, k=5 and 2 more"),
    ],
)
def test_runs_that_are_as_good_as_the_best_are_said(accuracies, said):
    settings = SweepSettings({"k": [2.0, 3.0]}, objectives=("spikes",))
    rows = [
        Row({"k": 2.0 + i}, {} if value is None else {"spikes": -value}, "failed" if value is None else None, True)
        for i, value in enumerate(accuracies)
    ]
    assert best_in_words(rows, "spikes", best_rows(rows, settings)["spikes"]) == said
