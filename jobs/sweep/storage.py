"""Where a study is kept: a journal in the folder of the sweep, or a database that machines share."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...errors import InputError, SpikebrainError
from ...files import cannot_write, locked
from ...lazy import optional

JOURNAL = "study.journal"


def optuna() -> Any:
    """Return Optuna; raise an InputError that says how to install it."""
    return optional("optuna", "sweep", "sweep")


@contextmanager
def quiet() -> Iterator[None]:
    """Let Optuna not log each trial inside a `with` block."""
    logging = optuna().logging
    before = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def open_storage(url: str | None, out: Path) -> Any:
    """Return the storage of a study.

    Args:
        url: of a database, as SQLAlchemy has it; None for the journal in `out`.
        out: folder of the sweep.
    Raises:
        InputError: it cannot be opened, or holds something else.
    """
    storages = optuna().storages
    where = name_of(url, out)
    if url is not None and "://" not in url:
        raise InputError(f"storage: expected the URL of a database, such as sqlite:///study.db; got {url!r}.")
    try:
        if url is None:
            return storages.JournalStorage(_journal(out / JOURNAL))
        return storages.get_storage(url)
    except SpikebrainError:
        raise
    except OSError as error:
        raise cannot_write(out / JOURNAL, error) from error
    except Exception as error:
        raise _damaged(where, error) from error


def name_of(url: str | None, out: Path) -> str:
    """Return what messages call a storage: its URL without the password."""
    return str(out / JOURNAL) if url is None else re.sub(r"(://[^:/@]*):[^@]*@", r"\1:***@", url)


@contextmanager
def speaks_of(where: str) -> Iterator[None]:
    """Turn what a storage raises inside a `with` block into an InputError that names the storage."""
    try:
        yield
    except SpikebrainError:
        raise
    except OSError as error:
        raise cannot_write(Path(where), error) from error
    except Exception as error:
        raise _damaged(where, error) from error


def _damaged(where: str, error: Exception) -> InputError:
    said = str(getattr(error, "orig", None) or error).strip().splitlines()
    return InputError(
        f"{where}: cannot be read as a study: {type(error).__name__}{': ' + said[0] if said else ''}. Name another "
        "one, or start anew in another folder."
    )


def _journal(path: Path) -> Any:
    """Return Optuna's journal with a lock that ends with its process, and without records that were half written."""
    backends = optuna().storages.journal

    class Lock(backends.JournalFileOpenLock):
        """Lets one process write at a time; Optuna's own locks outlive a killed process for half a minute."""

        def __init__(self) -> None:
            super().__init__(str(path))
            self._held: list[Any] = []

        def acquire(self) -> bool:
            held = locked(path)
            held.__enter__()
            self._held.append(held)
            cut_half_record(path)
            return True

        def release(self) -> None:
            self._held.pop().__exit__(None, None, None)

    class Journal(backends.JournalFileBackend):
        """Says which file could not be written."""

        def append_logs(self, logs: list[dict[str, Any]]) -> None:
            try:
                super().append_logs(logs)
            except OSError as error:
                raise cannot_write(path, error) from error

    return Journal(str(path), Lock())


def cut_half_record(path: Path) -> None:
    """Cut off the end of a journal that a process was killed in writing, or had no room for; nobody has read it.

    The caller holds the lock, so that no living process is at it.
    """
    with path.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        if size == 0:
            return
        file.seek(size - 1)
        if file.read(1) == b"\n":
            return
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
