"""The pages of docs/: their code runs and prints what stands under it, and what they name is there.

Code that needs SmolLM2 follows a line `<!-- needs the model -->`.
"""

import contextlib
import doctest
import io
import re
import shlex
from pathlib import Path

import pytest
import typer

import spikebrain
from spikebrain.backends import BACKENDS
from spikebrain.chip import MAPPINGS, ORDERS
from spikebrain.cli.app import app
from spikebrain.coding import ENCODERS
from spikebrain.energy import ENERGY_MODELS
from spikebrain.errors import CheckpointError
from spikebrain.models import architectures
from spikebrain.models.io import smollm2
from spikebrain.neuro import NEURONS

pytest.importorskip("sybil", reason="pip install 'spikebrain[test]'")
from sybil.document import Document
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.myst import CodeBlockParser

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
MODEL = "<!-- needs the model -->"
# Packages of extras, by the page whose code needs them.
NEEDS = {"exchange": ("pandas", "pyarrow", "perfetto"), "extending": ("hypothesis",)}


class Page:
    """The code of a page. A block goes on from those before it, and what it prints stands under it."""

    def __init__(self, path, with_model):
        parsers = CodeBlockParser("python", self._execute), CodeBlockParser("output", self._compare)
        self.document = Document.parse(str(path), *parsers)
        self.document.namespace["__name__"] = "__main__"
        self.with_model, self.left_out, self.printed = with_model, False, ""
        self.python = PythonEvaluator()

    def run(self):
        for example in self.document:
            example.evaluate()
        assert not self.printed, f"no block shows what the last code printed:\n{self.printed}"

    def _execute(self, example):
        self.left_out = not self.with_model and self.document.text[: example.start].rstrip().endswith(MODEL)
        if self.left_out:
            return None
        if self.printed:
            return f"no block shows what the code before printed:\n{self.printed}"
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            self.python(example)
        self.printed = printed.getvalue()
        return None

    def _compare(self, example):
        if self.left_out:
            return None
        found, self.printed = self.printed, ""
        options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
        if doctest.OutputChecker().check_output(example.parsed, found, options):
            return None
        return f"expected:\n{example.parsed}\nprinted:\n{found}"


def pages_with_code():
    for path in PAGES:
        text = path.read_text()
        if "```python\n" in text:
            yield pytest.param(path, False, marks=pytest.mark.slow, id=path.stem)
        if MODEL in text:
            yield pytest.param(path, True, marks=[pytest.mark.slow, pytest.mark.model], id=f"{path.stem}-model")


@pytest.fixture
def own_folder(tmp_path, monkeypatch):
    """Pages write into a folder of their own, and register plug-ins for themselves."""
    monkeypatch.chdir(tmp_path)
    for registry in (NEURONS, ENCODERS, BACKENDS, MAPPINGS, ORDERS, ENERGY_MODELS):
        monkeypatch.setattr(registry, "_classes", dict(registry._classes))
    monkeypatch.setattr(architectures, "ARCHITECTURES", architectures.ARCHITECTURES)


@pytest.mark.usefixtures("own_folder", "as_users")
@pytest.mark.parametrize(("path", "with_model"), pages_with_code())
def test_code_runs_and_prints_what_stands_under_it(path, with_model):
    for package in NEEDS.get(path.stem, ()):
        pytest.importorskip(package, reason="pip install 'spikebrain[test]'")
    if with_model:
        try:
            smollm2.download()
        except CheckpointError as error:
            pytest.skip(f"the default model is neither in the cache nor to be had: {error}")
    Page(path, with_model).run()


def test_a_page_that_prints_something_else_is_found(tmp_path):
    path = tmp_path / "page.md"
    code = "```python\nprint(1 + 1)\n```\n"
    for after, said in (("\n```output\n3\n```\n", "printed:\n2"), ("", "no block shows")):
        path.write_text(code + after)
        with pytest.raises(AssertionError, match=said):
            Page(path, False).run()


def commands_of(path):
    """Yield the words of every `spikebrain` command in the shell blocks of a page."""
    for block in re.findall(r"^```bash\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("spikebrain "):
                yield shlex.split(line, comments=True)[1:]


def test_commands_and_options_exist():
    known = typer.main.get_command(app).commands
    found = [(path.name, words) for path in PAGES for words in commands_of(path)]
    assert len(found) > 10
    for page, (name, *words) in found:
        assert name in known, f"{page}: {name}"
        options = {text for parameter in known[name].params for text in (*parameter.opts, *parameter.secondary_opts)}
        assert {word for word in words if word.startswith("-")} <= options, f"{page}: spikebrain {name}"


def test_pictures_and_pages_that_are_linked_exist():
    for path in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text()):
            assert (path.parent / target).exists(), f"{path.name}: {target}"


def test_every_picture_is_drawn_by_a_script_that_stays_here():
    drawn = set(re.findall(r'FOLDER / "(\w+\.png)"', (ROOT / "docs" / "figures" / "make.py").read_text()))
    shown = {name for path in PAGES for name in re.findall(r"figures/(\w+\.png)", path.read_text())}
    assert drawn <= shown
    assert shown == {path.name for path in (ROOT / "docs" / "figures").glob("*.png")}


@pytest.mark.parametrize("room", spikebrain._ROOMS)
def test_every_room_has_a_page_of_reference(room):
    assert f"automodule:: spikebrain.{room}\n" in (ROOT / "docs" / "api" / f"{room}.md").read_text()
    assert f"\n{room}\n" in (ROOT / "docs" / "api" / "index.md").read_text()
