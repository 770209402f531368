"""Kernels for many tokens on an NVIDIA GPU; the plain forms stand in the files that call them.

They keep no gradients, so training takes the plain forms, but for the loss on logits and rotary embedding, whose
gradients are known.
"""

from __future__ import annotations

import functools
import importlib
from types import ModuleType

import torch
from torch import Tensor

from ....backends import Triton
from ....coding.kernels import interpreting

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def kernels_for(name: str, *tensors: Tensor) -> ModuleType | None:
    """Return the module of kernels with that name, or None where the plain form has to do it.

    That is where the backend `Triton` is unavailable, where gradients are recorded, for float64, and while PyTorch
    compiles. With TRITON_INTERPRET=1, Triton's interpreter runs the kernels on a CPU, to test them.

    Args:
        name: "attention", "divergence", "gla", "heads", "norm" or "one_token".
        tensors: the activations.
    """
    x = tensors[0]
    if x.device.type == "cpu" and not interpreting():
        return None
    if torch.is_grad_enabled() and any(one.requires_grad for one in tensors):
        return None
    if any(one.dtype not in _DTYPES or one.device != x.device for one in tensors) or x.numel() == 0:
        return None
    return None if torch.compiler.is_compiling() else _module(name, x.device)


@functools.cache
def _module(name: str, device: torch.device) -> ModuleType | None:
    if Triton().why_unavailable(device) is not None:
        return None
    return importlib.import_module(f".{name}_triton", __package__)
