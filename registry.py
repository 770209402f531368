"""Plug-ins by name, and settings as JSON.

There is one registry for each kind of plug-in. It holds the classes that registered themselves and, where other
packages can bring some, those that they announce (`plugins`). Shared tests run over it, the command line looks names up
in it, and a saved model stores the names of its neuron, encoder and backend.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Set
from typing import Any, Generic, TypeVar

from .errors import InputError, SpikebrainError
from .fingerprint import fingerprint, state_of
from .plugins import Announced, PlugIns

T = TypeVar("T")
C = TypeVar("C", bound=type)

_REGISTRIES: dict[str, Registry] = {}


class Registry(PlugIns[type[T]], Collection[str], Generic[T]):
    """Classes by name: first those that registered themselves, in that order, then those of other packages.

    Every function takes objects, so a class works without being registered. It needs a name to be saved with a model
    and to be chosen on the command line. Only names that can be used are listed; to list them imports all plug-ins.

    Args:
        kind: the kind of plug-in, such as "encoder", for messages and saved settings.
        contract: the base class of all of them.
        group: of the entry points by which other packages bring some; None if they cannot.
    """

    def __init__(self, kind: str, contract: type[T], group: str | None = None) -> None:
        super().__init__(kind, group)
        self.contract = contract
        self._classes: dict[str, type[T]] = {}
        _REGISTRIES[kind] = self

    def register(self, name: str) -> Callable[[C], C]:
        """Return a class decorator that registers the class under `name` (lower case, words joined by hyphens).

        Raises:
            InputError: another class has that name.
        """

        def enter(cls: C) -> C:
            known = self._classes.get(name)
            # The same class may come again when a module is executed twice (a notebook cell, a reload).
            if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
                raise InputError(
                    f"{self.kind} name {name!r}: already taken by {known.__qualname__} of {known.__module__}. Use "
                    f"another name for that of {cls.__module__}."
                )
            self._classes[name] = cls  # pyright: ignore[reportArgumentType]
            return cls

        return enter

    def create(self, name: str) -> T:
        """Return an object of the class of that name, with default settings.

        Raises:
            InputError: as `get`; or the class has settings without a default.
        """
        cls = self.get(name)
        try:
            return cls()
        except SpikebrainError:
            raise
        except Exception as error:
            raise InputError(
                f"{self.kind} {name!r}: {cls.__qualname__}() of {cls.__module__} failed: {type(error).__name__}: "
                f"{error}. Give each of its settings a default, or pass an object."
            ) from error

    def get(self, name: str) -> type[T]:
        """Return the class of that name.

        Raises:
            InputError: no such name, and the message lists those there are; or the plug-in of that name cannot be used.
        """
        if self.announced(name):
            return self.load_announced(name)
        if name not in self._classes:
            raise InputError(f"{self.kind}: expected one of {', '.join(self)}; got {name!r}.")
        return self._classes[name]

    @property
    def registered(self) -> dict[str, type[T]]:
        """The classes that registered themselves, by name."""
        return dict(self._classes)

    def own(self) -> list[str]:
        """Return the names of the classes that registered themselves."""
        return list(self._classes)

    def name_of(self, value: T) -> str | None:
        """Return the name of the class of `value`, or None."""
        for name, cls in self._classes.items():
            if type(value) is cls:
                return name
        if not isinstance(value, self.contract):
            return None
        package = _package_of(type(value))
        names = [p.name for p in self.announced() if p.top == package]
        return next((n for n in names if self.fault(n) is None and self.get(n) is type(value)), None)

    def resolve(self, value: Any, where: str, *words: str | None) -> Any:
        """Return `value`, or an object with default settings if `value` is a registered name.

        Args:
            value: an object or a name.
            where: the argument's name for messages, such as "SpikeSettings.encoder".
            words: what else is allowed there and is returned as it is, such as "auto" or None.
        Raises:
            InputError: no such name, a class instead of an object, or an object of another kind.
        """
        if isinstance(value, self.contract) or (isinstance(value, str | None) and value in words):
            return value
        if isinstance(value, str) and self.knows(value):
            return self.create(value)
        example = next(iter(self._classes.values())).__name__
        got = repr(value)
        if isinstance(value, type) and issubclass(value, self.contract):
            example, got = value.__name__, f"the class {value.__name__}"
        raise InputError(
            f"{where}: expected an object such as {example}(), or one of the names "
            f"{', '.join([*(word for word in words if word), *self])}; got {got}."
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __len__(self) -> int:
        return len(self.names())

    def read(self, name: str, value: Any) -> type[T]:
        """Return what an entry point names, if it is a class of this kind."""
        if not isinstance(value, type) or not issubclass(value, self.contract):
            raise InputError(f"expected a class derived from {self.contract.__name__}, got {value!r}")
        if inspect.isabstract(value):
            lacks = ", ".join(sorted(value.__abstractmethods__))  # pyright: ignore[reportAttributeAccessIssue]
            raise InputError(
                f"expected a class with all methods of {self.contract.__name__}; {value.__name__} lacks {lacks}"
            )
        return value

    def owner(self, plugin: Announced) -> str | None:
        """Return who has registered another class under the name of a plug-in of a package."""
        known = self._classes.get(plugin.name)
        if known is None or _package_of(known) == plugin.top:
            return None
        return f"{_package_of(known)} ({known.__module__}:{known.__qualname__})"


def _package_of(cls: type) -> str:
    return cls.__module__.partition(".")[0]


@dataclasses.dataclass(frozen=True)
class Raw:
    """A field of saved settings that is already JSON and is read back unchanged."""

    content: Any


def to_dict(value: Any) -> dict[str, Any]:
    """Return a registered settings object as JSON values: its kind, name, version and every field.

    An object is written whole or not at all. A class can write its fields in its own way by defining `to_fields()` and
    the class method `from_fields(fields)`. It must raise its attribute `settings_version` (1 by default) when old
    fields can no longer be read.

    Raises:
        InputError: the class has no registered name, or a field holds something that JSON cannot hold.

    >>> from spikebrain.neuro import AdaptiveThreshold
    >>> to_dict(AdaptiveThreshold(k=2.0))["k"]
    2.0
    """
    found = next(((r, name) for r in _REGISTRIES.values() if (name := r.name_of(value)) is not None), None)
    if found is None:
        kind = next((r.kind for r in _REGISTRIES.values() if isinstance(value, r.contract)), "class")
        raise InputError(
            f"save: {kind} {type(value).__name__} has no name by which load could find it. Decorate the class with "
            f"@{kind.upper()}S.register(...), or announce it as an entry point of its package."
        )
    registry, name = found
    content = {"kind": registry.kind, "name": name, "version": getattr(value, "settings_version", 1)}
    fields = dict(_fields(value))
    if taken := content.keys() & fields.keys():
        raise InputError(
            f"save: {type(value).__name__} has a field called {', '.join(sorted(taken))}, which a file needs for the "
            "class itself. Rename the field."
        )
    return {**content, **{key: _written(field, f"{type(value).__name__}.{key}") for key, field in fields.items()}}


def from_dict(content: Mapping[str, Any]) -> Any:
    """Build the object that `to_dict` wrote.

    Raises:
        InputError: the class is not registered here, or the version or the fields do not match those of the class.
    """
    if not isinstance(content, Mapping) or not {"kind", "name", "version"} <= content.keys():
        raise InputError(f"settings: expected kind, name, version and fields, as to_dict writes them, got {content!r}.")
    fields = dict(content)
    kind, name, version = (fields.pop(key) for key in ("kind", "name", "version"))
    if kind not in _REGISTRIES:
        raise InputError(f"settings: expected one of the kinds {', '.join(_REGISTRIES)}; got {kind!r}.")
    cls = _REGISTRIES[kind].get(name)
    expected = getattr(cls, "settings_version", 1)
    if version != expected:
        raise InputError(
            f"{kind} {name!r}: expected settings of version {expected}, got {version!r}. Use the version of spikebrain "
            "that wrote them, or make the settings again."
        )
    read = {key: _read(value) for key, value in fields.items()}
    own = hasattr(cls, "from_fields")
    if not own:
        known = {f.name for f in dataclasses.fields(cls) if f.init} if dataclasses.is_dataclass(cls) else set()
        _check_fields(read.keys(), known, f"{kind} {name!r}")
    try:
        value = cls.from_fields(read) if own else cls(**read)
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{kind} {name!r}: its fields {read} are not those of the class: {error}. The file was changed."
        ) from error
    if own:  # a field that its file lacks must not become a default
        _check_fields(read.keys(), value.to_fields().keys(), f"{kind} {name!r}")
    return value


def _check_fields(found: Set[str], known: Set[str], where: str) -> None:
    if found != known:
        missing, unknown = sorted(known - found), sorted(found - known)
        raise InputError(f"{where}: fields missing {missing}, unknown {unknown}. The file was changed.")


def _fields(value: Any) -> list[tuple[str, Any]]:
    if hasattr(value, "to_fields"):
        return list(value.to_fields().items())
    fields = dataclasses.fields(value) if dataclasses.is_dataclass(value) else ()
    return [(field.name, getattr(value, field.name)) for field in fields if field.init]


def _written(value: Any, where: str) -> Any:
    """Return a field as a JSON value; objects of registered classes are written by `to_dict`."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Raw):
        return {"raw": value.content}
    if isinstance(value, tuple | list):
        return [_written(v, where) for v in value]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {"mapping": {key: _written(v, where) for key, v in value.items()}}
    if any(r.name_of(value) is not None for r in _REGISTRIES.values()):
        return to_dict(value)
    if isinstance(value, type) or callable(value) or not dataclasses.is_dataclass(value):
        raise InputError(
            f"save: {where} is {value!r}, which a file cannot hold. Use numbers, texts and registered objects, or "
            "leave the setting out before saving."
        )
    return to_dict(value)  # raises: the class has no name


def _read(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_read(v) for v in value)
    if not isinstance(value, Mapping):
        return value
    # Objects have a kind, a name and a version, so these two have a key that none of them has alone.
    if value.keys() == {"raw"}:
        return value["raw"]
    if value.keys() == {"mapping"}:
        return {key: _read(v) for key, v in value["mapping"].items()}
    return from_dict(value)


def describe(value: Any) -> str:
    """Return a settings object as one line of text with every setting, the same in every process.

    It is JSON if a file can hold the object; else the name of its class, its plain fields, and a checksum of all of
    them and of the code of the class (`fingerprint`), which also follows the JSON of a class of another package. So two
    different settings never have the same text.
    """
    try:
        text = json.dumps(to_dict(value), sort_keys=True)
    except InputError:
        return _with_fingerprint(value)
    return text if _package_of(type(value)) == __name__.partition(".")[0] else f"{text} #{fingerprint(value)}"


def label(value: Any) -> str:
    """Return what reports call a plug-in: its repr if its class is registered and has one, else as `describe`."""
    registered = any(r.name_of(value) is not None for r in _REGISTRIES.values())
    return repr(value) if registered and type(value).__repr__ is not object.__repr__ else _with_fingerprint(value)


def _with_fingerprint(value: Any) -> str:
    plain = {name: v for name, v in state_of(value).items() if v is None or isinstance(v, bool | int | float | str)}
    fields = ", ".join(f"{name}={v!r}" for name, v in plain.items())
    return f"{type(value).__name__}({fields}) #{fingerprint(value)}"
