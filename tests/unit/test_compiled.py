"""Machine code belongs to the sources that it was made from, and without a place to keep it everything still runs."""

import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from spikebrain import compiled, paths
from spikebrain.errors import InputError

ROOT = Path(__file__).parents[2]
KERNEL = """
from ..compiled import compiled

@compiled
def added(x):
    return x + 1
"""
CALLER = """
from numba import types
from ..compiled import cache_folder, compiled, compiled_callback
from ..neuro.kernel import added

@compiled
def twice(x):
    return 2 * added(x)

def through_c(x):
    return added(x)

if __name__ == "__main__":
    import ctypes
    address = compiled_callback(through_c, types.int64(types.int64))
    print(twice(10), ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(address)(10))
    print(sum(twice.stats.cache_hits.values()), cache_folder())
"""


@pytest.fixture
def package(tmp_path):
    """A package with our compiled.py, a kernel, and a module in another folder that compiles the kernel in."""
    folder = tmp_path / "small"
    for name, text in {"neuro/kernel.py": KERNEL, "coding/caller.py": CALLER}.items():
        file = folder / name
        file.parent.mkdir(parents=True)
        file.write_text(text)
        (file.parent / "__init__.py").touch()
    (folder / "__init__.py").touch()
    for name in ("compiled.py", "paths.py", "errors.py"):
        shutil.copy(ROOT / name, folder)
    return folder


def call(package, **environment):
    """Run the caller in a process of its own; return its two results, its cache hits and its cache folder."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("HOME", "SPIKEBRAIN_CACHE", "XDG_CACHE_HOME")}
    run = subprocess.run(
        [sys.executable, "-B", "-m", "small.coding.caller"],  # -B: Python's own cache compares time and size
        capture_output=True,
        text=True,
        check=False,
        cwd=package.parent,
        env=inherited | environment,
    )
    assert run.returncode == 0, run.stderr
    results, rest = run.stdout.splitlines()
    hits, folder = rest.split(maxsplit=1)
    return results, int(hits), folder


@pytest.mark.slow
def test_an_edited_kernel_never_runs_old_machine_code(package, tmp_path):
    cache = {"SPIKEBRAIN_CACHE": str(tmp_path / "cache")}
    assert call(package, **cache)[:2] == ("22 11", 0)
    assert call(package, **cache)[:2] == ("22 11", 1)  # from the cache
    kernel = package / "neuro" / "kernel.py"
    before = kernel.stat()
    kernel.write_text(KERNEL.replace("x + 1", "x + 5"))  # as long as before, and as old
    os.utime(kernel, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert kernel.stat().st_size == before.st_size
    assert call(package, **cache)[:2] == ("30 15", 0)
    assert len(list((tmp_path / "cache" / "numba").iterdir())) == 2
    # The old sources again: their machine code is still there.
    kernel.write_text(KERNEL)
    assert call(package, **cache)[:2] == ("22 11", 1)


@pytest.mark.slow
def test_no_home_and_no_cache_folder_that_can_be_written(package, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "temporary").mkdir()
    temporary = {"TMPDIR": str(tmp_path / "temporary")}
    for variables in ({"SPIKEBRAIN_CACHE": str(tmp_path / "file" / "cache")}, {"HOME": "/dev/null"}):
        results, _, folder = call(package, **variables, **temporary)
        assert results == "22 11"
        assert folder.startswith(str(tmp_path / "temporary"))
    (kept,) = (tmp_path / "temporary").iterdir()
    assert stat.S_IMODE(kept.stat().st_mode) == 0o700


@pytest.mark.slow
def test_nothing_can_be_written(package, tmp_path):
    # `compiled` finds no folder at all: every process compiles for itself.
    text = (package / "compiled.py").read_text()
    (package / "compiled.py").write_text(text + "\n\ndef _parents():\n    return iter([])\n")
    for _ in range(2):
        assert call(package, SPIKEBRAIN_CACHE=str(tmp_path / "cache")) == ("22 11", 0, "None")


@pytest.mark.slow
def test_a_cache_that_breaks_later(package, tmp_path):
    # A folder in the place of every file: none can be read or replaced.
    cache = {"SPIKEBRAIN_CACHE": str(tmp_path / "cache")}
    folder = Path(call(package, **cache)[2])
    for file in list(folder.iterdir()):
        file.unlink()
        file.mkdir()
    assert call(package, **cache)[:2] == ("22 11", 0)


@pytest.mark.slow
def test_without_compiling(package, tmp_path):
    (package / "coding" / "caller.py").write_text(
        "from ..neuro.kernel import added\nprint(added(10))\nprint(0, None)\n"
    )
    assert call(package, SPIKEBRAIN_CACHE=str(tmp_path), NUMBA_DISABLE_JIT="1")[0] == "11"


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="folders have no owner here")
def test_a_temporary_folder_that_others_can_write_is_not_trusted(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("SPIKEBRAIN_CACHE", str(tmp_path / "cache"))
    private = tmp_path / f"spikebrain-numba-{os.getuid()}"
    assert list(compiled._parents()) == [tmp_path / "cache" / "numba", private]
    private.chmod(0o777)
    assert list(compiled._parents()) == [tmp_path / "cache" / "numba"]
    private.rmdir()
    private.symlink_to(tmp_path)
    assert list(compiled._parents()) == [tmp_path / "cache" / "numba"]


def test_folders_that_may_not_be_looked_into(monkeypatch, tmp_path):
    """A home of another user, and no folder for temporary files: nothing is cached, and nothing fails."""
    monkeypatch.setenv("SPIKEBRAIN_CACHE", str(tmp_path / "root"))
    looked, is_dir = [], Path.is_dir

    def may_not(path):
        if tmp_path in path.parents:
            looked.append(path)
            raise PermissionError(13, "Permission denied", str(path))
        return is_dir(path)

    def no_folder():
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(Path, "is_dir", may_not)
    monkeypatch.setattr(tempfile, "gettempdir", no_folder)
    assert compiled.cache_folder.__wrapped__() is None
    assert len(looked) == 1


@pytest.mark.slow
def test_importing_leaves_matplotlib_for_the_first_plot():
    """It makes a folder when it is imported, or fails where it may make none."""
    script = "import sys, spikebrain, spikebrain.cli; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
    script = "import sys, spikebrain; spikebrain.plot_raster; sys.exit('matplotlib' not in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_machine_code_unused_for_a_month_goes(tmp_path):
    for name, days in (("old", 31), ("recent", 29)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "kernel.nbc").touch()
        last_used = time.time() - days * 24 * 3600
        os.utime(tmp_path / name, (last_used, last_used))
    compiled.remove_unused(tmp_path)
    assert [folder.name for folder in tmp_path.iterdir()] == ["recent"]


def test_the_digest_covers_every_compiled_function():
    # A module with compiled functions outside of SOURCES could change without a new digest.
    # Only rooms of the package: a clone that was installed from holds copies of all in build/ and in its environment.
    rooms = {room.parent.name for room in ROOT.glob("*/__init__.py")} - {"tests"}
    holders = {room for room in rooms if any("@compiled" in file.read_text() for file in (ROOT / room).rglob("*.py"))}
    assert {"neuro", "coding"} <= holders <= set(compiled.SOURCES)
    modules = [path for room in compiled.SOURCES for path in (ROOT / room).rglob("*.py")]
    assert not [path for path in modules if "njit" in path.read_text()]
    assert compiled.source_digest(ROOT / "docs" / "nothing") is None


def test_no_home_is_an_input_error(monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("SPIKEBRAIN_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(paths.Path, "home", no_home)
    with pytest.raises(InputError, match="Set SPIKEBRAIN_CACHE"):
        paths.cache_dir()
    assert [parent.name.split("-")[0] for parent in compiled._parents()] == ["spikebrain"]
