"""Which compiled kernels pack trains and list active channels on which device."""

from __future__ import annotations

import importlib
import importlib.util
import os
from types import ModuleType

import torch


def kernels_for(device: torch.device) -> ModuleType | None:
    """Return the kernels that pack trains of that device, or None where plain PyTorch has to do it.

    `packing_numba` and `packing_triton` have the same functions. Triton is imported only here, for a CUDA GPU or where
    TRITON_INTERPRET=1 asks for its interpreter, which runs the kernels on a CPU to test them.
    """
    return _kernels("packing", device)


def active_kernels_for(device: torch.device) -> ModuleType | None:
    """Return the kernels that list the active channels of packed trains, or None; see `kernels_for`."""
    return _kernels("active", device)


def _kernels(job: str, device: torch.device) -> ModuleType | None:
    if why_plain(device) is not None:
        return None
    on_cpu = device.type == "cpu" and not interpreting()
    return importlib.import_module(f".{job}_{'numba' if on_cpu else 'triton'}", __package__)


def why_plain(device: torch.device) -> str | None:
    """Return why trains are packed by plain PyTorch on that device, more slowly, or None if kernels do it."""
    if device.type not in ("cpu", "cuda"):
        return f"there are kernels for CPUs and CUDA GPUs only, not for {device.type}."
    if (device.type == "cuda" or interpreting()) and importlib.util.find_spec("triton") is None:
        return "triton is not installed. Install it with: pip install triton"
    return None


def interpreting() -> bool:
    """Return whether Triton's interpreter runs the kernels, on a CPU, to test them."""
    return os.environ.get("TRITON_INTERPRET") == "1"
