"""What keeps the package whole: examples in docstrings, exports, registration, folders that look only to their left."""

import ast
import doctest
import importlib
import importlib.metadata
import importlib.util
import inspect
import json
import pkgutil
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

import spikebrain
from spikebrain import lazy
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
    "spikebrain.jobs.eval_scoring": "lm_eval",
}
FLOW = ["neuro", "coding", "chip", "backends", "models", "energy", "simulation", "analysis", "exchange"]
FLOW += ["pages", "jobs", "cli", "testing"]
UNDER_ALL = [
    "errors",
    "fingerprint",
    "plugins",
    "registry",
    "paths",
    "files",
    "compiled",
    "interrupt",
    "lazy",
    "module_check",
    "results",
    "text_table",
    "version",
]
UNDER_ALL += ["hugging_face"]
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
    extras = PROJECT["optional-dependencies"]
    [own] = [text for text in extras["test"] if text.startswith("spikebrain[")]
    of_extras = [text for name in own[len("spikebrain[") : -1].split(",") for text in extras[name]]
    promised = [*PROJECT["dependencies"], *of_extras, *(text for text in extras["test"] if text != own)]
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


def names_by_module(tree):
    """Return the names that a package imports only for type checkers, by module."""
    block = next(n for n in tree.body if isinstance(n, ast.If) and getattr(n.test, "id", "") == "TYPE_CHECKING")
    found = [(node.module or "", {name.name for name in node.names}) for node in block.body]  # pyright: ignore
    return {module: set().union(*(names for m, names in found if m == module)) for module, _ in found}


@pytest.mark.parametrize(("package", "homes"), [("spikebrain", "_HOMES"), ("spikebrain.analysis", "_PLOTS")])
def test_what_is_imported_when_asked_for_is_what_type_checkers_see(package, homes):
    module = importlib.import_module(package)
    seen = names_by_module(ast.parse(Path(module.__file__).read_text()))
    assert seen.pop("", set()) == set(getattr(module, "_ROOMS", ()))
    homes = getattr(module, homes)
    assert seen == {name: set(names) for name, names in homes.items()}
    assert set().union(*seen.values()) <= set(module.__all__) <= set(dir(module))
    for home, names in homes.items():
        for name in names:
            assert getattr(module, name) is getattr(importlib.import_module(f"{package}.{home}"), name)
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'nothing'"):
        _ = module.nothing


def test_the_rooms_are_attributes_of_the_package():
    assert set(spikebrain._ROOMS) == {*FLOW} - {"cli"}
    assert all(getattr(spikebrain, room).__name__ == f"spikebrain.{room}" for room in spikebrain._ROOMS)
    assert {*spikebrain._ROOMS, "errors", "load"} <= set(dir(spikebrain))


def test_how_to_install_an_extra(tmp_path, monkeypatch):
    """The line that README.md says, in its folder; elsewhere one that works there."""
    root = Path(__file__).resolve().parents[2]  # from which it was installed, or where it runs
    monkeypatch.chdir(root)
    assert lazy.install_command("test") == "pip install '.[test]'"
    assert lazy.install_command("test") in (root / "README.md").read_text()
    monkeypatch.chdir(tmp_path)
    assert lazy.install_command("eval") == f"pip install '{root}[eval]'"
    wheel = tmp_path / "my wheel.whl"
    wheel.touch()
    gone = (tmp_path / "gone.whl").as_uri()
    vcs = {"url": "https://x.org/y.git", "vcs_info": {"vcs": "git"}}
    monkeypatch.setattr(lazy, "__file__", str(tmp_path / "lazy.py"))  # as if installed
    for told, expected in [
        ({"url": wheel.as_uri(), "archive_info": {}}, f"pip install '{wheel}[eval]'"),
        ({"url": gone, "archive_info": {}}, "pip install 'spikebrain[eval]'"),
        (vcs, "pip install 'spikebrain[eval] @ git+https://x.org/y.git'"),
        (None, "pip install 'spikebrain[eval]'"),
    ]:
        text = None if told is None else json.dumps(told)
        monkeypatch.setattr(metadata, "distribution", lambda name, text=text: SimpleNamespace(read_text=lambda _: text))
        assert lazy.install_command("eval") == expected


HEAVY = ["torch", "transformers", "numba", "scipy", "numpy", "matplotlib", "gguf", "safetensors", "jinja2", "altair"]


@pytest.mark.slow
@pytest.mark.parametrize("typed", ["", "--version", "--help", "report --help", "report --k many", "no-such-command"])
def test_help_imports_nothing_that_takes_seconds(typed):
    code = (
        "import atexit, sys\n"
        f"atexit.register(lambda: print('HEAVY', [name for name in {HEAVY} if name in sys.modules]))\n"
        f"sys.argv = ['spikebrain', *{typed.split()}]\nfrom spikebrain.cli import main\nmain()"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stdout.endswith("HEAVY []\n"), run.stdout + run.stderr
    assert run.returncode == (0 if typed.endswith(("--version", "--help")) else 2)
    if typed == "--version":
        assert run.stdout.startswith(f"spikebrain {spikebrain.__version__}\n")


@pytest.mark.slow
def test_every_room_can_be_imported_first_and_imports_no_triton():
    """Which modules were imported before must not matter; triton is imported when a kernel is needed."""
    rooms = [*FLOW, *(f"models.{room}" for room in MODEL_ROOMS)]
    code = (
        "import importlib, sys\n"
        f"for name in {[f'spikebrain.{room}' for room in rooms]}:\n"
        "    for old in [m for m in sys.modules if m.partition('.')[0] == 'spikebrain']:\n"
        "        del sys.modules[old]\n"
        "    importlib.import_module(name)\n"
        f"    assert not set(sys.modules) & set({list(OPTIONAL)}), name\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
