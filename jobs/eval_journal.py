"""What an evaluation has finished, on disk part by part: an interrupted one goes on where it stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files import cannot_write, parse_json, remove, write_whole
from ..models.io.checksums import of_text
from .resume import digest

FILE_NAME = "unfinished.jsonl"
_DIGITS = 16


@dataclass
class Journal:
    """Finished parts of a job, a line each, which is written when the part is done.

    A line begins with a checksum of the rest, so a line that a killed process left half written is passed over. Parts
    of other jobs in the same file, such as another model's or setting's, stay there for those.

    Attributes:
        path: the file.
        key: identifies the job.
        parts: what was found, by part.
        others: what the file holds of other jobs, line by line.
    """

    path: Path
    key: str
    parts: dict[tuple[str | int, ...], Any] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)

    @classmethod
    def of_job(cls, folder: Path, job: Mapping[str, Any]) -> Journal:
        """Return what an earlier run of the same job left in the folder, if anything.

        Args:
            folder: folder of the results.
            job: everything that all parts depend on, as JSON values.
        """
        journal = cls(folder / FILE_NAME, digest(job))
        try:
            lines = journal.path.read_bytes().split(b"\n")
        except OSError:
            return journal
        for line in lines:
            checksum, _, content = line.decode("utf-8", "replace").partition(" ")
            if checksum != _checksum(content):
                continue
            entry = parse_json(content, str(journal.path))
            if entry["job"] == journal.key:
                journal.parts[tuple(entry["part"])] = entry["found"]
            else:
                journal.others.append(line.decode())
        return journal

    def add(self, *parts: tuple[tuple[str | int, ...], Any]) -> None:
        """Keep finished parts, in memory and on disk.

        Args:
            *parts: (part, what was found, as JSON values) each.
        """
        text = ""
        for part, found in parts:
            content = json.dumps({"job": self.key, "part": part, "found": found})
            text += f"\n{_checksum(content)} {content}"  # the line break comes first: what was cut off ends there
        try:
            with self.path.open("ab") as file:
                file.write(text.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as reason:
            raise cannot_write(self.path, reason, InputError) from reason
        self.parts.update(parts)

    def remove(self) -> None:
        """Delete what the file holds of this job, which is done; with it the file, if nothing else is there."""
        if self.others:
            write_whole(self.path, "\n" + "\n".join(self.others))
        else:
            remove(self.path)


def _checksum(content: str) -> str:
    return of_text(content)[:_DIGITS]
