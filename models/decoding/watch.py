"""Notice that a model has changed since its decoder was made."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, nn

from ..layers.spike_linear import SpikeLinear
from .compiled import HOOKS, CompiledDecoder, why_not_compiled


class Watch:
    """A model's decoder, and all of the model that it was made from: tensors, modules, plug-ins, hooks, observers.

    Attributes:
        decoder: for the model as it was; None if the decoder is not for it.
    """

    def __init__(self, model: nn.Module) -> None:
        held: list[tuple[dict[str, Any], str, Any]] = []
        self._sized: list[Any] = []
        for module in model.modules():
            for entries in (module._parameters, module._buffers, module._modules):
                held += [(entries, name, value) for name, value in entries.items()]
                self._sized.append(entries)
            self._sized += [getattr(module, hooks) for hooks in HOOKS]
            if module is not model:
                self._sized.append(vars(module))  # a replaced forward
            if isinstance(module, SpikeLinear):
                names = ("neuron", "encoder", "backend", "observers")
                held += [(vars(module), name, vars(module)[name]) for name in names]
                self._sized.append(module.observers)
        self._holders, self._names, self._held = ([], [], []) if not held else zip(*held, strict=True)
        self._tensors = [value for value in self._held if isinstance(value, Tensor)]
        self._was = self._state()
        self.decoder = CompiledDecoder(model) if why_not_compiled(model) is None else None

    def _state(self) -> tuple[Any, ...]:
        # A module that moves keeps its parameters' objects and gives them other memory.
        places = [(tensor.data_ptr(), tensor.dtype) for tensor in self._tensors if not tensor.is_meta]
        return list(map(len, self._sized)), places, torch.get_num_threads()

    def unchanged(self) -> bool:
        """Return whether the model is still what it was."""
        same = all(map(operator.is_, map(dict.get, self._holders, self._names), self._held))
        return same and self._state() == self._was

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        """Leave nothing in a copy of the model, whose tensors have other addresses: it makes its own."""

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        """Leave nothing in a pickled model either."""
        return type(None), ()
