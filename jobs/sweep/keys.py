"""What can be swept: the names, types and effects of all keys, each said once.

A key is called as the option of `report`, `energy` or `simulate` that it stands for. chip.PART.KEY is a number of a
chip's file; chip.PART.KEY+PART.KEY are several that vary together, as a smaller memory also costs less to read.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ...backends import BACKENDS
from ...chip import MAPPINGS, load_description
from ...chip.description import fault_of, keys_of_chips
from ...coding import ENCODERS
from ...energy import DigitalEnergy, load_table
from ...errors import InputError
from ...models.layers.settings import check_attention, check_weights
from ...neuro import NEURONS, AdaptiveThreshold
from ...simulation.model import MODES

_KINDS = {float: "a number", int: "an integer", str: "a text", bool: "true or false"}


@dataclass(frozen=True)
class Key:
    """A setting that a sweep can vary.

    Attributes:
        kind: float, int, str or bool.
        effect: group of figures that depend on it; each objective lists the groups that it depends on.
        check: raises an InputError if a value cannot be; None if every value of the kind can.
        words: texts that stand for another value, such as "all" for None.
        by_layer: layers can have values of their own: KEY.PATTERN, where a pattern matches names of layers.
    """

    kind: type
    effect: str
    check: Callable[[Any], object] | None = None
    words: Mapping[str, Any] = field(default_factory=dict)
    by_layer: bool = False

    def read(self, value: Any, where: str) -> Any:
        """Return a value as it is kept; raise an InputError if it has another type or cannot be."""
        if isinstance(value, str) and value in self.words:
            return self.words[value]
        if any(value is meant for meant in self.words.values()):  # from the line, where it was read before
            return value
        if self.kind is float and type(value) is int:
            value = float(value)
        if type(value) is not self.kind or (isinstance(value, float) and not math.isfinite(value)):
            expected = " or ".join([_KINDS[self.kind], *map(repr, self.words)])
            raise InputError(f"{where}: expected {expected}, got {value!r}.")
        if self.check is not None:
            self.check(value)
        return value

    def read_text(self, text: str, where: str) -> Any:
        """Return the value that was typed on a command line."""
        if text in self.words:
            return self.words[text]
        try:
            value = {"true": True, "false": False}[text] if self.kind is bool else self.kind(text)
        except (ValueError, KeyError):
            value = text  # `read` says what is wrong with it
        return self.read(value, where)

    def shown(self, value: Any) -> str:
        """Return a value as a table shows it, and as it can be typed."""
        word = next((word for word, meant in self.words.items() if value == meant), None)
        if word is not None:
            return word
        return f"{value:g}" if isinstance(value, float) else str(value).lower() if value is True else str(value)


def _check_mode(mode: str) -> None:
    if mode not in MODES:
        raise InputError(f"mode: expected one of {', '.join(MODES)}; got {mode!r}.")


def _at_least(least: int, name: str) -> Callable[[int], None]:
    def check(value: int) -> None:
        if value < least:
            raise InputError(f"{name}: expected an integer >= {least}, got {value}.")

    return check


def _of_digital(name: str) -> Callable[[Any], object]:
    return lambda value: DigitalEnergy(**{name: value})


KEYS: dict[str, Key] = {
    # How layers spike, as for `report`.
    "neuron": Key(str, "spikes", NEURONS.get, by_layer=True),
    "k": Key(float, "spikes", AdaptiveThreshold, by_layer=True),
    "layers": Key(str, "spikes"),
    "skip": Key(str, "spikes", words={"none": None}),
    "include_head": Key(bool, "spikes"),
    "attention": Key(str, "spikes", check_attention, words={"none": None}),
    "weights": Key(str, "weights", lambda weights: check_weights(weights, None)),
    "group_size": Key(int, "weights", lambda size: check_weights("int8", size), words={"all": None}),
    "encoder": Key(str, "code", ENCODERS.get),
    "backend": Key(str, "backend", lambda name: BACKENDS.resolve(name, "backend", "auto")),
    # What a run costs, as for `energy`.
    "table": Key(str, "table", load_table),
    "reads_per": Key(str, "reads", _of_digital("reads_per")),
    "block_bytes": Key(int, "reads", _at_least(1, "block_bytes")),
    "shared_tokens": Key(int, "reads", _at_least(1, "shared_tokens")),
    "shifts_per": Key(str, "costs", _of_digital("shifts_per")),
    "sums_in": Key(str, "costs", _of_digital("sums_in")),
    "sram_bytes": Key(int, "costs", _at_least(1, "sram_bytes")),
    "on_chip_bytes": Key(int, "costs", _of_digital("on_chip_bytes"), words={"all": None}),
    "leakage_w": Key(float, "costs"),
    "token_s": Key(float, "costs", _of_digital("token_s")),
    # Where it runs, as for `simulate`.
    "chip": Key(str, "chip", load_description),
    "mapping": Key(str, "chip", MAPPINGS.get),
    "mode": Key(str, "chip", _check_mode),
    "stream": Key(bool, "chip"),
    "chip_tokens": Key(int, "chip", _at_least(1, "chip_tokens")),
}


# Keys of a chip that vary together, and their values.
_TIE = "+"


def _chip_key(name: str, key: str) -> Key:
    """Return the key of a number of a chip's file, as it is called in a sweep and there.

    Raises:
        InputError: chips have no such key; the message names those that are spelt alike, or all.
    """
    kinds = keys_of_chips()
    if key not in kinds:
        raise InputError(unknown(key, kinds, "key of a chip", where=name))

    def check(value: Any) -> None:
        if (fault := fault_of(key, value)) is not None:
            raise InputError(f"{name}: {fault}, got {value!r}.")

    return Key(kinds[key], "chip", check)


def _tied_key(name: str, keys: list[str]) -> Key:
    """Return the key of several numbers of a chip that vary together; a value is their values with + between."""
    for key in keys:
        _chip_key(name, key)
        if keys.count(key) > 1:
            raise InputError(f"{name}: {key} stands twice.")
    return Key(str, "chip", lambda text: tied_values(name, text))


def tied_values(name: str, text: str) -> dict[str, Any]:
    """Return the values of keys of a chip by their names in its file.

    >>> tied_values("chip.core.sram_bytes+core.access_pj", "32768+40")
    {'core.sram_bytes': 32768, 'core.access_pj': 40.0}
    """
    keys, values = name.partition(".")[2].split(_TIE), text.split(_TIE)
    if len(values) != len(keys):
        raise InputError(f"{name}: expected {len(keys)} values with {_TIE} between, got {text!r}.")
    return {key: _chip_key(name, key).read_text(value.strip(), name) for key, value in zip(keys, values, strict=True)}


def chip_values(point: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of keys of a chip at a point of a sweep, by their names in its file."""
    found: dict[str, Any] = {}
    for name, value in point.items():
        base, key = split_key(name)
        if base == "chip" and key is not None:
            found |= tied_values(name, value) if _TIE in key else {key: value}
    return found


def split_key(name: str) -> tuple[str, str | None]:
    """Return a key and what stands behind its dot, or None: a pattern of layers, or a key of a chip.

    >>> split_key("k.*down_proj"), split_key("k")
    (('k', '*down_proj'), ('k', None))
    """
    key, dot, pattern = name.partition(".")
    return (key, pattern) if dot else (name, None)


def key_of(name: str) -> Key:
    """Return the key of that name, which may have a pattern behind it, or be a key of a chip (chip.core.lanes).

    Raises:
        InputError: there is none; the message names those that are spelt alike.
    """
    base, pattern = split_key(name)
    if base not in KEYS:
        raise InputError(unknown(base, KEYS, "sweep key"))
    if base == "chip" and pattern is not None:
        return _tied_key(name, pattern.split(_TIE)) if _TIE in pattern else _chip_key(name, pattern)
    if pattern is not None and not (KEYS[base].by_layer and pattern):
        able = " and ".join(key for key in KEYS if KEYS[key].by_layer)
        raise InputError(f"{name}: expected KEY or, for {able}, KEY.PATTERN such as k.*down_proj; got {name!r}.")
    return KEYS[base]


def unknown(name: str, known: Iterable[str], what: str, where: str | None = None) -> str:
    """Return the message that there is no such name, with those that are spelt alike, else with all."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=3)
    meant = f"Did you mean {' or '.join(near)}?" if near else f"There are {', '.join(known)}."
    return f"{where or name}: expected the name of a {what}, got {name!r}. {meant}"
