"""A sweep in one process: its figures, its files, and that each run is made once, whatever ended the one before."""

import csv
import errno
import importlib.util
import json
import os
import sys
from dataclasses import replace

import pytest
import torch
from task_files import write_tasks

from spikebrain import AdaptiveThreshold, SpikeSettings, Ternary, to_spiking
from spikebrain.analysis import measure_perplexity, pareto_front, split_windows
from spikebrain.chip import load_description
from spikebrain.errors import InputError
from spikebrain.jobs import EvalSettings, SweepSettings, evaluate, sweep
from spikebrain.jobs.sweep import Range
from spikebrain.jobs.sweep.bench import Bench, chip_of, settings_of
from spikebrain.jobs.sweep.identity import fingerprint_of, identity_of
from spikebrain.jobs.sweep.owner import LEASE_S, lives, this_process
from spikebrain.jobs.sweep.storage import JOURNAL
from spikebrain.jobs.sweep.study import Study
from spikebrain.models.io import load
from spikebrain.simulation import simulate_model

optuna = pytest.importorskip("optuna", reason="needs the extra sweep")
parquet = pytest.importorskip("pyarrow.parquet", reason="needs the extra sweep")
run_module, study_module = (sys.modules[f"spikebrain.jobs.sweep.{name}"] for name in ("run", "study"))

GRID = {"k": [2.0, 3.0], "encoder": ["binary", "ternary"]}
DEAD = {**this_process(), "started": "0"}


@pytest.fixture
def settings(model_folder, text):
    def settings(options=GRID, **others):
        given = {"model": str(model_folder), "text": text, "num_tokens": 48, "context": 24, "device": "cpu"}
        return SweepSettings(options, **{**given, **others})

    return settings


@pytest.fixture
def counted(monkeypatch):
    """A list that grows with each run."""
    real, made = run_module.measure, []

    def measure(run, settings):
        made.append(dict(run._point))
        return real(run, settings)

    monkeypatch.setattr(run_module, "measure", measure)
    return made


def figures(found):
    return [(row.settings, row.figures, row.error, row.on_front) for row in found.rows]


def states(out):
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(out / JOURNAL)))
    return [trial.state.name for trial in optuna.load_study(study_name="sweep", storage=storage).trials]


def study_of(settings, out):
    """Return the study of a sweep and its identity, without a run."""
    out.mkdir(exist_ok=True)
    bench, identity, _ = run_module._prepare(settings)
    return Study(settings, None, "sweep", out), bench, identity


def test_the_figures_are_those_of_single_runs(settings, tiny_llama, tokenizer, text, tmp_path):
    found = sweep(settings(), tmp_path / "s")
    assert [tuple(row.settings.values()) for row in found.rows] == [
        (2.0, "binary"),
        (2.0, "ternary"),
        (3.0, "binary"),
        (3.0, "ternary"),
    ]
    windows = split_windows(torch.tensor(tokenizer.encode(text.read_text()))[:48], 24)
    assert found.float_perplexity == measure_perplexity(tiny_llama, windows)
    single = to_spiking(tiny_llama, SpikeSettings(neuron=AdaptiveThreshold(3.0), encoder=Ternary()))
    # 3 ternary spikes a channel at most: mean |x| / threshold is k, and rounding changes it little.
    assert found.rows[3].figures["perplexity"] == pytest.approx(measure_perplexity(single, windows), rel=1e-9)
    assert found.rows[3].figures["spikes"] == pytest.approx(3, abs=0.1)
    assert found.rows[3].figures["spikes"] == found.rows[3].figures["mean_count"]
    assert found.best["spikes"].settings == {"k": 2.0, "encoder": "ternary"}
    assert found.num_failed == found.num_open == 0


@pytest.mark.slow
def test_files(settings, tmp_path):
    found = sweep(settings(), tmp_path / "s")
    assert sorted(path.name for path in (tmp_path / "s").iterdir()) == sorted([*found.files, JOURNAL])
    table = parquet.read_table(tmp_path / "s" / "results.parquet")
    rows = table.to_pylist()
    assert [row["perplexity"] for row in rows] == [row.figures["perplexity"] for row in found.rows]
    assert [row["on_front"] for row in rows] == [row.on_front for row in found.rows]
    assert {str(table.schema.field(name).type) for name in ("k", "spikes")} == {"double"}
    assert str(table.schema.field("max_count").type) == "int64"
    about = json.loads(table.schema.metadata[b"spikebrain"])
    assert about["study"]["spec.k"] == [2.0, 3.0]
    assert about["float_perplexity"] == found.float_perplexity
    with (tmp_path / "s" / "results.csv").open() as file:
        read = list(csv.DictReader(file))
    assert [float(row["perplexity"]) for row in read] == [row["perplexity"] for row in rows]
    assert (tmp_path / "s" / "pareto.png").stat().st_size > 1000


@pytest.mark.slow
def test_runs_leave_nothing_behind(settings, tmp_path):
    """Equal figures in any order, and a model as it was loaded."""
    one = settings({"k": [2.0, 4.0], "weights": ["int8", "int4"]}, objectives=("perplexity", "bytes_read"))
    bench, _, _ = run_module._prepare(one)
    before, points = fingerprint_of(bench.model), list(one.grid())
    forward = [run_module.measure(Bench(bench.model, bench.windows, False).run(p), one) for p in points]
    shared = Bench(bench.model, bench.windows, False)
    backward = [run_module.measure(shared.run(p), one) for p in reversed(points)]
    assert forward == backward[::-1]
    assert len({tuple(found.values()) for found in forward}) == 4
    assert fingerprint_of(bench.model) == before


@pytest.mark.slow
def test_a_second_start_runs_nothing(settings, tmp_path, counted):
    first = sweep(settings(), tmp_path / "s")
    assert len(counted) == 4
    second = sweep(settings(), tmp_path / "s")
    assert len(counted) == 4
    assert figures(first) == figures(second)
    assert first.float_perplexity == second.float_perplexity
    assert states(tmp_path / "s") == ["COMPLETE"] * 4


@pytest.mark.slow
def test_optuna_sees_its_grid_as_exhausted(settings, tmp_path):
    study, bench, identity = study_of(settings(), tmp_path / "s")
    study.begin(identity)
    assert not study._study.sampler.is_exhausted(study._study)
    run_module.work(study, bench)
    assert study._study.sampler.is_exhausted(study._study)


def begun_by_a_dead_process(settings, out, monkeypatch):
    """Return a new study, its bench, and the attempt that was running when its process died."""
    study, bench, identity = study_of(settings, out)
    study.begin(identity)
    with monkeypatch.context() as patch:
        patch.setattr(study_module, "this_process", lambda: DEAD)
        return study, bench, study.take()


@pytest.mark.slow
def test_what_a_dead_process_left_is_taken_up_once(settings, tmp_path, monkeypatch, counted):
    out = tmp_path / "s"
    whole = sweep(settings(), tmp_path / "whole")
    study, _, lost = begun_by_a_dead_process(settings(), out, monkeypatch)
    done = study_of(settings(), out)[0].take()  # of a process that lives: this one
    counted.clear()
    found = sweep(settings(), out)
    assert len(counted) == 3
    assert done.values not in counted
    assert lost.values in counted
    assert found.num_open == 1
    assert sorted(states(out)) == ["COMPLETE"] * 3 + ["FAIL"] + ["RUNNING"]
    study.complete(done, run_module.measure(study_of(settings(), out)[1].run(done.values), settings()))
    counted.clear()
    assert figures(sweep(settings(), out)) == figures(whole)
    assert not counted


@pytest.mark.slow
def test_figures_that_were_written_are_not_lost(settings, tmp_path, monkeypatch, counted):
    """A process that died between its figures and the end of its trial."""
    out = tmp_path / "s"
    whole = sweep(settings(), tmp_path / "whole")
    study, bench, lost = begun_by_a_dead_process(settings(), out, monkeypatch)
    study._storage.set_trial_user_attr(lost.trial_id, "result", run_module.measure(bench.run(lost.values), settings()))
    counted.clear()
    assert figures(sweep(settings(), out)) == figures(whole)
    assert states(out) == ["COMPLETE"] * 4
    assert len(counted) == 3


@pytest.mark.slow
def test_a_point_that_stands_twice_in_the_queue_runs_once(settings, tmp_path, counted):
    study, bench, identity = study_of(settings(), tmp_path / "s")
    study.begin(identity)
    for point in range(4):  # as another process would that saw the same ones lost
        study._put(point)
    run_module.work(study, bench)
    assert len(counted) == 4
    assert states(tmp_path / "s") == ["COMPLETE"] * 4 + ["FAIL"] * 4
    assert len(study.settled()) == 4


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, True),
        ({"started": "0"}, False),  # the number went to another process
        ({"pid": 2**22 + 1}, False),
        ({"boot": "another"}, False),
        ({"host": "another"}, True),
        ({"host": "another", "seen": 0.0}, False),
        ({"space": "another container"}, True),
        ({"space": "another container", "seen": 0.0}, False),
    ],
)
def test_who_lives(changed, expected):
    here = this_process()
    if here["boot"] is None:
        pytest.skip("this system has no /proc")
    assert lives({**here, **changed}) is expected
    assert not lives({**here, "host": "another"}, now=here["seen"] + LEASE_S)
    assert not lives(None)


@pytest.mark.slow
def test_a_failure_is_kept_and_the_others_too(settings, tmp_path, counted):
    many = settings({"group_size": [8, 4, "all"], "k": [3.0]}, objectives=("perplexity",))

    def broken(run, given):
        if run._point.get("group_size") == 4:
            raise ValueError("no groups of 4")
        return real(run, given)

    real = run_module.measure
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "measure", broken)
        found = sweep(many, tmp_path / "s")
    assert [row.error for row in found.rows] == [None, "ValueError: no groups of 4", None]
    assert found.num_failed == 1
    assert parquet.read_table(tmp_path / "s" / "results.parquet")["error"].to_pylist()[1] == found.rows[1].error
    counted.clear()
    assert sweep(many, tmp_path / "s").num_failed == 1  # nor is it run again
    assert not counted
    again = sweep(many, tmp_path / "s", retry_failed=True)
    assert [run["group_size"] for run in counted] == [4]
    assert again.num_failed == 0


@pytest.mark.slow
def test_another_model_text_or_spec_is_refused(settings, tmp_path, tiny_llama, model_folder):
    out = tmp_path / "s"
    sweep(settings(), out)
    (tmp_path / "other.txt").write_text("Another text. " * 40)
    for changed, said in [
        ({"text": tmp_path / "other.txt"}, r"text: \"\w+\" there, \"\w+\" here"),
        (
            {"options": {"k": [2.0, 4.0]}},
            r"spec.k: \[2.0, 3.0\] there, \[2.0, 4.0\] here\n  spec.enc.* nothing here",
        ),
        ({"objectives": ("spikes",)}, r"spec.objectives: \[\"perplexity\", \"spikes\"\] there"),
        ({"context": 48}, "spec.context: 24 there, 48 here"),
    ]:
        with pytest.raises(InputError, match=rf"study.journal: holds another study:[\s\S]*{said}"):
            sweep(settings(**changed), out)
    with torch.no_grad():
        tiny_llama.model.layers[1].mlp.up_proj.weight[0, 0] += 1e-3
    tiny_llama.save_pretrained(model_folder)
    with pytest.raises(InputError, match=r"holds another study:\n  model: \"\w+\" there, \"\w+\" here\nGo on"):
        sweep(settings(), out)


def test_an_edited_table_makes_another_study(settings, tmp_path):
    from spikebrain.energy import table  # noqa: PLC0415

    mine = tmp_path / "mine.toml"
    mine.write_text((table._FOLDER / "horowitz_45nm.toml").read_text())
    options = {"table": [str(mine), "jouppi_7nm"]}
    one = settings(options, objectives=("energy_paper",))
    bench, first, _ = run_module._prepare(one)
    mine.write_text(mine.read_text() + "\n# another note\n")
    second = identity_of(one, bench.model, torch.cat(bench.windows), "cpu")
    assert {name for name in first if first[name] != second[name]} == {f"spec.{mine}"}


@pytest.mark.slow
def test_a_search_makes_as_many_runs_as_asked_for(settings, tmp_path, counted):
    options = {"k": Range(1.5, 6.0), "encoder": ["ternary", "signed-digit"], "table": "jouppi_7nm"}
    given = {"method": "search", "trials": 6, "seed": 1, "objectives": ("perplexity", "energy_digital")}
    found = sweep(settings(options, **given), tmp_path / "s")
    assert len(found.rows) == len(counted) == 6
    assert all(1.5 <= row.settings["k"] <= 6.0 for row in found.rows)
    assert len({row.settings["k"] for row in found.rows}) == 6
    assert figures(sweep(settings(options, **given), tmp_path / "s")) == figures(found)
    assert figures(sweep(settings(options, **given), tmp_path / "again")) == figures(found)
    assert len(counted) == 12


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval is absent")
def test_accuracy_is_that_of_eval(settings, model_folder, tmp_path):
    given = {"tasks": ("piqa", "lambada", "winogrande"), "data": write_tasks(tmp_path / "data"), "limit": 4}
    found = sweep(settings({"k": [0.5, 3.0]}, objectives=("accuracy", "spikes"), **given), tmp_path / "s")
    expected = evaluate(EvalSettings(str(model_folder), k=(0.5, 3.0), device="cpu", **given), tmp_path / "eval")
    for row in found.rows:
        assert row.figures["accuracy"] == pytest.approx(
            expected["average"][f"k={row.settings['k']:g}"]["value"], rel=1e-12
        )
    documents = tmp_path / "data" / "piqa" / "valid-labels.lst"
    documents.write_text("1" + documents.read_text()[1:])
    with pytest.raises(InputError, match="task piqa: "):
        sweep(settings({"k": [0.5, 3.0]}, objectives=("accuracy", "spikes"), **given), tmp_path / "s")


@pytest.mark.slow
def test_latency_and_energy_on_a_chip(settings, tmp_path):
    options = {"chip": ["ideal-45nm", "async-45nm"], "chip_tokens": 2}
    found = sweep(settings(options, objectives=("chip_latency_us", "chip_energy_nj", "spikes")), tmp_path / "s")
    ideal, real = (row.figures for row in found.rows)
    assert ideal["spikes"] == real["spikes"]
    assert ideal["chip_latency_us"] == 0 < real["chip_latency_us"]  # an ideal chip takes no time
    assert 0 < ideal["chip_energy_nj"] < real["chip_energy_nj"]


def test_weights_decide_what_a_chip_takes(settings, tmp_path):
    options = {"group_size": [None, 4], "chip_tokens": 2}
    found = sweep(settings(options, objectives=("chip_energy_nj", "chip_latency_us")), tmp_path / "s")
    rows, groups = (row.figures for row in found.rows)
    # Sums of groups are rescaled and added to others, which takes energy and time.
    assert rows["chip_energy_nj"] < groups["chip_energy_nj"]
    assert rows["chip_latency_us"] < groups["chip_latency_us"]


CHIPS = {
    "chip.core.off_share": [1.0, 0.1],
    "chip.core.accumulator_pj": [10.0, 2.0],
    "chip.core.sram_bytes+core.access_pj": ["131072+80", "1000+40"],
    "include_head": True,
    "chip_tokens": 2,
}


@pytest.mark.slow
def test_a_search_over_chips(settings, tmp_path, monkeypatch, model_folder):
    simulated, converted = [], []
    bench_module = sys.modules["spikebrain.jobs.sweep.bench"]
    real, to_spikes = bench_module.simulate_model, bench_module.to_spiking
    monkeypatch.setattr(bench_module, "simulate_model", lambda *a, **k: simulated.append(a[2]) or real(*a, **k))
    monkeypatch.setattr(bench_module, "to_spiking", lambda *a: converted.append(1) or to_spikes(*a))
    objectives = ("chip_pj_per_mac", "chip_latency_us", "chip_cores")
    found = sweep(settings(CHIPS, objectives=objectives), tmp_path / "s")
    assert found.num_failed == 0
    assert len(found.rows) == 8
    assert len(simulated) == 2  # prices and sleep change no event, two sizes of memory do
    assert len(converted) == 1
    # Each run is what its own chip would have given.
    ids = torch.tensor(load(model_folder)[1].encode((settings().text).read_text())[:2])
    model = to_spiking(load(model_folder)[0], SpikeSettings(include_head=True))
    for row in (found.rows[0], found.rows[-1]):
        alone = simulate_model(model, ids, chip_of({"chip_tokens": 2, **row.settings}))
        assert row.figures["chip_pj_per_mac"] == sum(alone.energy_pj.values()) / alone.activity.num_macs
        assert row.figures["chip_latency_us"] == alone.token_ps.mean() / 1e6
        assert row.figures["chip_cores"] == sum(len(layer.placement.cores) for layer in alone.layers.values())
        for name, pj in alone.energy_pj.items():
            assert row.figures[f"pj_per_mac.{name}"] == pj / alone.activity.num_macs
    best = found.best_chip
    assert best.objective == "chip_pj_per_mac"
    assert best.row is found.best["chip_pj_per_mac"]
    assert best.row.settings["chip.core.off_share"] == 0.1
    assert best.row.settings["chip.core.accumulator_pj"] == 2.0
    assert sum(best.pj_per_mac.values()) == pytest.approx(best.row.figures["chip_pj_per_mac"])
    assert best.in_words().startswith("Best chip by chip_pj_per_mac: chip.core.off_share=0.1 ")
    # Its file is a chip; the table has a column for each component.
    chip = load_description(tmp_path / "s" / "best-chip.toml")
    assert replace(chip, name="") == replace(best.chip, name="")
    assert chip.core.accumulator_pj == 2.0
    assert "best-chip.toml" in found.files
    table = parquet.read_table(tmp_path / "s" / "results.parquet").to_pylist()
    assert [row["pj_per_mac.leakage"] for row in table] == [row.figures["pj_per_mac.leakage"] for row in found.rows]
    written = json.loads((tmp_path / "s" / "results.json").read_text())
    assert written["best_chip"] == {"objective": "chip_pj_per_mac", "pj_per_mac": best.pj_per_mac}
    assert "What its energy consists of" in (tmp_path / "s" / "results.html").read_text()


@pytest.mark.slow
def test_the_command_names_the_best_chip(run, model_folder, text, tmp_path):
    typed = ["-o", "chip.core.lanes=16,32", "-o", "chip_tokens=2", "-o", "include_head=true", "--num-tokens", 48]
    typed += ["--objective", "chip_pj_per_mac", "--context", 24, "--text", text, "--out", tmp_path / "s"]
    code, shown, err = run("sweep", *typed, "--model", model_folder)
    assert code == 0, err
    assert "Best chip by chip_pj_per_mac: chip.core.lanes=" in shown
    assert "pJ per MAC: " in shown
    code, _, err = run(
        "simulate", model_folder, "--chip", tmp_path / "s" / "best-chip.toml", "--include-head", "--text", text
    )
    assert code == 0, err


@pytest.mark.slow
def test_a_search_may_choose_chips(settings, tmp_path):
    options = {"chip.core.lanes": Range(8, 64), "chip.core.leakage_mw": Range(0.1, 1.0), "chip_tokens": 2}
    found = sweep(settings(options, objectives=("chip_pj_per_mac",), method="search", trials=5), tmp_path / "s")
    assert len(found.rows) == 5
    assert all(8 <= row.settings["chip.core.lanes"] <= 64 for row in found.rows)
    failing = {"chip.core.sram_bytes": [10, 131072], "chip_tokens": 2}
    found = sweep(settings(failing, objectives=("chip_pj_per_mac",)), tmp_path / "f")
    assert found.num_failed == 1
    assert "core.sram_bytes = 10 holds no weight" in found.rows[0].error
    assert found.best_chip.row is found.rows[1]


@pytest.mark.slow
def test_a_database_instead_of_the_journal(settings, tmp_path, counted):
    url = f"sqlite:///{tmp_path / 'study.db'}"
    found = sweep(settings(), tmp_path / "s", storage=url)
    assert len(counted) == 4
    assert figures(sweep(settings(), tmp_path / "other machine", storage=url)) == figures(found)
    assert len(counted) == 4
    assert figures(sweep(settings(), tmp_path / "journal")) == figures(found)
    assert not (tmp_path / "s" / JOURNAL).exists()


@pytest.mark.slow
def test_a_full_disk_and_what_is_left_of_a_record(settings, tmp_path, monkeypatch):
    out = tmp_path / "s"
    whole = sweep(settings(), tmp_path / "whole")
    study, bench, identity = study_of(settings(), out)
    study.begin(identity)
    attempt = study.take()
    study.complete(attempt, run_module.measure(bench.run(attempt.values), settings()))

    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(InputError, match=r"study.journal: cannot be written: No space left on device"):
            sweep(settings(), out)
    with (out / JOURNAL).open("ab") as journal:
        journal.write(b'{"op_code": 6, "tri')
    assert figures(sweep(settings(), out)) == figures(whole)
    assert not list(out.glob("*.partial"))
    (out / JOURNAL).write_text("something else\n" * 3)
    with pytest.raises(InputError, match=r"study.journal: cannot be read as a study: JSONDecodeError"):
        sweep(settings(), out)


@pytest.mark.parametrize("result", [{"perplexity": 9.0}, {"perplexity": "9", "spikes": 1.0}, [9.0, 1.0], None])
def test_figures_that_are_not_those_of_the_sweep(settings, tmp_path, result):
    """As in a journal that was changed: told when it is read, whoever reads it."""
    study, _, identity = study_of(settings(), tmp_path / "s")
    study.begin(identity)
    attempt = study.take()
    study._storage.set_trial_user_attr(attempt.trial_id, "result", result)
    study._storage.set_trial_state_values(attempt.trial_id, optuna.trial.TrialState.COMPLETE, [9.0, 1.0])
    with pytest.raises(InputError, match=r"study.journal: cannot be read as a study: ValueError: trial \d+"):
        study.settled()


def test_neurons_by_layer():
    point = {"k.*down_proj": 4.0, "k.*layers.0.*": 2.0, "k": 3.0}
    chosen = settings_of(point)
    names = ("layers.0.mlp.down_proj", "layers.0.mlp.up_proj", "layers.1.mlp.up_proj")
    assert [chosen.neuron_of(name).k for name in names] == [4.0, 2.0, 3.0]
    mixed = settings_of({"neuron.*up_proj": "integrate-and-fire"})
    assert type(mixed.neuron_of(names[1])).__name__ == "IntegrateAndFire"
    assert mixed.neuron_of(names[0]) == AdaptiveThreshold()
    assert settings_of({"skip": "*q_proj *k_proj"}).skip == ("*q_proj", "*k_proj")


def test_front():
    # (2, 3) is beaten by (2, 2), equal points do not beat each other.
    assert pareto_front([(1.0, 3.0), (2.0, 2.0), (2.0, 3.0), (2.0, 2.0), (3.0, 1.0)]) == [True, True, False, True, True]
    assert pareto_front([]) == []
