"""The command as it was typed, so that the next thing to try can be a command with the user's own paths."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any


class Typed:
    """A command with the options that were typed.

    Args:
        name: of the command.
        signature: of its function.
        names: what is typed for each argument: an option, or a metavariable for an argument without one.
        values: of all arguments.
        given: names of the arguments that were typed, --json and --quiet among them.
    """

    def __init__(
        self,
        name: str,
        signature: inspect.Signature,
        names: Mapping[str, str],
        values: Mapping[str, Any],
        given: Sequence[str] = (),
    ) -> None:
        self._name, self._signature, self._names, self.values, self.given = name, signature, names, values, given

    def same(self, *arguments: str) -> tuple[str, ...]:
        """Return the words that were typed for some arguments; those that were left at their usual values have none."""
        return tuple(
            word for name in arguments if self._is_typed(name) for word in self._words(name, self.values[name])
        )

    def again(self, **changed: Any) -> tuple[str, ...]:
        """Return the whole command, with some arguments changed; None takes an option away."""
        values = {**self.values, **changed}
        names = [name for name in self._signature.parameters if values.get(name) is not None]
        given = [name for name in names if self._is_argument(name) or name in changed or self._is_typed(name)]
        given.sort(key=lambda name: not self._is_argument(name))
        return ("spikebrain", self._name, *(word for name in given for word in self._words(name, values[name])))

    def _is_argument(self, name: str) -> bool:
        return not self._names[name].startswith("-")

    def _is_typed(self, name: str) -> bool:
        return self.values[name] is not None and self.values[name] != self._signature.parameters[name].default

    def _words(self, name: str, value: Any) -> Iterator[str]:
        if self._is_argument(name):
            yield str(value)
        elif value is True:
            yield self._names[name]
        elif value is not False:
            for one in value if isinstance(value, list | tuple) else [value]:
                yield from (self._names[name], str(one))
