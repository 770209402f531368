"""docs/numbers.md has a row for every figure in the files of commands, and each row names a function that exists."""

import importlib
import json
import re
from functools import reduce
from pathlib import Path

import pytest

from spikebrain import jobs
from spikebrain.analysis import DEFINITIONS, MixtureStatistics
from spikebrain.jobs.sweep import OBJECTIVES
from spikebrain.pages import FORMAT

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "numbers.md").read_text()


def rows_of(section):
    """Return the keys, meaning and place of each row of a section."""
    text = PAGE.split(f"\n## {section}\n")[1].split("\n## ")[0]
    for line in text.splitlines():
        if line.startswith("| `"):
            keys, meaning, found_by, place = (cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1])
            yield re.findall(r"`([^`]+)`", keys), meaning.replace("\\|", "|"), found_by, place


SECTIONS = re.findall(r"^## (.*)$", PAGE, re.MULTILINE)
ROWS = [(section, *row) for section in SECTIONS for row in rows_of(section)]


def test_each_place_names_a_function_of_that_file():
    means = re.findall(r"^\| (\w+) \| ", PAGE.split("\n## ")[0], re.MULTILINE)
    for _, keys, _, found_by, place in ROWS:
        assert found_by in means, keys
        found = re.findall(r"`([\w.]+)` in `([\w/]+)\.py`", place)
        assert found, keys
        for function, path in found:
            module = importlib.import_module("spikebrain." + path.replace("/", "."))
            first, *inner = function.split(".")
            home = getattr(module, first)
            assert getattr(home, "__module__", module.__name__) == module.__name__, f"{first} is not of {path}.py"
            assert reduce(getattr, inner, home) is not None


def test_statistics_have_the_words_of_the_package():
    for key, definition in DEFINITIONS.items():
        (meaning,) = (m for s, keys, m, *_ in ROWS if s == "report.json" and f"spikes.{key}" in keys)
        assert meaning.startswith(definition)


def keys_of(value, path=""):
    """Yield the paths of all values of a JSON file: names joined by dots, [] for each entry of a list of objects."""
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from keys_of(inner, f"{path}.{name}" if path else name)
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for inner in value:
            yield from keys_of(inner, f"{path}[]")
    else:
        yield path


def matches(pattern, key):
    return re.fullmatch(re.escape(pattern).replace(r"\*", ".*"), key) is not None


def check(section, content):
    patterns = [pattern for s, keys, *_ in ROWS if s == section for pattern in keys]
    found = set(keys_of(content))
    assert sorted(key for key in found if not any(matches(p, key) for p in patterns)) == []
    assert [p for p in patterns if not any(matches(p, key) for key in found)] == []


@pytest.mark.slow
def test_every_key_has_a_row_and_every_row_a_key(model_folder, text, tmp_path):
    pytest.importorskip("perfetto", reason="pip install 'spikebrain[test]'")
    of = {"model": str(model_folder), "text": text}
    jobs.report(jobs.ReportSettings(**of, num_tokens=128, context=64), tmp_path / "report")
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    check("energy.json", report.pop("energy"))
    mixture = dict.fromkeys(MixtureStatistics.__dataclass_fields__)  # of models with experts alone
    calibration = {"budget": {"counts": "read"}}  # of calibrated models alone
    check("report.json", report | {"mixture": mixture, "calibration": calibration})

    jobs.energy(jobs.EnergySettings(str(tmp_path / "report")), tmp_path / "energy")
    energy = json.loads((tmp_path / "energy" / "energy.json").read_text())
    assert (energy.pop("kind"), energy.pop("format")) == ("energy", FORMAT)
    check("energy.json", energy)

    layer = report["layers"][0]["name"]
    jobs.simulate(jobs.SimulateSettings(**of, num_tokens=4, critical_path=True, timeline=layer), tmp_path / "chip")
    check("simulation.json", json.loads((tmp_path / "chip" / "simulation.json").read_text()))

    settings = jobs.EvalSettings(str(model_folder), text=(text,), num_tokens=128, context=64, layer_tokens=32)
    jobs.evaluate(settings, tmp_path / "eval")
    check("eval.json", json.loads((tmp_path / "eval" / "eval.json").read_text()))

    calibration = jobs.CalibrateSettings(str(model_folder), jobs.Budget("read", 0.8), text, 512, weights="int4")
    jobs.calibrate(calibration, tmp_path / "calibrated")
    check("calibration.json", json.loads((tmp_path / "calibrated" / "calibration.json").read_text()))


def test_every_objective_of_a_sweep_has_a_row():
    assert [key for s, keys, *_ in ROWS if s == "Objectives of a sweep" for key in keys] == list(OBJECTIVES)
