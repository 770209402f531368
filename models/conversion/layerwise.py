"""Run a Transformer and the model converted from it layer by layer: the model's layers on the Transformer's inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..spikingbrain.attention import Context
from ..spikingbrain.cache import LayerState, SpikingBrainCache
from ..spikingbrain.causal_lm import SpikingBrainForCausalLM
from ..spikingbrain.rope import rotary_angles
from .source import weights_of


@dataclass(frozen=True)
class LayerTrace:
    """Activations of one layer of the Transformer. B batch, L tokens, d hidden size, H heads of D channels.

    Attributes:
        residual: residual stream into the layer, [B, L, d].
        normed: the same after the norm before attention, [B, L, d].
        heads: attention output of each head, before the output projection, [B, L, H * D].
        attended: attention output after the output projection, [B, L, d].
        result: residual stream out of the layer, [B, L, d].
    """

    residual: Tensor
    normed: Tensor
    heads: Tensor
    attended: Tensor
    result: Tensor


@torch.no_grad()
def trace(teacher: Any, ids: Tensor) -> list[LayerTrace]:
    """Run a Transformer and return the activations of each layer.

    Args:
        teacher: a Transformer that `from_transformer` can convert.
        ids: token ids, [B, L].
    """
    weights = weights_of(teacher)
    norm, o_proj = (weights.layer[f"{name}.weight"].removesuffix(".weight") for name in ("attn_norm", "attn.o_proj"))
    layers: Any = teacher.get_submodule(weights.layers)
    watched = {}
    for i, layer in enumerate(layers):
        watched |= {f"{i}.norm": layer.get_submodule(norm), f"{i}.o_proj": layer.get_submodule(o_proj), f"{i}": layer}
    with watch(watched) as seen:
        teacher.base_model(input_ids=ids, use_cache=False)
    return [
        LayerTrace(*seen[f"{i}.norm"], *seen[f"{i}.o_proj"], seen[f"{i}"][1])  # (in, out), (in, out), out
        for i in range(len(layers))
    ]


@contextmanager
def watch(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """Yield a dictionary that holds, by name, each module's first input and output from its latest call."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def hook_for(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            seen[name] = (inputs[0], output[0] if isinstance(output, tuple) else output)

        return hook

    handles = [module.register_forward_hook(hook_for(name)) for name, module in modules.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


class Surroundings:
    """What a layer of a student needs to run on its own: positions, and states that hold the sink tokens.

    Args:
        student: the model.
        ids: token ids of the batch, [B, L], without padding.
        dtype: dtype of the activations.
    """

    def __init__(self, student: SpikingBrainForCausalLM, ids: Tensor, dtype: torch.dtype) -> None:
        settings = student.settings
        positions = torch.arange(ids.shape[1], device=ids.device).expand(len(ids), -1)
        self.context = Context(*rotary_angles(positions, settings.dim, settings.rope_theta, dtype))
        self._states: list[LayerState] | None = None
        if settings.num_sinks:
            cache = SpikingBrainCache(settings)
            student.model.start(cache, student.model.embeddings(ids))
            for state in cache.layers:  # detached, since each layer runs on its own
                state.linear = None if state.linear is None else state.linear.detach()
                if state.columns is not None:
                    state.columns.tensors = tuple(x.detach() for x in state.columns.tensors)
            self._states = cache.layers

    def state(self, layer: int) -> LayerState | None:
        """Return a new copy of that layer's state for one run, or None if there are no sink tokens."""
        return None if self._states is None else self._states[layer].copy()
