"""Progress of a report on disk: an interrupted run goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..analysis.exactness import ExactnessCheck
from ..errors import InputError
from ..files import parse_json, read_json, remove, write_json
from ..models import Loaded, Recording
from ..models.io.checksums import of_text
from ..version import __version__

FILE_NAME = "unfinished.json"


@dataclass
class Unfinished:
    """The finished windows of each stage, and the records of the spiking stage after them.

    Attributes:
        path: the file.
        key: identifies the job.
        nlls: summed negative log-likelihood of each finished window, by stage.
        recorded: state of the recording after the last finished window.
        checked: state of the exactness check at the same point.
        replaces: whether the file holds the progress of another job, which will be lost.
    """

    path: Path
    key: str
    nlls: dict[str, list[float]] = field(default_factory=dict)
    recorded: dict[str, Any] = field(default_factory=dict)
    checked: dict[str, Any] = field(default_factory=dict)
    replaces: bool = False

    @classmethod
    def of_job(cls, folder: Path, job: Mapping[str, Any]) -> Unfinished:
        """Return the progress that an earlier run of the same job left in the folder, if any.

        Args:
            folder: folder of the report.
            job: everything that its figures depend on, as JSON values.
        """
        path = folder / FILE_NAME
        key = digest(job)
        try:
            state = stored_state(path, key)
            if state is not None:
                return cls(path, key, state["nlls"], state["recorded"], state["checked"])
        except (KeyError, TypeError, AttributeError):
            pass  # it is no state of a report
        return cls(path, key, replaces=path.exists())

    @property
    def num_windows(self) -> int:
        """Windows finished in all stages together."""
        return sum(len(nlls) for nlls in self.nlls.values())

    def save(self, recording: Recording | None = None, check: ExactnessCheck | None = None) -> None:
        """Write the progress and the state of recording and check, in one step."""
        if recording is not None and check is not None:
            self.recorded = recording.state()
            self.checked = check.state()
        state = {"nlls": self.nlls, "recorded": self.recorded, "checked": self.checked}
        store_state(self.path, self.key, state)

    def restore(self, recording: Recording, check: ExactnessCheck) -> None:
        """Copy the stored state into a recording and a check."""
        recording.restore(self.recorded)
        if self.checked:
            check.restore(self.checked)

    def remove(self) -> None:
        """Delete the file: the job is done."""
        remove(self.path)


def stored_state(path: Path, key: str) -> Any:
    """Return what `store_state` wrote for a job; None if there is no such file, or it was changed.

    Args:
        path: the file.
        key: identifies the job.
    """
    try:
        stored = read_json(path)
        if stored["key"] == key and stored["sha256"] == of_text(stored["state"]):
            return parse_json(stored["state"], str(path))
    except (InputError, KeyError, TypeError, AttributeError):
        pass
    return None


def store_state(path: Path, key: str, state: Any) -> None:
    """Write the progress of a job, JSON values, in one step."""
    text = json.dumps(state)
    write_json(path, {"key": key, "sha256": of_text(text), "state": text}, indent=None)


def describe_source(loaded: Loaded, written: Collection[str], unfinished: str) -> dict[str, Any]:
    """Return, as JSON values, the model and the versions that figures depend on.

    A model file counts by its name, size and time of change.

    Args:
        loaded: the model.
        written: names of files that the job itself writes, perhaps into the model's folder.
        unfinished: name of the file of its progress.
    """
    source = Path(loaded.source)
    files = [source] if source.is_file() else sorted(source.glob("*")) if source.is_dir() else []
    return {
        "source": loaded.source,
        "commit": getattr(getattr(loaded.model, "config", None), "_commit_hash", None),
        "files": [
            (file.name, file.stat().st_size, file.stat().st_mtime_ns)
            for file in files
            if file.is_file() and file.name not in written and Path(unfinished).stem not in file.name
        ],
        "versions": [__version__, *map(version, ("torch", "transformers", "numba", "numpy"))],
    }


def digest(values: Any) -> str:
    """Return what identifies JSON values."""
    return of_text(json.dumps(values, sort_keys=True))
