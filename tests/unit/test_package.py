"""What keeps the package whole: examples in docstrings, exports, registration, folders that look only to their left."""

import ast
import doctest
import importlib
import importlib.util
import inspect
import pkgutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import spikebrain
from spikebrain.backends import BACKENDS, Backend
from spikebrain.coding import ENCODERS, Encoder
from spikebrain.errors import InputError
from spikebrain.neuro import NEURONS, Neuron
from spikebrain.registry import Registry

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
MODEL_ROOMS = ["layers", "spikingbrain", "conversion", "training", "recording", "io"]
WALKED = (*FLOW, "registry")
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(spikebrain.__path__, "spikebrain.")
    if module.name.split(".")[1] in WALKED
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


@pytest.mark.parametrize("package", FLOW)
def test_a_folder_imports_only_from_its_left(package):
    allowed = {*FLOW[: FLOW.index(package)], "errors", "registry", "paths", "files", "compiled", package}
    for file in (ROOT / package).rglob("*.py"):
        to_the_root = len(file.relative_to(ROOT).parts)
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level == to_the_root:
                names = [node.module.split(".")[0]] if node.module else [alias.name for alias in node.names]
                assert set(names) <= allowed, f"{file}:{node.lineno}"


def test_version_is_said_once():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == spikebrain.__version__
    assert f"version: {project['version']}" in (ROOT / "CITATION.cff").read_text()


def test_registry(as_users):
    registry = Registry("thing")

    @registry.register("one")
    class One:
        pass

    assert list(registry) == ["one"]
    assert isinstance(registry.create("one"), One)
    assert registry.name_of(One()) == "one"
    assert registry.name_of(object()) is None
    with pytest.raises(InputError, match="thing: expected one of one; got 'two'"):
        registry.create("two")
    with pytest.raises(InputError, match="already taken by"):
        registry.register("one")(type("Two", (), {}))


def test_importing_the_package_imports_no_triton():
    code = "import sys; import spikebrain; print('spikebrain.coding.kernels.packing_triton' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stdout == "False\n", run.stderr
