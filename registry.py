"""One list per kind of plug-in: shared tests run over it and the command line finds names in it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Generic, TypeVar

from .errors import InputError

T = TypeVar("T")
C = TypeVar("C", bound=type)


class Registry(Collection[str], Generic[T]):
    """Classes by name, in the order in which they were registered.

    Registration is for names only: every function takes objects, so an unregistered class works too.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._classes: dict[str, type[T]] = {}

    def register(self, name: str) -> Callable[[C], C]:
        """Class decorator: enter the class under `name` (lower case, words joined by hyphens).

        Raises:
            InputError: another class has that name.
        """

        def enter(cls: C) -> C:
            known = self._classes.get(name)
            # The same class may come again when a module is executed twice (a notebook cell, a reload).
            if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
                raise InputError(f"{self.kind} name {name!r}: already taken by {known.__qualname__}. Use another name.")
            self._classes[name] = cls  # pyright: ignore[reportArgumentType]
            return cls

        return enter

    def create(self, name: str) -> T:
        """Build the class of that name with its default settings.

        Raises:
            InputError: no such name; the message lists those there are.
        """
        return self.get(name)()

    def get(self, name: str) -> type[T]:
        """Return the class of that name.

        Raises:
            InputError: no such name; the message lists those there are.
        """
        if name not in self._classes:
            raise InputError(f"{self.kind}: expected one of {', '.join(self._classes)}; got {name!r}.")
        return self._classes[name]

    def name_of(self, value: T) -> str | None:
        """Return the name under which the class of `value` is registered, or None."""
        return next((name for name, cls in self._classes.items() if type(value) is cls), None)

    def __contains__(self, name: object) -> bool:
        return name in self._classes

    def __iter__(self) -> Iterator[str]:
        return iter(self._classes)

    def __len__(self) -> int:
        return len(self._classes)
