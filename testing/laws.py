"""How a law is tried on random input, and what all kinds of plug-ins must be able to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..lazy import install_command
from ..neuro.checks import refuse
from ..registry import Registry, from_dict, to_dict


def strategies() -> Any:
    """Return hypothesis.strategies; raise an InputError that says what to install if it is missing."""
    try:
        from hypothesis import strategies as found  # noqa: PLC0415 - only tests need it
    except ImportError as error:
        raise InputError(
            f"spikebrain.testing: expected the package hypothesis, which is missing. {install_command('test')}."
        ) from error
    return found


def try_law(law: Callable[..., None], examples: int, **arguments: Any) -> None:
    """Call a law with arguments drawn from strategies; the shortest example that breaks it is shown with its error.

    Args:
        law: raises if it does not hold.
        examples: how often it is called.
        arguments: strategies by the law's arguments.
    """
    strategies()
    from hypothesis import HealthCheck, given, settings  # noqa: PLC0415 - only tests need it

    quiet = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}
    settings(max_examples=examples, **quiet)(given(**arguments)(law))()


def require(holds: bool, plugin: object, method: str, expected: str, got: str) -> None:
    """Raise the error of a broken contract unless it holds."""
    if not holds:
        raise refuse(plugin, method, expected, got)


def random_tensor(kind: str, shape: tuple[int, ...], seed: int, largest: int = 1) -> Tensor:
    """Return random "counts" in [-largest, largest], "spikes", INT8 "weights" or normal "activations"."""
    generator = torch.Generator().manual_seed(seed)
    if kind == "activations":
        return torch.randn(shape, generator=generator)
    low, high, dtype = {
        "counts": (-largest, largest + 1, torch.int32),
        "spikes": (-1, 2, torch.int8),
        "weights": (-128, 128, torch.int8),
    }[kind]
    return torch.randint(low, high, shape, generator=generator, dtype=dtype)


def check_settings(registry: Registry[Any], plugin: object) -> None:
    """Check that a plug-in with a name comes back from a file as it was."""
    if registry.name_of(plugin) is None:
        return
    again = from_dict(json.loads(json.dumps(to_dict(plugin))))
    require(again == plugin, plugin, "__eq__", "the object that a file gives back, equal to itself", repr(again))
