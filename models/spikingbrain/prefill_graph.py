"""Prefill of texts of one length as a CUDA graph, so that launching its kernels takes no time.

A short text is read in milliseconds, and Python takes longer than that to launch a thousand kernels.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from ...backends.gpu.one_pass import one_pass
from ...errors import InputError
from .cache import SpikingBrainCache
from .causal_lm import SpikingBrainForCausalLM
from .model import SpikingBrainOutput
from .prefill import prefill


class PrefillGraph:
    """Reads texts of one length, each from its start: `prefill` with the same result to the bit.

    It keeps the memory of a pass for itself. It is for the model as it is now: after a change, make another.

    Args:
        model: on a CUDA GPU, not in training.
        num_tokens: tokens of a text, at least 2.
        batch_size: texts at a time.
    Raises:
        InputError: the model is not on a CUDA GPU, or a size is too small.
    """

    def __init__(self, model: SpikingBrainForCausalLM, num_tokens: int, batch_size: int = 1) -> None:
        device = next(model.parameters()).device
        if device.type != "cuda":
            raise InputError(f"PrefillGraph: expected a model on a CUDA GPU, got one on {device}. Use prefill.")
        if num_tokens < 2 or batch_size < 1:
            raise InputError(
                f"PrefillGraph: expected at least 2 tokens and a text, got {num_tokens} tokens and {batch_size} texts."
            )
        self._model = model
        self._ids = torch.zeros(batch_size, num_tokens, dtype=torch.int64, device=device)
        side = torch.cuda.Stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            for _ in range(2):  # compiles, tunes, copies weights into the order of kernels
                prefill(model, self._ids, portion=num_tokens)
        torch.cuda.current_stream(device).wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        # cuBLAS gets its workspace anew, from the graph's memory: the one of before may be freed while the graph lives.
        torch._C._cuda_clearCublasWorkspaces()
        with torch.no_grad(), torch.cuda.graph(self._graph), one_pass() as shared:
            self._cache = SpikingBrainCache(model.settings)
            found = model(self._ids, cache=self._cache, use_cache=True, logits_to_keep=1)
            self._failed = shared.flag()
        torch._C._cuda_clearCublasWorkspaces()
        assert found.logits is not None
        self._logits: Tensor = found.logits

    def __call__(self, input_ids: Int[Tensor, "B L"]) -> SpikingBrainOutput:
        """Read a text, and return the logits after its last token and the state from which it goes on.

        Args:
            input_ids: token ids, without padding, of the sizes that the graph was made for; on any device.
        Raises:
            InputError: another shape.
        """
        if input_ids.shape != self._ids.shape:
            raise InputError(
                f"PrefillGraph: expected ids of shape {tuple(self._ids.shape)}, for which it was made, got "
                f"{tuple(input_ids.shape)}. Make another graph, or use prefill."
            )
        self._ids.copy_(input_ids)
        self._graph.replay()
        if self._failed is not None and bool(self._failed):
            return prefill(self._model, input_ids, portion=input_ids.shape[1])
        return SpikingBrainOutput(logits=self._logits.clone(), cache=self._copied_cache())

    def _copied_cache(self) -> SpikingBrainCache:
        """Return a cache with tensors of its own, which the next replay does not change."""
        cache = copy.copy(self._cache)
        assert cache.num_valid is not None
        cache.num_valid = cache.num_valid.clone()
        cache.layers = [layer.copy() for layer in self._cache.layers]
        tensors: list[Any] = [tensor for layer in cache.layers for tensor in layer.tensors()]
        copies = [torch.empty_like(tensor) for tensor in tensors]
        if copies:
            torch._foreach_copy_(copies, tensors)  # pyright: ignore[reportPrivateImportUsage]
        own = iter(copies)
        for layer in cache.layers:
            if layer.linear is not None:
                layer.linear = next(own)
            if layer.columns is not None:
                layer.columns.tensors = tuple(next(own) for _ in layer.columns.tensors)
        return cache
