"""Check that a model is one before work on it starts."""

from __future__ import annotations

from torch import nn

from .errors import InputError


def check_module(
    where: str, value: object, name: str = "model", kind: type[nn.Module] = nn.Module, advice: str = ""
) -> None:
    """Refuse what is no PyTorch model, such as a name or what `load` returned, or is none of a kind.

    Args:
        where: the function that got it.
        value: the argument.
        name: of the argument.
        kind: class that is expected.
        advice: how to get a model of that class from another one.
    Raises:
        InputError: the value is not of that class.
    """
    if isinstance(value, kind):
        return
    expected = "torch.nn.Module" if kind is nn.Module else kind.__name__
    given = repr(value) if isinstance(value, str) else f"a {type(value).__name__}"
    if not isinstance(value, nn.Module):
        has_one = isinstance(getattr(value, "model", None), nn.Module)
        advice = (
            "Pass its attribute model: load returns the model with its tokenizer."
            if has_one
            else "spikebrain.load(...).model is the model of a name or path."
        )
    raise InputError(f"{where}: expected a {expected} as {name}, got {given}. {advice}".rstrip())
