"""A sweep as a queue of numbered points in an Optuna study: each is run once, by whichever process takes it.

All points are trials in the queue from the start. An attempt at a point is one trial. It ends complete, failed (its own
error is kept), or lost: its process died. A lost attempt is closed and the point goes to the end of the queue as a new
trial. Taking a trial out of the queue is one step of the storage that only one process can make. Should two processes
put the same point back at the same time, the attempt with the lower number counts and the other is dropped when it is
taken. So no step needs a lock, and each can be repeated after a crash at any moment.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...files import locked
from .bench import Point
from .identity import check_identity
from .owner import BEAT_S, lives, this_process
from .settings import Range, SweepSettings
from .storage import name_of, open_storage, optuna, quiet, speaks_of

_IDENTITY = "spikebrain"
_OWNER = "owner "
# A grid is taken in a random order, always the same, so that the first runs are spread over all of it.
_GRID_SEED = 0


@dataclass(frozen=True)
class Attempt:
    """A trial that this process has taken.

    Attributes:
        trial_id: of the storage.
        point: its number.
        values: by key.
    """

    trial_id: int
    point: int
    values: Point


@dataclass(frozen=True)
class Settled:
    """How a point ended.

    Attributes:
        number: of the point.
        values: by key.
        result: figures by name; None if it failed.
        error: message; None unless it failed.
    """

    number: int
    values: dict[str, Any]
    result: dict[str, float] | None
    error: str | None


class Study:
    """The queue and the results of a sweep.

    Args:
        settings: of the sweep.
        url: of a database; None for a journal.
        name: of the study in it.
        out: folder of the sweep.
    """

    def __init__(self, settings: SweepSettings, url: str | None, name: str, out: Path) -> None:
        self.settings, self.where = settings, name_of(url, out)
        self._out = out
        self._storage = open_storage(url, out)
        objectives = settings.chosen.values()
        directions = ["minimize" if objective.better == "lower" else "maximize" for objective in objectives]
        with quiet(), speaks_of(self.where):
            self._study = optuna().create_study(
                storage=self._storage, study_name=name, directions=directions, load_if_exists=True
            )
            self._id = self._storage.get_study_id_from_name(name)
        if settings.method == "grid":
            self._space = {key: values for key, values in settings.swept.items() if isinstance(values, list)}
            self._study.sampler = optuna().samplers.GridSampler(self._space, seed=_GRID_SEED)
        me = this_process()
        self._me = f"{_OWNER}{me['host']} {me['boot']} {me['pid']} {me['started']}"

    @property
    def _identity(self) -> Any:
        return self._storage.get_study_user_attrs(self._id).get(_IDENTITY)

    def begin(self, identity: dict[str, Any], retry_failed: bool = False) -> int:
        """Fill the queue with all points that are not settled, and return the number of attempts that were lost.

        Args:
            identity: of the study.
            retry_failed: points that failed go into the queue, too.
        Raises:
            InputError: it is of something else.
        """
        with quiet(), speaks_of(self.where), locked(self._out):
            there = self._identity
            if there is None and not self._trials():
                self._storage.set_study_user_attr(self._id, _IDENTITY, identity)
                there = identity
            check_identity(there or {}, identity, self.where)
            return self._mend(retry_failed)

    def mend(self) -> int:
        """Put points whose process died back into the queue, and return their number."""
        with quiet(), speaks_of(self.where):
            return self._mend(False)

    def _mend(self, retry_failed: bool) -> int:
        lost = [t for t in self._trials() if t.state.name == "RUNNING" and not _lives(t)]
        for trial in lost:
            self._close(trial)
        live = {_point(t) for t in self._trials() if _counts(t) and not (retry_failed and t.state.name == "FAIL")}
        for point in range(self.settings.num_points):
            if point not in live:
                self._put(point)
        return len(lost)

    def _close(self, trial: Any) -> None:
        """End a trial whose process died: complete if its figures were written already."""
        states = optuna().trial.TrialState
        with suppress(RuntimeError):  # somebody else was faster
            result = self._result(trial)
            if result is not None:
                self._storage.set_trial_state_values(trial._trial_id, states.COMPLETE, self._values(result))
                return
            if "error" not in trial.user_attrs:
                self._storage.set_trial_user_attr(trial._trial_id, "lost", True)
            self._storage.set_trial_state_values(trial._trial_id, states.FAIL)

    def _put(self, point: int) -> None:
        kept = {"grid_id": point, "search_space": self._space} if self.settings.method == "grid" else {}
        trial = optuna().trial
        waiting = trial.create_trial(state=trial.TrialState.WAITING, user_attrs={"point": point}, system_attrs=kept)
        self._study.add_trial(waiting)

    def take(self) -> Attempt | None:
        """Return a trial from the queue, which is this process's now; None if the queue is empty."""
        running = optuna().trial.TrialState.RUNNING
        with quiet(), speaks_of(self.where):
            for trial in self._trials():
                if trial.state.name != "WAITING":
                    continue
                with suppress(RuntimeError):  # somebody else was faster, and is done
                    # Before it is taken: a trial that runs always says whose it is.
                    self._storage.set_trial_user_attr(trial._trial_id, self._me, this_process())
                    if not self._storage.set_trial_state_values(trial._trial_id, running):
                        self._storage.set_trial_user_attr(trial._trial_id, self._me, None)
                        continue
                    if self._is_second(trial):
                        self._close(trial)
                        continue
                    return self._suggested(trial)
        return None

    def _is_second(self, trial: Any) -> bool:
        others = (t for t in self._trials() if t.number < trial.number and _point(t) == _point(trial))
        return any(_counts(t) and not t.user_attrs.get("error") for t in others)

    def _suggested(self, frozen: Any) -> Attempt:
        point = _point(frozen)
        if self.settings.method == "search":
            population = max(4, min(50, self.settings.num_points // 4))
            seed = ((self.settings.seed or 0) * 1_000_003 + point) % 2**32  # else a second start would draw the same
            self._study.sampler = optuna().samplers.NSGAIISampler(population_size=population, seed=seed)
        trial = optuna().trial.Trial(self._study, frozen._trial_id)
        return Attempt(
            frozen._trial_id, point, {key: _suggest(trial, key, v) for key, v in self.settings.swept.items()}
        )

    @contextmanager
    def at_work(self, attempt: Attempt) -> Iterator[None]:
        """Give a sign of life from time to time inside a `with` block."""
        done = threading.Event()

        def beat() -> None:
            with suppress(Exception):  # the trial is over, or the storage fails: whoever runs it will meet that
                while not done.wait(BEAT_S):
                    self._storage.set_trial_user_attr(attempt.trial_id, self._me, this_process())

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def complete(self, attempt: Attempt, result: dict[str, float]) -> None:
        """Keep the figures of an attempt."""
        states = optuna().trial.TrialState
        self._end(attempt, "result", result, lambda: (states.COMPLETE, self._values(result)))

    def fail(self, attempt: Attempt, message: str) -> None:
        """Keep the error of an attempt."""
        self._end(attempt, "error", message, lambda: (optuna().trial.TrialState.FAIL, None))

    def _end(self, attempt: Attempt, name: str, content: Any, end: Callable[[], tuple[Any, Any]]) -> None:
        with quiet(), speaks_of(self.where), suppress(RuntimeError):  # taken for dead, and closed
            self._storage.set_trial_user_attr(attempt.trial_id, name, content)
            self._storage.set_trial_state_values(attempt.trial_id, *end())

    def _values(self, result: dict[str, float]) -> list[float]:
        return [result[name] for name in self.settings.objectives]

    def settled(self) -> list[Settled]:
        """Return how each point ended that has; of a grid in the order of its keys and values, else by number."""
        with quiet(), speaks_of(self.where):
            attempts = [t for t in self._trials() if _counts(t)]
            # Of several attempts the complete one stands, else the last: what failed may be in the queue again.
            last = {_point(t): t for t in sorted(attempts, key=lambda t: (t.state.name == "COMPLETE", t.number))}
            found = [
                Settled(point, {key: t.params[key] for key in self.settings.swept}, self._result(t), _error(t))
                for point, t in sorted(last.items())
                if t.state.is_finished()
            ]
            if self.settings.method == "grid":
                found.sort(key=lambda one: [self._space[key].index(one.values[key]) for key in self._space])
        return found

    def _result(self, trial: Any) -> dict[str, float] | None:
        """Return the figures of a trial, if it has any; raise a ValueError if they are not those of this sweep."""
        found = trial.user_attrs.get("result")
        if found is not None:
            numbers = isinstance(found, dict) and all(type(value) in (int, float) for value in found.values())
            if not numbers or not found.keys() >= set(self.settings.objectives):
                asked = ", ".join(self.settings.objectives)
                raise ValueError(f"trial {trial.number}: expected numbers for {asked}; got {str(found)[:200]}")
        elif trial.state.name == "COMPLETE":
            raise ValueError(f"trial {trial.number} is complete without figures")
        return found

    def note(self, name: str, make: Callable[[], Any]) -> Any:
        """Return what is kept beside the trials under a name, or make it and keep it."""
        with quiet(), speaks_of(self.where):
            found = self._storage.get_study_user_attrs(self._id).get(name)
        if found is None:
            found = make()
            with quiet(), speaks_of(self.where):
                self._storage.set_study_user_attr(self._id, name, found)
        return found

    def _trials(self) -> list[Any]:
        return self._storage.get_all_trials(self._id, deepcopy=False)


def _point(trial: Any) -> int:
    return trial.user_attrs["point"]


def _lives(trial: Any) -> bool:
    return any(lives(owner) for name, owner in trial.user_attrs.items() if name.startswith(_OWNER))


def _counts(trial: Any) -> bool:
    """Return whether an attempt stands for its point: whatever was not lost or dropped."""
    return trial.state.name != "FAIL" or "error" in trial.user_attrs


def _error(trial: Any) -> str | None:
    return trial.user_attrs.get("error") if trial.state.name == "FAIL" else None


def _suggest(trial: Any, key: str, values: list[Any] | Range) -> Any:
    if isinstance(values, list):
        return trial.suggest_categorical(key, values)
    if isinstance(values.low, int):
        return trial.suggest_int(key, values.low, values.high, step=int(values.step or 1), log=values.log)
    return trial.suggest_float(key, values.low, values.high, step=values.step, log=values.log)
