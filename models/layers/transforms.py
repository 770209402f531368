"""Where PyTorch records or transforms operators a spiking layer is one operator; where that would be wrong, it refuses.

A recording of the layer's own steps would hold memory that no kernel filled, and a transform would lose what the
kernels compute.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.autograd import forward_ad

from ...errors import InputError

is_compiling = torch.compiler.is_compiling
_is_traced = torch._C._is_tracing
_num_modes, _transform = torch._C._len_torch_dispatch_stack, torch._C._functorch.peek_interpreter_stack  # pyright: ignore
_transforms = torch._C._functorch.get_interpreter_stack  # pyright: ignore
_DENSE = "spikebrain.to_dense(model) has the same INT8 weights in plain nn.Linear layers and can be used instead."


def is_recorded(layer: Any, x: Any) -> bool:
    """Return whether PyTorch records operators now, so that the layer has to be one; see also `is_compiling`.

    Raises:
        InputError: x is no ordinary tensor, or a transform would be wrong.
    """
    # Plain input outside of all of them passes in some tenths of a microsecond.
    special = type(x) is not Tensor or forward_ad._current_level >= 0
    if not (special or _is_traced() or _num_modes() or _transform() is not None):
        return False
    reason = _reason(x)
    if reason is not None:
        raise InputError(f"{layer._where}: expected a plain tensor and no transform, got {reason}")
    return records_operators(x)


def records_operators(x: Any) -> bool:
    """Return whether PyTorch records or transforms the operators that are called with x."""
    return bool(_num_modes()) or _transform() is not None or isinstance(x, FakeTensor | FunctionalTensor)


def _reason(x: Any) -> str | None:
    if _is_traced():
        return f"torch.jit.trace. Use torch.export, or save the model with spikebrain.save. {_DENSE}"
    if isinstance(x, torch.fx.Proxy):
        return f"torch.fx. Use torch.export, or make SpikeLinear a leaf in Tracer.is_leaf_module. {_DENSE}"
    for transform in _transforms() or ():
        name = transform.key().name.lower()
        if name not in ("vmap", "functionalize"):
            return f"torch.func ({name}). For gradients use backward(). {_DENSE}"
    plain: Any = Tensor
    kind: Any = type(x)
    if not isinstance(x, Tensor) or (
        kind.__torch_dispatch__ is not plain.__torch_dispatch__ and not isinstance(x, FakeTensor | FunctionalTensor)
    ):
        return f"{kind.__name__}. Pass a dense torch.Tensor."
    if forward_ad._current_level >= 0 and forward_ad.unpack_dual(x).tangent is not None:
        return f"a dual tensor of forward-mode differentiation. Use backward(). {_DENSE}"
    return None
