"""`spikebrain doctor`: on this machine, and where things are missing."""

import importlib.util
import json
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from spikebrain.backends import BACKENDS
from spikebrain.cli.app import app
from spikebrain.jobs import doctor
from spikebrain.lazy import install_command
from spikebrain.version import __version__

X86 = "processor\t: 0\nmodel name\t: Some CPU: 3 GHz\nflags\t\t: fpu avx2 avx512f avx_vnni\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd asimddp\n"


def screen(*options):
    result = CliRunner().invoke(app, ["doctor", *options], env={"COLUMNS": "120"})
    assert result.exit_code == 0, result.output
    return result.output


def test_json_and_screen_agree():
    found = json.loads(screen("--json"))
    assert found == json.loads(json.dumps(doctor.examine()))
    assert found["versions"]["spikebrain"] == __version__  # of the code that runs, whatever is installed
    assert found["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert set(found["devices"]["cpu"]["backends"]) == set(BACKENDS)
    assert found["devices"]["cpu"]["backends"]["reference"] is None
    said = screen()
    assert said.startswith("python ")  # doctor | head -1 shows something
    assert len(said.splitlines()) <= 40
    for name in BACKENDS:
        assert name in said


def test_instruction_sets():
    found = doctor.examine_cpu(X86)
    assert found["model"] == "Some CPU: 3 GHz"
    assert [name for name, there in found["instructions"].items() if there] == ["AVX2", "AVX-512", "VNNI"]
    assert doctor.examine_cpu(ARM)["instructions"]["NEON dot product"]
    assert doctor.examine_cpu("")["instructions"] is None


def _no_triton():
    return "Triton is not installed. On Linux it comes with PyTorch: pip install triton."


def test_without_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = doctor.examine()
    assert found["gpus"] == []
    assert found["devices"]["cpu"]["backends"]["triton"] in ("PyTorch finds no NVIDIA GPU.", _no_triton())
    assert list(found["devices"]) == ["cpu"]
    assert "No GPU" in " ".join(found["advice"])
    assert "No GPU" in " ".join(screen().split())


def test_with_a_gpu_and_without_triton(monkeypatch):
    properties = SimpleNamespace(name="Some GPU", major=9, minor=0, total_memory=80 * 2**30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(doctor.importlib.metadata, "version", without(doctor.importlib.metadata.version, "triton"))
    found_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "triton" else found_spec(name))
    found = doctor.examine()
    assert found["gpus"] == [{"name": "Some GPU", "compute_capability": "9.0", "memory_bytes": 80 * 2**30}]
    assert found["versions"]["triton"] is None
    assert "triton" in found["devices"]["cuda:0"]["packing_without_kernels"]
    assert "on a CPU only" in found["devices"]["cuda:0"]["backends"]["cpu"]
    said = " ".join(screen().split())
    for part in ("triton not installed", "Some GPU", "80 GiB", "pip install triton", "on a CPU only"):
        assert part in said


def without(version, missing):
    def found(package):
        if package == missing:
            raise doctor.importlib.metadata.PackageNotFoundError(package)
        return version(package)

    return found


def test_slow_picks_are_said(monkeypatch):
    monkeypatch.setattr(doctor.backends, "auto", lambda device, num_tokens, num_weights: BACKENDS.create("reference"))
    assert "cpu: auto takes the slow reference backend" in " ".join(doctor.examine()["advice"])


def test_model_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("SPIKEBRAIN_CACHE", str(tmp_path))
    found = doctor.examine()
    assert found["model_cache"]["present"] is False
    assert "not in the cache" in " ".join(found["advice"])
    assert "not fetched yet" in screen()


def test_no_folder_for_a_cache(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SPIKEBRAIN_CACHE", str(tmp_path / "file" / "below"))
    assert "below cannot be used: Not a directory. Set SPIKEBRAIN_CACHE" in " ".join(doctor.examine()["advice"])

    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("spikebrain.paths.Path.home", no_home)
    monkeypatch.delenv("SPIKEBRAIN_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert "cache folder: expected a home folder, found none." in " ".join(doctor.examine()["advice"])
    assert "no folder" in screen()


@pytest.mark.parametrize("requirements", [None, ["torch>=2", 'nothing-of-this-name>=1; extra == "snn"']])
def test_extras(monkeypatch, requirements):
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda name: requirements)
    expected = {"snn": {"nothing-of-this-name": None}} if requirements else {}
    assert doctor.examine()["extras"] == expected
    assert (install_command("snn") in screen()) == bool(requirements)
