"""Refuse to run where PyTorch records or transforms operators: the kernels of a spiking layer are none.

A recording would hold memory that no kernel filled, and a transform would lose what the kernels compute.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from ...errors import InputError

_is_exported, _is_traced = torch.compiler.is_exporting, torch._C._is_tracing
_num_modes, _transform = torch._C._len_torch_dispatch_stack, torch._C._functorch.peek_interpreter_stack  # pyright: ignore
_DENSE = "spikebrain.to_dense(model) has the same INT8 weights in plain nn.Linear layers and can be used instead."


def refuse_transforms(x: Any) -> None:
    """Raise an InputError if x is no ordinary tensor, or if PyTorch records or transforms what runs now."""
    # Plain input outside of all of them passes in some tenths of a microsecond.
    special = type(x) is not Tensor or forward_ad._current_level >= 0
    if special or _is_exported() or _is_traced() or _num_modes() or _transform() is not None:
        reason = _reason(x)
        if reason is not None:
            raise InputError(f"expected a plain tensor and no transform, got {reason}")


def _reason(x: Any) -> str | None:
    if _is_exported():
        return f"torch.export. Save the model with spikebrain.save. {_DENSE}"
    if _is_traced():
        return f"torch.jit.trace. Save the model with spikebrain.save. {_DENSE}"
    if isinstance(x, torch.fx.Proxy):
        return f"torch.fx. Make SpikeLinear a leaf in Tracer.is_leaf_module. {_DENSE}"
    if (transform := _transform()) is not None:
        name = transform.key().name.lower()
        hint = "The layer takes [..., in_features]: pass the batch as leading axes. " if name == "vmap" else ""
        return f"torch.func ({name}). {hint}For gradients use backward(). {_DENSE}"
    return _reason_of_tensor(x)


def _reason_of_tensor(x: Any) -> str | None:
    plain: Any = Tensor
    modes = [type(mode).__name__ for mode in _get_current_dispatch_mode_stack() if getattr(mode, "_mode_key", None)]
    if modes:
        return f"{modes[-1]}, which records or fakes operators. {_DENSE}"
    kind: Any = type(x)
    if not isinstance(x, Tensor) or kind.__torch_dispatch__ is not plain.__torch_dispatch__:
        return f"{type(x).__name__}. Pass a dense torch.Tensor."
    if forward_ad._current_level >= 0 and forward_ad.unpack_dual(x).tangent is not None:
        return f"a dual tensor of forward-mode differentiation. Use backward(). {_DENSE}"
    return None
