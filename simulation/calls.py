"""Run a model, and see what each of its spiking layers was given and what it computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..coding import SpikeTrain
from ..errors import InputError
from ..models import SpikeLinear
from ..models.layers.observing import Step, observing


@dataclass(frozen=True)
class Call:
    """What a spiking layer did with all tokens of a text.

    Attributes:
        name: of the layer in the model.
        train: its spikes, [T, tokens, in_features].
        accumulation: its exact sums, int32 [tokens, groups, out_features].
    """

    name: str
    train: SpikeTrain
    accumulation: Tensor

    @classmethod
    def joined(cls, name: str, steps: list[Step]) -> Call:
        """Join the steps of one call, in order; all have the same code and number of timesteps."""
        first = steps[0].train
        spikes = torch.cat([step.train.spikes for step in steps], 1)
        train = SpikeTrain(spikes, first.timestep_weight, first.zero_point)
        return cls(name, train, torch.cat([step.accumulation for step in steps]))


def run_steps(
    model: nn.Module, spiking: Mapping[str, SpikeLinear], ids: Tensor, see: Callable[[str, Step], None]
) -> None:
    """Run the model once; `see` gets every step with the name of its layer.

    Args:
        model: converted to spikes.
        spiking: its spiking layers by name.
        ids: token ids, [tokens].
        see: called with each step. A call of a layer has several steps if its spikes take much memory.
    """
    names = {id(layer): name for name, layer in spiking.items()}

    def observe(layer: SpikeLinear, step: Step) -> None:
        see(names[id(layer)], step)

    with observing(spiking.values(), observe), torch.inference_mode():
        model(input_ids=ids[None], use_cache=False)


def run_calls(model: nn.Module, spiking: Mapping[str, SpikeLinear], ids: Tensor, see: Callable[[Call], None]) -> None:
    """Run the model once; `see` gets every call of a layer, all its steps joined. Arguments as of `run_steps`."""
    run_steps(model, spiking, ids, joining(see))


def joining(see: Callable[[Call], None]) -> Callable[[str, Step], None]:
    """Return a function that takes steps with the names of their layers, and hands each call that is whole to `see`."""
    begun: dict[str, list[Step]] = {}

    def see_step(name: str, step: Step) -> None:
        steps = begun.setdefault(name, [])
        steps.append(step)
        if step.first_token + len(step.count) == step.num_tokens:
            see(Call.joined(name, begun.pop(name)))

    return see_step


def check_step(name: str, step: Step, num_tokens: int, *, ran_before: bool) -> None:
    """Refuse a layer that does not see every token of a text exactly once.

    Args:
        name: of the layer.
        step: of one of its calls.
        num_tokens: tokens of the text.
        ran_before: whether the layer had a call before this one.
    Raises:
        InputError: the call has other tokens, or is not the first.
    """
    if step.num_tokens == num_tokens and not ran_before:
        return
    got = f"a second call with {step.num_tokens}" if ran_before else f"one with {step.num_tokens}"
    raise InputError(
        f"simulate_model: expected one call of {name!r} with all {num_tokens} tokens, got {got}. An expert sees only "
        "some of the tokens, and sink tokens are a call of their own: neither is simulated. Take a model without them."
    )
