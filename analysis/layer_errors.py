"""What each layer alone loses on spikes: the noise in its output, and what that does to the model's next token."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..models import spiking_layers


@dataclass(frozen=True)
class LayerError:
    """The error of one layer on spikes, while all others run in float.

    Attributes:
        name: of the layer.
        sqnr_db: signal to quantisation noise of its output, 10 log10(sum y^2 / sum (spiking y - y)^2), in dB; None if
            both outputs are equal, or no token reached the layer.
        kl_nats: Kullback-Leibler divergence of the model's next-token distribution from that of the float model, mean
            over all tokens, in nats.
    """

    name: str
    sqnr_db: float | None
    kl_nats: float


def comparable_layers(model: nn.Module, spiking: nn.Module) -> list[str]:
    """Return the names of the spiking layers that are modules of the float model, too; those of fused experts are not.

    Args:
        model: the float model.
        spiking: the same model on spikes.
    """
    modules = dict(model.named_modules())
    return [name for name in spiking_layers(spiking) if name in modules]


def layer_errors(model: nn.Module, spiking: nn.Module, ids: Tensor, names: Iterable[str]) -> Iterator[LayerError]:
    """Yield the error of one layer after the other; each takes a run of the float model with that layer on spikes.

    Args:
        model: the float model, a causal language model of transformers; left as it was.
        spiking: the same model on spikes, whose layers are used.
        ids: token ids of a text, [L].
        names: of the layers; see `comparable_layers`.
    Raises:
        InputError: a layer is not in both models.
    """
    layers, modules = spiking_layers(spiking), dict(model.named_modules())
    ids = ids[None].to(next(model.parameters()).device)
    expected = _log_probabilities(model, ids)
    for name in names:
        if name not in layers or name not in modules:
            raise InputError(f"names: expected layers that are in both models, got {name!r}.")
        watch = _Replace(layers[name])
        handle = modules[name].register_forward_hook(watch)
        try:
            found = _log_probabilities(model, ids)
        finally:
            handle.remove()
        kl = (expected.exp() * (expected - found)).sum(-1).mean()
        yield LayerError(name, watch.sqnr_db(), max(float(kl), 0.0))


@torch.inference_mode()
def _log_probabilities(model: nn.Module, ids: Tensor) -> Tensor:
    return model(input_ids=ids, use_cache=False).logits[0].double().log_softmax(-1)


class _Replace:
    """A forward hook: the layer's output becomes that of another, and their difference is added up."""

    def __init__(self, layer: nn.Module) -> None:
        self._layer, self._signal, self._noise = layer, 0.0, 0.0

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        found = self._layer(*inputs)
        self._signal += float(output.double().square().sum())
        self._noise += float((found.double() - output.double()).square().sum())
        return found

    def sqnr_db(self) -> float | None:
        return 10 * math.log10(self._signal / self._noise) if self._noise and self._signal else None
