"""Notice that a model has changed since its decoder was made."""

from __future__ import annotations

import operator
import weakref
from collections.abc import Iterator
from itertools import chain
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from ..layers.attention_interface import runs_on_counts
from ..layers.graded_linear import GradedLinear
from ..layers.spike_linear import SpikeLinear
from ..spikingbrain.attention import Attention
from .compiled import CompiledDecoder, why_not_compiled
from .fits import HOOKS
from .graph import GraphDecoder, why_not_graph
from .hybrid import HybridDecoder, is_hybrid, why_not_hybrid

_VERSION = operator.attrgetter("_version")
_PLUG_INS = operator.itemgetter("neuron", "encoder", "backend", "observers")

_SETTINGS = operator.itemgetter("config", "plan")

Decoder: TypeAlias = CompiledDecoder | GraphDecoder | HybridDecoder


def why_not_decoded(model: nn.Module) -> str | None:
    """Return why there is no fast decoder for a model where it is now, or None if there is one."""
    if _on_gpu(model):
        return why_not_graph(model)
    return why_not_hybrid(model) if is_hybrid(model) else why_not_compiled(model)


def _decoder_for(model: nn.Module) -> Decoder | None:
    if why_not_decoded(model) is not None:
        return None
    if _on_gpu(model):
        return GraphDecoder(model)
    return HybridDecoder(model) if is_hybrid(model) else CompiledDecoder(model)


def _on_gpu(model: nn.Module) -> bool:
    first = next(model.parameters(), None)
    return first is not None and first.is_cuda


class Watch:
    """A model's decoder, and all of the model that it was made from: tensors, modules, plug-ins, hooks, observers.

    Attributes:
        decoder: for the model as it was; None if the decoder is not for it.
    """

    def __init__(self, model: nn.Module) -> None:
        self._entries: list[dict[str, Any]] = []
        self._plugged: list[dict[str, Any]] = []
        self._mixers: list[dict[str, Any]] = []
        self._sized: list[Any] = []
        graded = [module for module in model.modules() if isinstance(module, GradedLinear)]
        # Coarse rows are bits of a layer's own, and are not read; no level is called as a module.
        coarse = {id(level) for layer in graded for level in layer.upper}
        never_called = {id(part) for layer in graded for part in (layer.levels, *layer.levels)}
        for module in model.modules():
            if id(module) not in coarse:
                self._entries += [module._parameters, module._buffers, module._modules]
            if id(module) not in never_called:
                self._sized += [getattr(module, hooks) for hooks in HOOKS]
                if module is not model:
                    self._sized.append(vars(module))  # a replaced forward
            if isinstance(module, SpikeLinear):
                self._plugged.append(vars(module))
                self._sized.append(module.observers)
            if isinstance(module, Attention):
                self._mixers.append(vars(module))
        self._sized += self._entries
        self._entries = [entries for entries in self._entries if entries]  # what fills an empty one changes its size
        self._held = list(self._held_now())
        self._tensors = [value for value in self._held if isinstance(value, Tensor) and not value.is_meta]
        self._model, self._on_counts = weakref.ref(model), runs_on_counts(model)
        self._places, self._sizes = self._places_now(), self._sizes_now()
        self.decoder = _decoder_for(model)
        # PyTorch counts the writes to a tensor, but for those that were made in inference mode.
        copied = getattr(self.decoder, "copied", [])
        self._copied = [tensor for tensor in copied if not tensor.is_inference()]
        self._versions = self._versions_now()

    def _held_now(self) -> Iterator[Any]:
        # In C from end to end: some thousand objects for each token.
        parts = (map(dict.values, self._entries), map(_PLUG_INS, self._plugged), map(_SETTINGS, self._mixers))
        return chain.from_iterable(map(chain.from_iterable, parts))

    def _places_now(self) -> list[int]:
        # A module that moves keeps its parameters' objects and gives them other memory.
        return list(map(Tensor.data_ptr, self._tensors))

    def _versions_now(self) -> list[int]:
        return list(map(_VERSION, self._copied))

    def _sizes_now(self) -> list[int]:
        return [torch.get_num_threads(), *map(len, self._sized)]

    def may_run(self) -> bool:
        """Return whether all memory that the decoder reads is still there: it may run, and `unchanged` judges later."""
        return self._places_now() == self._places

    def unchanged(self) -> bool:
        """Return whether the model is still what it was, but for what `may_run` looks at."""
        try:
            same = all(map(operator.is_, self._held_now(), self._held))
        except KeyError:  # a plug-in was deleted
            return False
        model = self._model()
        same = same and model is not None and runs_on_counts(model) == self._on_counts
        return same and self._sizes_now() == self._sizes and self._versions_now() == self._versions

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        """Leave nothing in a copy of the model, whose tensors have other addresses: it makes its own."""

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        """Leave nothing in a pickled model either."""
        return type(None), ()
