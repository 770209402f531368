"""Gated linear attention through the Triton kernels of flash-linear-attention, if it is installed.

The kernels need as many key/value heads as query heads, so keys, values and decays are repeated. The state is still
kept once per key/value head.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ...errors import BackendUnavailableError

# Minimum number of channels per head: with fewer, the backward kernels (on tensor cores) do not compile.
_LEAST_DIM = 16
# Warps of the launch settings that are tried.
_WARPS = 4


def why_unavailable(device: torch.device, dim: int) -> str | None:
    """Return why the kernels cannot run on a device with `dim` channels per head, or None if they can."""
    if importlib.util.find_spec("fla") is None:
        return "flash-linear-attention is not installed: pip install flash-linear-attention"
    if device.type != "cuda":
        return f"its kernels need a CUDA GPU, and the tensors are on {device}"
    return None if dim >= _LEAST_DIM else f"its kernels need heads of {_LEAST_DIM} channels or more, not of {dim}"


@functools.cache
def _library() -> Any:
    with few_launch_settings():  # kernels get theirs when they are defined
        return importlib.import_module("fla.ops.gla")


@contextmanager
def few_launch_settings() -> Iterator[None]:
    """Let kernels that are defined inside a `with` block choose between two launch settings, and not between all.

    The library offers up to 24 for each of its kernels. All would be compiled and timed at the first call, which takes
    minutes. The two are the first and the last of those with four warps.
    """
    tuner: Any = importlib.import_module("triton.runtime.autotuner").Autotuner
    whole = tuner.__init__

    def few(self: Any, fn: Any, names: Any, configs: Any, *rest: Any, **options: Any) -> None:
        of_four = [one for one in configs if one.num_warps == _WARPS] or list(configs)
        whole(self, fn, names, [of_four[0], of_four[-1]] if len(of_four) > 1 else of_four, *rest, **options)

    tuner.__init__ = few
    try:
        yield
    finally:
        tuner.__init__ = whole


def gla(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Run gated linear attention; arguments and result are those of `gla.gla`.

    Raises:
        BackendUnavailableError: the library is missing, the tensors are not on a CUDA GPU, or heads are too small.
    """
    reason = why_unavailable(q.device, min(q.shape[-1], v.shape[-1]))
    if reason is not None:
        raise BackendUnavailableError(f'gla: kernel "fla" cannot run: {reason}. Use kernel="ours" or "auto".')
    library = _library()
    shared = q.shape[2] // k.shape[2]
    k, v, log_decay = (x.repeat_interleave(shared, 2) for x in (k, v, log_decay.float()))
    initial_state = None if state is None else state.repeat_interleave(shared, 1)
    if q.shape[1] == 1:
        run, gate = library.fused_recurrent_gla, {"gk": log_decay}
    else:
        run, gate = library.chunk_gla, {"g": log_decay}
    # The layout is [B, L, H, D]; early versions default to another one.
    layout = {"head_first": False} if "head_first" in inspect.signature(run).parameters else {}
    o, final_state = run(
        q, k, v, **gate, scale=q.shape[-1] ** -0.5, initial_state=initial_state, output_final_state=True, **layout
    )
    return o.to(q.dtype), final_state[:, ::shared]
