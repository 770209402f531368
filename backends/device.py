"""Which device a model runs on."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from ..errors import InputError
from .base import Backend


def device_of(name: str, backends: Iterable[Backend | str] = ()) -> str:
    """Return "cpu" or "cuda".

    Args:
        name: "cpu"; "cuda"; or "auto" for a GPU if there is one and all backends can run on it.
        backends: those that compute the integer sums, each a backend or "auto".
    Raises:
        InputError: another name, or there is no GPU.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise InputError(f"device: expected auto, cpu or cuda, got {name!r}.")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("device cuda: there is no GPU that PyTorch can use. Use cpu or auto.")
    if name != "auto":
        return name
    gpu = torch.device("cuda")
    fits = all(isinstance(backend, str) or backend.why_unavailable(gpu) is None for backend in backends)
    return "cuda" if torch.cuda.is_available() and fits else "cpu"
