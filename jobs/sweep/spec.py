"""A sweep as it is written: a TOML file, and KEY=VALUES on a command line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from ...errors import InputError
from ...files import check_format, read_toml
from .keys import Key, key_of, unknown
from .settings import Range, SweepSettings

FORMAT = 1
_EXAMPLE = "examples/sweep.toml"
# What a file may hold besides `format` and the keys, and its type.
_SETTINGS = {f.name: f for f in fields(SweepSettings) if f.init and f.name != "options"}
_TYPES: dict[str, tuple[type, ...]] = {
    "num_tokens": (int,),
    "context": (int,),
    "objectives": (list,),
    "tasks": (list,),
    "limit": (int,),
    "trials": (int,),
    "seed": (int,),
}


def read_spec(path: Path) -> dict[str, Any]:
    """Read a TOML file that says what to sweep.

    It holds `format = 1`, any of the settings of `SweepSettings`, and the keys in a table [options]: a value, a list
    of values, a range {low = 1, high = 4, step = 0.5}, or of k and neuron a table of these by pattern of layers. Files
    that it names are looked for in its folder first.

    Args:
        path: the file.
    Returns:
        Arguments of `SweepSettings`.
    Raises:
        InputError: it cannot be read, or holds something else; the message says where.
    """
    path, content = read_toml(
        path, path.parent, "spec of a sweep", lambda: sorted(file.stem for file in path.parent.glob("*.toml"))
    )
    check_format(content, FORMAT, str(path), _EXAMPLE)
    found: dict[str, Any] = {}
    for name, value in content.items():
        if name == "options":
            if not isinstance(value, dict):
                raise InputError(f"{path}: options: expected a table [options], got {value!r}.")
            found["options"] = dict(_flat(value, path))
        elif name in _SETTINGS:
            kinds = _TYPES.get(name, (str,))
            if type(value) not in kinds or (kinds == (list,) and not all(isinstance(v, str) for v in value)):
                expected = {int: "an integer", str: "a text", list: "a list of names"}[kinds[0]]
                raise InputError(f"{path}: {name}: expected {expected}, got {value!r}.")
            found[name] = value
        elif name != "format":
            raise InputError(f"{path}: {unknown(name, ['options', *_SETTINGS], 'setting')} Keys stand in [options].")
    for name in ("objectives", "tasks"):
        if name in found:
            found[name] = tuple(found[name])
    for name in ("text", "model", "data"):
        if name in found:
            found[name] = _beside(path, found[name])
    for name in ("text", "data"):
        if name in found:
            found[name] = Path(found[name])
    return found


def _flat(options: Mapping[str, Any], path: Path) -> Iterable[tuple[str, Any]]:
    """Yield keys and values, with a table of patterns as one key for each of them."""
    for name, value in options.items():
        if not isinstance(value, dict):
            where = isinstance(value, list | str) and name in ("table", "chip")
            yield name, _files_beside(path, value) if where else value
        elif value.keys() & {"low", "high"}:
            yield name, _range(f"{path}: {name}", value)
        else:
            yield from _flat({f"{name}.{pattern}": below for pattern, below in value.items()}, path)


def _range(name: str, value: Mapping[str, Any]) -> Range:
    fits = {"low", "high"} <= value.keys() <= {"low", "high", "step", "log"}
    numbers = [value.get(part, 1) for part in ("low", "high", "step")]
    if not fits or not all(type(n) in (int, float) for n in numbers) or type(value.get("log", False)) is not bool:
        raise InputError(
            f"{name}: expected a range {{low = 1, high = 4}} and perhaps step or log, got {dict(value)!r}."
        )
    return Range(**value)


def _files_beside(path: Path, value: Any) -> Any:
    if isinstance(value, list):
        return [_files_beside(path, one) for one in value]
    return _beside(path, value) if isinstance(value, str) and value.endswith(".toml") else value


def _beside(path: Path, name: str) -> str:
    """Return the path of a file in the folder of the spec, if it is there, else the name as it is."""
    return str(path.parent / name) if (path.parent / name).exists() else name


def read_options(typed: Iterable[str]) -> dict[str, Any]:
    """Return the options that were typed as KEY=VALUE, KEY=VALUE,VALUE or KEY=LOW:HIGH[:STEP or :log].

    Raises:
        InputError: there is no such key, it stands twice, or a value has another type.

    >>> read_options(["k=2,2.5", "encoder=ternary"])
    {'k': [2.0, 2.5], 'encoder': 'ternary'}
    """
    found: dict[str, Any] = {}
    for text in typed:
        name, equals, values = text.partition("=")
        if not equals:
            raise InputError(f"options {text!r}: expected KEY=VALUES, such as k=2,3,4.")
        if name in found:
            raise InputError(f"{name}: is given twice. Give all its values at once: {name}=A,B,C.")
        key = key_of(name)
        is_range = ":" in values and key.kind in (int, float)
        if is_range:
            found[name] = _typed_range(name, key, values)
        else:
            read = [key.read_text(value.strip(), name) for value in values.split(",")] if values else []
            found[name] = read if len(read) != 1 else read[0]
    return found


def _typed_range(name: str, key: Key, text: str) -> Range:
    low, high, *more = text.split(":")
    try:
        step = None if more in ([], ["log"]) else float(*more)
        return Range(key.kind(low), key.kind(high), step, more == ["log"])
    except (TypeError, ValueError) as error:
        raise InputError(f"{name}: expected LOW:HIGH, LOW:HIGH:STEP or LOW:HIGH:log, got {text!r}.") from error
