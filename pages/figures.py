"""The figures of a result, read so that what is missing is an error that says where."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import InputError


class Figures(Mapping[str, Any]):
    """An object of a JSON file. What it lacks raises an InputError with the whole path to it.

    >>> Figures({"energy": {"paper": 1}}, "report.json")["energy"]["digital"]  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    spikebrain.errors.InputError: report.json, energy.digital: expected a figure, it is missing. ...
    """

    def __init__(self, content: Mapping[str, Any], where: str, path: str = "") -> None:
        self._content, self._where, self._path = content, where, path

    def __getitem__(self, key: str) -> Any:
        path = f"{self._path}.{key}".lstrip(".")
        if key not in self._content:
            raise InputError(f"{self._where}, {path}: expected a figure, it is missing. {_AGAIN}")
        value = self._content[key]
        return Figures(value, self._where, path) if isinstance(value, Mapping) else self._list(value, path)

    def __contains__(self, key: object) -> bool:
        return key in self._content

    def get(self, key: str, default: Any = None) -> Any:
        """Return a figure that may be missing."""
        return self[key] if key in self._content else default

    def __iter__(self) -> Iterator[str]:
        return iter(self._content)

    def __len__(self) -> int:
        return len(self._content)

    def number(self, key: str) -> float:
        """Return a figure that must be a number."""
        value = self[key]
        if isinstance(value, bool) or not isinstance(value, int | float):
            path = f"{self._path}.{key}".lstrip(".")
            raise InputError(f"{self._where}, {path}: expected a number, got {value!r}. {_AGAIN}")
        return value

    def _list(self, value: Any, path: str) -> Any:
        if not isinstance(value, list):
            return value
        return [
            Figures(item, self._where, f"{path}[{i}]") if isinstance(item, Mapping) else item
            for i, item in enumerate(value)
        ]


_AGAIN = "The file was changed, or is of another version: run the command again."
