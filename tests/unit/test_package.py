"""What keeps the package whole: examples in docstrings, exports, registration, folders that look only to their left."""

import ast
import doctest
import importlib
import importlib.metadata
import importlib.util
import inspect
import pkgutil
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import spikebrain
from spikebrain.backends import BACKENDS, Backend
from spikebrain.coding import ENCODERS, Encoder
from spikebrain.neuro import NEURONS, Neuron
from spikebrain.version import current

ROOT = Path(__file__).parents[2]
# Modules that need a package which a machine may lack; nothing imports them before it is needed.
OPTIONAL = {
    "spikebrain.neuro.threshold_triton": "triton",
    "spikebrain.coding.kernels.active_triton": "triton",
    "spikebrain.coding.kernels.packing_triton": "triton",
    "spikebrain.backends.gpu.add": "triton",
    "spikebrain.backends.gpu.list": "triton",
    "spikebrain.backends.gpu.spike": "triton",
    "spikebrain.backends.gpu.count": "triton",
}
FLOW = ["neuro", "coding", "chip", "backends", "models", "energy", "simulation", "analysis", "jobs", "cli"]
UNDER_ALL = ["errors", "fingerprint", "registry", "paths", "files", "compiled", "interrupt", "version"]
MODEL_ROOMS = ["layers", "spikingbrain", "decoding", "conversion", "training", "recording", "io"]
WALKED = (*FLOW, "registry", "files", "fingerprint")
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(spikebrain.__path__, "spikebrain.")
    if module.name.split(".")[1] in WALKED
    and not module.name.endswith(".__main__")  # to import it is to run it
    and (module.name not in OPTIONAL or importlib.util.find_spec(OPTIONAL[module.name]) is not None)
)


def test_modules_were_found():
    assert len(MODULES) > 30


@pytest.mark.parametrize("name", MODULES)
def test_doctests(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0


def test_there_are_doctests():
    finder = doctest.DocTestFinder()
    examples = [e for name in MODULES for t in finder.find(importlib.import_module(name)) for e in t.examples]
    assert len(examples) >= 15


@pytest.mark.parametrize(
    ("package", "registry", "contract"),
    [("neuro", NEURONS, Neuron), ("coding", ENCODERS, Encoder), ("backends", BACKENDS, Backend)],
)
def test_every_plug_in_is_registered_and_exported(package, registry, contract):
    exported = importlib.import_module(f"spikebrain.{package}").__all__
    defined = {
        value
        for name in MODULES
        if name.startswith(f"spikebrain.{package}.")
        for value in vars(importlib.import_module(name)).values()
        if inspect.isclass(value)
        and issubclass(value, contract)
        and not value.__name__.startswith("Unsigned")
        and not inspect.isabstract(value)
    }
    assert defined == {registry.get(name) for name in registry}
    assert {cls.__name__ for cls in defined} <= set(exported)


@pytest.mark.parametrize("package", ["", *FLOW, *(f"models.{room}" for room in MODEL_ROOMS)])
def test_exports(package):
    module = importlib.import_module(f"spikebrain.{package}".rstrip("."))
    assert [name for name in module.__all__ if not hasattr(module, name)] == []


def imports_of(file):
    """Yield line and path within the package, such as ["models", "io", "load"], of all it imports from there."""
    package = file.relative_to(ROOT).parts[:-1]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            module = node.module.split(".") if node.module else []
            if node.level:
                module = [*package[: len(package) + 1 - node.level], *module]
            elif module[:1] == ["spikebrain"]:
                module = module[1:]
            else:
                continue
            for name in node.names:
                yield node.lineno, [*module, name.name]


@pytest.mark.parametrize("package", FLOW)
def test_a_folder_imports_only_from_its_left(package):
    allowed = {*FLOW[: FLOW.index(package)], *UNDER_ALL, package}
    for file in (ROOT / package).rglob("*.py"):
        for line, path in imports_of(file):
            assert path[0] in allowed, f"{file}:{line}"


@pytest.mark.parametrize("room", MODEL_ROOMS)
def test_a_room_of_models_imports_only_from_its_left(room):
    allowed = {*MODEL_ROOMS[: MODEL_ROOMS.index(room)], "architectures", room}
    for file in (ROOT / "models" / room).rglob("*.py"):
        for line, path in imports_of(file):
            assert path[0] != "models" or path[1] in allowed, f"{file}:{line}"


def test_what_is_under_all_rooms_imports_no_room():
    files = [file for file in ROOT.glob("*.py") if file.name != "__init__.py"]
    assert {file.stem for file in files} <= set(UNDER_ALL)
    for file in files:
        for line, path in imports_of(file):
            assert path[0] in UNDER_ALL, f"{file}:{line}"


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_version_comes_from_pyproject():
    assert spikebrain.__version__ == current() == PROJECT["version"]
    cited = re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert cited is not None
    assert cited[1] == PROJECT["version"]
    changed = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert changed is not None
    assert changed[1] == PROJECT["version"]


def test_the_version_of_an_installed_package(monkeypatch, tmp_path):
    monkeypatch.setattr(spikebrain.version, "__file__", str(tmp_path / "version.py"))
    monkeypatch.setattr(importlib.metadata, "version", lambda name: f"{name} 1.2.3")
    assert current() == "spikebrain 1.2.3"


def test_the_minimum_versions_are_those_of_pyproject():
    """`make minimum` tests what pyproject promises."""
    lines = [line.split("#")[0].strip() for line in (ROOT / "tests" / "minimum.txt").read_text().splitlines()]
    tested = dict(line.split("==") for line in lines if line)
    promised = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["test"]]
    bounds = dict(re.fullmatch(r"([\w-]+)(?:\[\w+\])?>=([\d.]+)", text).groups() for text in promised)
    assert {name: bounds.get(name) for name in tested} == tested
    assert {re.split("[>=]", text)[0] for text in PROJECT["dependencies"]} <= set(tested)


def test_every_package_and_data_file_is_listed():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = {
        ".".join(("spikebrain", *path.parent.relative_to(ROOT).parts))
        for room in FLOW
        for path in (ROOT / room).rglob("__init__.py")
    }
    assert {"spikebrain", *found} == set(settings["packages"])


@pytest.mark.slow
def test_importing_the_package_imports_no_triton():
    code = "import sys; import spikebrain; print('spikebrain.coding.kernels.packing_triton' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stdout == "False\n", run.stderr
