"""Where a model runs if nobody says."""

import pytest
import torch

from spikebrain.backends import Cpu, Triton, device_of
from spikebrain.errors import InputError


@pytest.mark.parametrize(
    ("backends", "found"),
    [
        ((), "cuda"),
        (("auto",), "cuda"),
        ((Triton(),), "cuda"),
        ((Cpu(),), "cpu"),
        (("auto", Cpu()), "cpu"),
    ],
)
def test_auto_takes_a_gpu_that_serves_all_backends(monkeypatch, backends, found):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(Triton, "why_unavailable", lambda self, device: None)
    assert device_of("auto", backends) == found
    assert device_of("cuda", backends) == "cuda"
    assert device_of("cpu", backends) == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_of("auto", backends) == "cpu"


def test_devices_that_there_are_not(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="expected auto, cpu or cuda, got 'gpu'"):
        device_of("gpu")
    with pytest.raises(InputError, match="there is no GPU"):
        device_of("cuda")
