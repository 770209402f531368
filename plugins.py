"""Plug-ins of other packages: announced by entry points, imported when their name is asked for or listed."""

from __future__ import annotations

import functools
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Generic, TypeVar

from .errors import InputError
from .files import read_toml, read_whole

T = TypeVar("T")

PREFIX = "spikebrain."
# All kinds of plug-ins that other packages can bring, by the group of their entry points.
GROUPS: dict[str, PlugIns[Any]] = {}


@dataclass(frozen=True)
class Announced:
    """A plug-in as a package announces it, not imported yet.

    Attributes:
        group: of entry points, such as "spikebrain.encoders".
        name: under which it is asked for.
        package: name and version of the package.
        entry: what is imported.
    """

    group: str
    name: str
    package: str
    entry: metadata.EntryPoint

    @property
    def top(self) -> str:
        """The outermost Python package of what is imported."""
        return self.entry.value.partition(":")[0].partition(".")[0].strip()

    def __str__(self) -> str:
        return f"{self.package} ({self.entry.value})"


def announced() -> tuple[list[Announced], list[tuple[str, str]]]:
    """Return all plug-ins that installed packages announce, and (package, fault) where the announcement is damaged."""
    return _scan(tuple(sys.path))


@functools.lru_cache(maxsize=4)
def _scan(path: tuple[str, ...]) -> tuple[list[Announced], list[tuple[str, str]]]:
    found, faults, seen = [], [], set()
    for package in metadata.distributions(path=list(path)):
        text = package.read_text("entry_points.txt")
        if text is None or PREFIX not in text:
            continue
        title = _title(package)
        if title in seen:  # the same package in a second folder of the path: the first one is imported
            continue
        seen.add(title)
        try:
            entries = [entry for entry in package.entry_points if entry.group.startswith(PREFIX)]
        except Exception as error:  # one damaged file must not hide all other packages
            faults.append((title, f"its entry_points.txt cannot be read: {type(error).__name__}: {error}"))
            continue
        found += [Announced(entry.group, entry.name, title, entry) for entry in entries]
    return sorted(found, key=lambda plugin: (plugin.name, plugin.package)), faults


def _title(package: metadata.Distribution) -> str:
    try:
        return f"{package.metadata['Name']} {package.version}"
    except Exception:  # its METADATA is missing or damaged
        return "a package without a name"


class PlugIns(ABC, Generic[T]):
    """The plug-ins of one kind: those of this package, and those that installed packages announce.

    One that cannot be used raises when its name is asked for; the others go on.

    Args:
        kind: what they are, such as "encoder", for messages.
        group: of the entry points that announce them; None if other packages cannot bring any.
    """

    def __init__(self, kind: str, group: str | None) -> None:
        self.kind, self.group = kind, group
        if group is not None:
            GROUPS[group] = self

    @abstractmethod
    def own(self) -> list[str]:
        """Return the names of those that need no entry point."""

    @abstractmethod
    def read(self, name: str, value: Any) -> T:
        """Return the plug-in that an entry point of that name stands for; raise an InputError if it is none."""

    @abstractmethod
    def owner(self, plugin: Announced) -> str | None:
        """Return who else, without an entry point, has the name of an announced plug-in, or None."""

    def __contains__(self, name: object) -> bool:
        return any(name == known for known in self.names())

    def names(self) -> list[str]:
        """Return the names of those that can be used; imports all that are announced."""
        names = dict.fromkeys(plugin.name for plugin in self.announced())
        return [*(n for n in self.own() if n not in names), *(n for n in names if self.fault(n) is None)]

    def knows(self, name: str) -> bool:
        """Return whether anything has that name, even if it cannot be used."""
        return name in self.own() or bool(self.announced(name))

    def announced(self, name: str | None = None) -> list[Announced]:
        """Return what packages announce, under one name or under any, without importing it."""
        found = announced()[0] if self.group is not None else []
        return [p for p in found if p.group == self.group and (name is None or p.name == name)]

    def fault(self, name: str) -> str | None:
        """Return why a plug-in cannot be used, or None if it can."""
        try:
            self.load_announced(name)
        except InputError as error:
            return str(error)
        return None

    def load_announced(self, name: str) -> T:
        """Import an announced plug-in.

        Raises:
            InputError: it cannot be imported, is something else than the kind wants, or has the name of another one.
                The message names its package.
        """
        found = self.announced(name)
        owners = [owner for plugin in found[:1] if (owner := self.owner(plugin))]
        owners += [str(plugin) for plugin in found]
        if len(owners) > 1:
            raise InputError(
                f"{self.kind} {name!r}: {' and '.join(owners)} both have this name, which does not say what is meant. "
                "Uninstall one of the packages, or rename its entry point; in Python, pass an object."
            )
        try:
            return self.read(name, found[0].entry.load())
        except (Exception, SystemExit) as error:
            what = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
            raise InputError(
                f"{self.kind} {name!r}: the plug-in of {found[0]} cannot be used: {what.removesuffix('.')}. Mend or "
                "uninstall the package."
            ) from error


class NamedFiles(PlugIns[T]):
    """Descriptions in TOML files: by name those of this package and of others, by path any other one.

    Args:
        kind: what they describe, such as "chip".
        group: of the entry points.
        folder: of the files of this package.
        contract: the class of a description.
        parse: takes the content of a file, its name and the file for messages, and returns the description.
        check: raises an InputError unless a description that was made in Python has what a file must have.
    """

    def __init__(
        self,
        kind: str,
        group: str,
        folder: Path,
        contract: type[T],
        parse: Callable[[Mapping[str, Any], str, str], T],
        check: Callable[[T], Any],
    ) -> None:
        super().__init__(kind, group)
        self.folder, self.contract, self.parse, self.check = folder, contract, parse, check

    def own(self) -> list[str]:
        """Return the names of the files of this package."""
        return sorted(path.stem for path in self.folder.glob("*.toml"))

    def load(self, given: str | os.PathLike | T) -> T:
        """Return a description by name or path; one that was made in Python is checked and returned.

        Raises:
            InputError: there is none of that name, or something in it is missing or wrong.
        """
        if isinstance(given, self.contract):
            self.check(given)
            return given
        if isinstance(given, str) and self.announced(given):
            return self.load_announced(given)
        path, content = read_toml(given, self.folder, self.kind, self.names)  # pyright: ignore[reportArgumentType]
        return self.parse(content, path.stem, str(path))

    def text(self, given: str | os.PathLike) -> str:
        """Return the file of a description, by name or path, with its comments.

        Raises:
            InputError: there is none, it cannot be used, or a package made it in Python.
        """
        self.load(given)
        found = self.announced(given) if isinstance(given, str) else []
        path = found[0].entry.load() if found else read_toml(given, self.folder, self.kind, self.names)[0]
        if isinstance(path, self.contract):
            raise InputError(f"{self.kind} {given!r}: has no file, since {found[0]} makes it in Python. Name another.")
        return read_whole(Path(path))

    def read(self, name: str, value: Any) -> T:
        """Return a description, or read it where the entry point names the path of its file."""
        if isinstance(value, str | os.PathLike) and os.fspath(value).endswith(".toml"):
            value = self.load(Path(value))
        if not isinstance(value, self.contract):
            raise InputError(f"expected {self.contract.__name__} or the path of its .toml file, got {value!r}")
        self.check(value)
        if (found := getattr(value, "name", None)) != name:
            raise InputError(f"expected a description called {name!r}, as its entry point, got {found!r}")
        return value

    def owner(self, plugin: Announced) -> str | None:
        """Return this package if it has a file of that name."""
        return __name__.partition(".")[0] if plugin.name in self.own() else None
