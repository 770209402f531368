"""How launch settings are chosen and kept; the timing itself needs a GPU (tests/reference/test_triton.py)."""

import pytest
import torch

from spikebrain.backends.gpu import tuning

DEVICE = torch.device("cuda")


@pytest.fixture(autouse=True)
def _gpu(monkeypatch, tmp_path):
    monkeypatch.setenv("SPIKEBRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tuning, "_known", {})
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "some GPU")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(tuning, "_seconds", lambda run, settings: run(settings))


def test_the_fastest_is_taken_and_kept(monkeypatch, tmp_path):
    assert tuning.fastest("shape", [3, 1, 2], float, DEVICE) == 1
    assert tuning.fastest("another shape", [3, 1, 2], lambda n: -n, DEVICE) == 3
    monkeypatch.setattr(tuning, "_known", {})  # another process
    assert tuning.fastest("shape", [3, 1, 2], pytest.fail, DEVICE) == 1
    # Other candidates are another choice.
    assert tuning.fastest("shape", [3, 1, 0], float, DEVICE) == 0
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["tuning.json"]


def test_nothing_is_timed_while_a_graph_is_captured(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert tuning.fastest("shape", [3, 1, 2], pytest.fail, DEVICE) == 3
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert tuning.fastest("shape", [3, 1, 2], float, DEVICE) == 1  # and that was no choice to keep


def test_a_cache_that_cannot_be_used(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("SPIKEBRAIN_CACHE", str(tmp_path / "file"))
    assert tuning.fastest("shape", [3, 1, 2], float, DEVICE) == 1
    assert tuning.fastest("shape", [3, 1, 2], pytest.fail, DEVICE) == 1
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "tuning.json").write_text("{")
    monkeypatch.setenv("SPIKEBRAIN_CACHE", str(tmp_path / "broken"))
    assert tuning.fastest("other", [3, 1, 2], float, DEVICE) == 1


def test_one_candidate_needs_no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", pytest.fail)
    assert tuning.fastest("shape", [3], pytest.fail, DEVICE) == 3
