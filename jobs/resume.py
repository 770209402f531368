"""Progress of a report on disk, so that an interrupted run goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..analysis.exactness import ExactnessCheck
from ..errors import InputError
from ..files import write_whole
from ..models import Recording

FILE_NAME = "unfinished.json"


@dataclass
class Unfinished:
    """Finished windows of each stage, and what the spiking stage had recorded after them.

    Attributes:
        path: the file.
        key: identifies the job; progress of another job is ignored.
        nlls: summed negative log-likelihood of each finished window, by stage.
        recorded: state of the recording after the last finished windows.
        checked: state of the exactness check at the same point.
    """

    path: Path
    key: str
    nlls: dict[str, list[float]] = field(default_factory=dict)
    recorded: dict[str, Any] = field(default_factory=dict)
    checked: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of_job(cls, folder: Path, job: Mapping[str, Any]) -> Unfinished:
        """Return what an earlier run of the same job left in the folder, or no progress.

        Args:
            folder: where the report goes.
            job: everything that its figures depend on, as JSON values.
        """
        path = folder / FILE_NAME
        key = hashlib.sha256(json.dumps(job, sort_keys=True).encode()).hexdigest()
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            if stored["key"] == key:
                return cls(path, key, stored["nlls"], stored["recorded"], stored["checked"])
        except (OSError, ValueError, KeyError, TypeError):
            pass  # none, or one that a crash cut short: there is nothing to go on from
        return cls(path, key)

    @property
    def num_windows(self) -> int:
        """Windows finished in all stages together."""
        return sum(len(nlls) for nlls in self.nlls.values())

    def save(self, recording: Recording | None = None, check: ExactnessCheck | None = None) -> None:
        """Write the progress, and with it the state of the recording and the check; in one step."""
        if recording is not None and check is not None:
            self.recorded = recording.state()
            self.checked = check.state()
        content = {"key": self.key, "nlls": self.nlls, "recorded": self.recorded, "checked": self.checked}
        try:
            write_whole(self.path, json.dumps(content))
        except OSError as error:
            raise InputError(
                f"out {self.path.parent}: progress cannot be written: {error}. Make room there."
            ) from error

    def restore(self, recording: Recording, check: ExactnessCheck) -> None:
        """Put the stored state into a recording and a check that are about to go on."""
        recording.restore(self.recorded)
        if self.checked:
            check.restore(self.checked)

    def remove(self) -> None:
        """Delete the file: the job is done."""
        self.path.unlink(missing_ok=True)
