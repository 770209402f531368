"""The version, which pyproject.toml says and nothing else."""

from __future__ import annotations

import tomllib
from pathlib import Path


def current() -> str:
    """Return the version of the code that runs.

    In a checkout that is what its pyproject.toml says now: the metadata of an editable install keeps the version of
    the day on which it was installed. An installed package has no such file, and its metadata tell.
    """
    project = Path(__file__).with_name("pyproject.toml")
    if project.is_file():
        return tomllib.loads(project.read_text(encoding="utf-8"))["project"]["version"]
    from importlib import metadata  # noqa: PLC0415 - as much to import as all the rest of `import spikebrain`

    return metadata.version("spikebrain")


__version__ = current()
