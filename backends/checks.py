"""What backends return, checked where it enters; see `neuro.checks`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..coding import SpikeTrain
from ..neuro.checks import Untouched, asking, checks_all, describe_tensor, needs_check, refuse
from .base import Backend, WeightMemory

# Tokens of which a sum is compared.
_SAMPLED_TOKENS = 8


def sums_of(backend: Backend, train: SpikeTrain, weight: Tensor) -> Tensor:
    """Return `backend.accumulate(train, weight)`, checked if the backend is not of this package.

    One sum of each of a few tokens is compared with the plain product; inside `checking_plugins()` all are.

    Args:
        backend: the backend.
        train: spikes [T, *tokens, in_features].
        weight: int8, [out_features, in_features].
    Raises:
        InputError: the backend returned other sums, or changed weights or spikes in place.
    """
    if not needs_check(backend):
        return backend.accumulate(train, weight)
    untouched = [(name, Untouched(given)) for name, given in (("weights", weight), ("spikes", train.spikes))]
    with asking(backend, "accumulate"):
        sums = backend.accumulate(train, weight)
    expected = (*train.spikes.shape[1:-1], len(weight))
    if not isinstance(sums, Tensor) or sums.dtype != torch.int32 or sums.shape != expected:
        raise refuse(backend, "accumulate", f"int32 sums of shape {expected}", describe_tensor(sums))
    if sums.device != weight.device:
        raise refuse(backend, "accumulate", f"sums on {weight.device}", describe_tensor(sums))
    for name, given in untouched:
        if given.was_changed():
            raise refuse(backend, "accumulate", f"{name} as they were given", f"{name} changed in place")
    if sums.numel():
        _compare(backend, sums.reshape(-1, len(weight)), train, weight)
    return sums


def group_sums_of(backend: Backend, train: SpikeTrain, weight: Tensor, memory: WeightMemory) -> Tensor:
    """Return `backend.accumulate_in_memory(train, weight, memory)`, checked if the backend is not of this package.

    Raises:
        InputError: the backend returned other sums.
    """
    if not needs_check(backend):
        return backend.accumulate_in_memory(train, weight, memory)
    with asking(backend, "accumulate_in_memory"):
        sums = backend.accumulate_in_memory(train, weight, memory)
    size = memory.group_size or max(weight.shape[1], 1)
    groups = range(0, max(weight.shape[1], 1), size)
    expected = (*train.spikes.shape[1:-1], len(groups), len(weight))
    if not isinstance(sums, Tensor) or sums.dtype != torch.int32 or sums.shape != expected:
        raise refuse(backend, "accumulate_in_memory", f"int32 sums of shape {expected}", describe_tensor(sums))
    for g, start in enumerate(groups if sums.numel() else ()):
        channels = slice(start, start + size)
        part = SpikeTrain(train.spikes[..., channels], train.timestep_weight, train.zero_point)
        of_group = sums[..., g, :].reshape(-1, len(weight))
        _compare(backend, of_group, part, weight[:, channels], "accumulate_in_memory")
    return sums


def _compare(backend: Backend, sums: Tensor, train: SpikeTrain, weight: Tensor, method: str = "accumulate") -> None:
    """Raise an InputError if sums are not those of the train."""
    spikes = train.spikes.reshape(train.num_timesteps, len(sums), weight.shape[1])
    if checks_all():
        tokens = torch.arange(len(sums), device=sums.device).repeat_interleave(len(weight))
        outputs = torch.arange(len(weight), device=sums.device).repeat(len(sums))
    else:
        tokens = torch.arange(0, len(sums), -(-len(sums) // _SAMPLED_TOKENS), device=sums.device)
        outputs = torch.linspace(0, len(weight) - 1, len(tokens), device=sums.device).long()
    step = max(1, 2**22 // max(1, weight.shape[1]))
    for token, output in zip(tokens.split(step), outputs.split(step), strict=True):
        read = weight[output].to(torch.int64)
        exact = -train.zero_point * read.sum(1)
        for plane_weight, plane in zip(train.timestep_weight.tolist(), spikes, strict=True):
            exact += plane_weight * (plane[token] * read).sum(1)
        differs = (exact != sums[token, output]).nonzero().flatten()
        if len(differs):
            at = int(differs[0])
            where = f"at token {int(token[at])}, output {int(output[at])}"
            raise refuse(backend, method, f"the exact sum {int(exact[at])} {where}", str(int(sums[token, output][at])))


def outputs_of(backend: Backend, x: Tensor, weight: Tensor, *others: Any, **groups: Any) -> Tensor | None:
    """Return `backend.fused(x, weight, ...)`, checked if the backend is not of this package.

    Raises:
        InputError: the backend returned neither None nor outputs of the right shape, dtype and device.
    """
    if not needs_check(backend):
        return backend.fused(x, weight, *others, **groups)
    with asking(backend, "fused"):
        y = backend.fused(x, weight, *others, **groups)
    if y is None:
        return None
    expected = (*x.shape[:-1], len(weight))
    if not isinstance(y, Tensor) or y.shape != expected or y.dtype != x.dtype or y.device != x.device:
        wanted = f"None, or outputs {x.dtype} of shape {expected} on {x.device}"
        raise refuse(backend, "fused", wanted, describe_tensor(y))
    return y
