"""What a sweep is to run, checked before a model is loaded."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from inspect import signature
from pathlib import Path
from typing import Any

from ...coding import ENCODERS
from ...errors import InputError, SpikebrainError
from ...neuro import NEURONS
from ..eval_tasks import check_tasks
from ..given import SPIKES, refuse
from ..inputs import check_seed, check_windows
from .bench import CHIP_TOKENS, Point, chip_of, energy_of, settings_of
from .keys import KEYS, key_of, split_key
from .objectives import OBJECTIVES, Objective, objective_of

METHODS = ("grid", "search")
# A grid is listed whole; a larger one would not end.
_MOST_POINTS = 100_000
# Points that are tried before the first run; if none of them can be, the settings are wrong.
_TRIED = 256


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included.

    Attributes:
        low: the least.
        high: the largest.
        step: between two of them; a grid needs it.
        log: a search draws their logarithms evenly.
    """

    low: int | float
    high: int | float
    step: int | float | None = None
    log: bool = False

    def values(self) -> list[int | float]:
        """Return the numbers; there must be a step."""
        assert self.step is not None
        number = math.floor((self.high - self.low) / self.step + 1e-9) + 1
        return [round(self.low + i * self.step, 12) for i in range(number)]


@dataclass(frozen=True)
class SweepSettings:
    """Which settings of a model are tried, and what is asked of each.

    Attributes:
        options: by key (`KEYS`; k and neuron also as "k.PATTERN", for the layers whose names match; "chip.core.lanes"
            for a number of the chip, "chip.core.sram_bytes+core.access_pj" for several that vary together, with values
            such as "32768+40"): a list of values or a `Range` is swept, a single value holds for all runs.
        model: anything that `load` takes.
        text: a UTF-8 file, or None for the text of the standard library's pydoc_data.topics.
        num_tokens: tokens from the start of the text; a shorter text is used whole.
        context: tokens per window.
        objectives: names in `OBJECTIVES`.
        tasks: that the objective accuracy is measured on: names as for `EvalSettings`.
        data: folder with the files of the tasks, or with a folder for each task.
        limit: documents of each task, from its first on; None for all.
        method: "grid" runs all combinations; "search" lets NSGA-II choose.
        trials: runs of a search; None for 64.
        seed: of a search; None for 0.
        device: "cpu"; "cuda"; or "auto" for a GPU if there is one, all backends can run on it and no chip is simulated.
        swept: keys that vary, with their values; made from `options`.
        fixed: keys that do not, with their value; made from `options`.
    Raises:
        InputError: a key or value that cannot be, nothing to sweep, or a key on which no objective depends.
    """

    options: Mapping[str, Any]
    model: str = "smollm2"
    text: Path | None = None
    num_tokens: int = 2048
    context: int = 512
    objectives: tuple[str, ...] = ("perplexity", "spikes")
    tasks: tuple[str, ...] = ()
    data: Path | None = None
    limit: int | None = None
    method: str = "grid"
    trials: int | None = None
    seed: int | None = None
    device: str = "auto"
    swept: dict[str, list[Any] | Range] = field(init=False)
    fixed: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        check_windows(self.num_tokens, self.context)
        self._check_method()
        if not self.objectives:
            raise InputError(f"objectives: expected at least one of {', '.join(OBJECTIVES)}; got none.")
        for name in self.objectives:
            objective_of(name)
            if self.objectives.count(name) > 1:
                raise InputError(f"objectives: {name} stands twice.")
        if "accuracy" in self.objectives:
            check_tasks(self.tasks, self.data, self.limit, "the objective accuracy")
        else:
            refuse(self, ("tasks", "data", "limit")[not self.tasks :], "without the objective accuracy")
        read = {name: _read(name, value) for name, value in self.options.items()}
        object.__setattr__(
            self, "swept", {n: self._values(n, v) for n, v in read.items() if isinstance(v, list | Range)}
        )
        object.__setattr__(self, "fixed", {n: v for n, v in read.items() if n not in self.swept})
        if not self.swept:
            raise InputError("options: expected at least one key with values to sweep, such as k=2,3,4; got none.")
        if self.method == "grid" and self.num_points > _MOST_POINTS:
            raise InputError(
                f"options: expected at most {_MOST_POINTS:,} combinations, got {self.num_points:,}. Search."
            )
        self._check_effects()
        self._check_points()

    def _check_method(self) -> None:
        if self.method not in METHODS:
            raise InputError(f"method: expected one of {', '.join(METHODS)}; got {self.method!r}.")
        if self.method == "grid":
            refuse(self, ("trials", "seed"), "on a grid, which is run whole; they are for `method` search")
        if self.trials is not None and not 1 <= self.trials <= _MOST_POINTS:
            raise InputError(f"trials: expected an integer from 1 to {_MOST_POINTS}, got {self.trials}.")
        check_seed(self.seed or 0)

    @property
    def on_chip(self) -> bool:
        """Whether a chip is simulated."""
        return any(objective.on_chip for objective in self.chosen.values())

    @property
    def chosen(self) -> dict[str, Objective]:
        """The objectives, by name."""
        return {name: OBJECTIVES[name] for name in self.objectives}

    @property
    def num_points(self) -> int:
        """Runs of the whole sweep."""
        if self.method == "search":
            return 64 if self.trials is None else self.trials
        return math.prod(len(values) for values in self.swept.values() if isinstance(values, list))

    def values_of(self, base: str) -> list[Any]:
        """Return all values that a key or its patterns can have; of a range both ends."""
        found: list[Any] = [value for name, value in self.fixed.items() if split_key(name)[0] == base]
        for name, values in self.swept.items():
            if split_key(name)[0] == base:
                found += [values.low, values.high] if isinstance(values, Range) else values
        return found

    def grid(self) -> Iterator[Point]:
        """Yield all points of a grid, the last key varying fastest; of a search those at the ends of its ranges."""
        lists = [[v.low, v.high] if isinstance(v, Range) else v for v in self.swept.values()]
        for values in itertools.product(*lists):
            yield self.point(dict(zip(self.swept, values, strict=True)))

    def point(self, swept: Point) -> Point:
        """Return values of the keys that vary with those that do not, in the order given: patterns count in it."""
        values = {**self.fixed, **swept}
        return {name: values[name] for name in self.options}

    @cached_property
    def key_names(self) -> list[str]:
        """Keys that were given, without patterns."""
        return list(dict.fromkeys(split_key(name)[0] for name in self.options))

    @property
    def spikes_given(self) -> dict[str, bool]:
        """Keys that say how a model spikes, for `refuse_spikes`."""
        return {name: True for name in self.key_names if name in (*SPIKES, "neuron")}

    def _values(self, name: str, values: list[Any] | Range) -> list[Any] | Range:
        if isinstance(values, list):
            return values
        if self.method == "search":
            return values
        if values.step is None or values.log:
            raise InputError(f"{name}: expected a range with a step in a grid, such as 2:4:0.5. A search needs none.")
        if (values.high - values.low) / values.step > _MOST_POINTS:
            raise InputError(f"{name}: expected at most {_MOST_POINTS:,} values. Take a larger step.")
        return [_read(name, _whole(value)) for value in values.values()]

    def _check_effects(self) -> None:
        """Raise an InputError if a key was given on which no figure would depend."""
        lossy = any(not ENCODERS.get(name).lossless for name in self.values_of("encoder"))
        effects = {effect for objective in self.chosen.values() for effect in objective.effects}
        listed = " and ".join(self.objectives)
        for name in self.key_names:
            effect = KEYS[name].effect
            if effect in effects or (effect == "code" and lossy and "lossy" in effects):
                continue
            able = [other for other, objective in OBJECTIVES.items() if effect in objective.effects]
            exact = {"code": ", as these codes are exact", "backend": ", as every backend gives the same sums"}
            raise InputError(
                f"{name}: has no effect on {listed}{exact.get(effect, '')}. Leave it out, or add one of the objectives "
                f"{', '.join(able)}."
            )
        if "block_bytes" in self.key_names and "block" not in self.values_of("reads_per"):
            raise InputError("block_bytes: has no effect unless reads_per is block. Give both.")
        if "k" in self.key_names:
            fixed = [name for name in self.values_of("neuron") if "k" not in signature(NEURONS.get(name)).parameters]
            if fixed:
                raise InputError(f"k: has no effect on the neuron {fixed[0]}, which has no k. Sweep that neuron apart.")
        if {"k", "k.*"} <= self.options.keys():
            raise InputError("k: has no effect beside k.*, which holds for all layers. Leave out one of both.")
        longest = max(self.values_of("chip_tokens") or [CHIP_TOKENS])
        if self.on_chip and longest > self.context:
            raise InputError(f"chip_tokens: expected at most one window of {self.context} tokens, got {longest}.")

    def _check_points(self) -> None:
        """Raise an InputError if no combination can be; if some can, the others fail when they are run."""
        first: SpikebrainError | None = None
        for point in itertools.islice(self.grid(), _TRIED):
            try:
                settings_of(point)
                if any("costs" in objective.effects for objective in self.chosen.values()):
                    energy_of(point)
                if self.on_chip:
                    chip_of(point)
                return
            except SpikebrainError as error:
                first = first or error
        assert first is not None
        raise first


def _read(name: str, value: Any) -> Any:
    """Return the value of a key, a list of values or a range, checked."""
    key = key_of(name)
    if isinstance(value, Range):
        if key.kind not in (int, float):
            raise InputError(f"{name}: expected a list of values, got the range {value}.")
        low, high = (key.read(_whole(end) if key.kind is int else end, name) for end in (value.low, value.high))
        if key.kind is int and value.step is not None:
            key.read(_whole(value.step), f"{name}: step")
        rises = value.low < value.high and (value.step is None or (value.step > 0 and not value.log))
        if not rises or (value.log and value.low <= 0):
            raise InputError(
                f"{name}: expected LOW < HIGH with a step above 0, or with log and LOW above 0; got {value}."
            )
        return Range(low, high, value.step, value.log)
    if not isinstance(value, list | tuple):
        return key.read(value, name)
    read = [key.read(v, name) for v in value]
    if not read:
        raise InputError(f"{name}: expected at least one value, got an empty list.")
    twice = [value for i, value in enumerate(read) if value in read[:i]]
    if twice:
        raise InputError(f"{name}: {key.shown(twice[0])} stands twice. Name each value once.")
    return read


def _whole(value: int | float) -> float | int:
    return int(value) if isinstance(value, float) and value.is_integer() else value
