"""Run a model, and see what each of its spiking layers was given and what it computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..coding import SpikeTrain
from ..errors import InputError
from ..models import SpikeLinear
from ..models.layers.observing import Step, observing
from ..models.spikingbrain import SpikingBrainForCausalLM
from ..models.spikingbrain.cache import SpikingBrainCache
from .experts import Routing
from .layers import bands_of


@dataclass(frozen=True)
class Call:
    """What a spiking layer did with all tokens of a text.

    Attributes:
        name: of the layer in the model.
        train: its spikes, [T, tokens, in_features].
        accumulation: its exact sums, integers [tokens, groups, out_features]; of a layer with coarse rows in halves.
        count: spike counts, int32 [tokens, in_features]: a layer with coarse rows reads by them.
        tokens: which tokens of the text these are, rising, int64; None for all. An expert sees some of them.
    """

    name: str
    train: SpikeTrain
    accumulation: Tensor
    count: Tensor
    tokens: np.ndarray | None = None

    @classmethod
    def joined(cls, name: str, steps: list[Step], tokens: np.ndarray | None = None) -> Call:
        """Join the steps of one call, in order; all have the same code and number of timesteps."""
        first = steps[0].train
        spikes = torch.cat([step.train.spikes for step in steps], 1)
        train = SpikeTrain(spikes, first.timestep_weight, first.zero_point)
        sums, count = (torch.cat([getattr(step, part) for step in steps]) for part in ("accumulation", "count"))
        return cls(name, train, sums, count, tokens)


def run_steps(
    model: nn.Module,
    spiking: Mapping[str, SpikeLinear],
    ids: Tensor,
    see: Callable[[str, Step], None],
    begun: Mapping[str, Any] | None = None,
) -> None:
    """Run the model once on a text; `see` gets every step with the name of its layer.

    Args:
        model: converted to spikes.
        spiking: its layers that spike, as of `layers_of`.
        ids: token ids, [tokens].
        see: called with each step. A call of a layer has several steps if its spikes take much memory, but one for a
            layer with coarse rows.
        begun: of `begin`, which is called if it is None.
    """
    given = begin(model, ids) if begun is None else begun
    bands = bands_of(model, spiking)
    levels = {name: bands[name].levels if name in bands else [layer] for name, layer in spiking.items()}
    names = {id(level): name for name, some in levels.items() for level in some}

    def observe(layer: SpikeLinear, step: Step) -> None:
        name = names[id(layer)]
        whole = bands[name].add(layer, step) if name in bands else step
        if whole is not None:
            see(name, whole)

    with observing([level for some in levels.values() for level in some], observe), torch.inference_mode():
        model(input_ids=ids[None], use_cache=False, **given)


def begin(model: nn.Module, ids: Tensor) -> dict[str, Any]:
    """Return what a model takes besides a text: the state that its sink tokens leave, which run here.

    It is the same for every text, so sink tokens are no part of a text's run.
    """
    if not isinstance(model, SpikingBrainForCausalLM) or model.model.sinks is None:
        return {}
    cache = SpikingBrainCache(model.model.settings)
    with torch.inference_mode():
        model.model.start(cache, model.model.embeddings(ids[None, :1]))
    return {"cache": cache}


def run_calls(model: nn.Module, spiking: Mapping[str, SpikeLinear], ids: Tensor, see: Callable[[Call], None]) -> None:
    """Run the model once; `see` gets every call of a layer, all its steps joined. Arguments as of `run_steps`."""
    run_steps(model, spiking, ids, joining(see, Routing(model, spiking), len(ids)))


def joining(see: Callable[[Call], None], routing: Routing, num_tokens: int) -> Callable[[str, Step], None]:
    """Return a function that takes steps with the names of their layers, and hands each call that is whole to `see`.

    Args:
        see: called with each call.
        routing: of the model.
        num_tokens: of the text.
    """
    begun: dict[str, list[Step]] = {}

    def see_step(name: str, step: Step) -> None:
        steps = begun.setdefault(name, [])
        steps.append(step)
        if step.first_token + len(step.count) == step.num_tokens:
            tokens = routing.tokens_of(name, step.x, num_tokens)
            see(Call.joined(name, begun.pop(name), None if tokens is None else tokens.numpy()))

    return see_step


def check_step(name: str, step: Step, num_tokens: int, tokens: Tensor | None, *, ran_before: bool) -> None:
    """Refuse a layer that does not see every token of a text exactly once, or as an expert some of them.

    Args:
        name: of the layer.
        step: of one of its calls.
        num_tokens: tokens of the text.
        tokens: those that the call has, of `Routing.tokens_of`.
        ran_before: whether the layer had a call before this one.
    Raises:
        InputError: the call has other tokens, or is not the first.
    """
    expected = num_tokens if tokens is None else len(tokens)
    if step.num_tokens == expected and not ran_before:
        return
    got = f"a second call with {step.num_tokens}" if ran_before else f"one with {step.num_tokens}"
    raise InputError(
        f"simulate_model: expected one call of {name!r} with all {num_tokens} tokens, got {got}. Experts that are one "
        "set of weights run several times: unshare_experts(model), before to_spiking, gives each its own; simulating "
        "the float model, as convert writes it without spikes, does so by itself. Other layers "
        "that run several times, or on some of the tokens, are not simulated."
    )
