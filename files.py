"""Write files completely or not at all; read JSON and TOML so that whatever is wrong is an error that says where."""

from __future__ import annotations

import errno
import functools
import json
import math
import os
import secrets
import threading
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from .errors import InputError, SpikebrainError

try:
    import fcntl
except ImportError:  # Windows has no such lock
    fcntl = None

# No file of ours or of transformers nests deeper; a deeper one would exhaust Python's stack in whoever reads it.
_DEEPEST = 64
_LARGEST_FLOAT_BITS = 1023


@contextmanager
def whole_file(path: Path, error: type[SpikebrainError] = InputError) -> Iterator[Path]:
    """Write a file in one step: a reader finds either the old content or the new one, even after a crash.

    The `with` block writes to the path that it is given, beside `path`. That file then gets the permissions of the
    user's umask and the name `path`. If anything goes wrong it is deleted, and an existing file stays as it was.

    Args:
        path: path of the file; its folder must exist.
        error: class of the error.
    Raises:
        SpikebrainError: of that class: the file cannot be written, for example because the disk is full.
    """
    # Machines that share a disk may share a number of a process, too.
    partial = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.partial")
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.chmod(0o666 & ~_umask())
        os.replace(partial, path)
    except (OSError, SafetensorError) as reason:
        raise cannot_write(path, reason, error) from reason
    finally:
        partial.unlink(missing_ok=True)


def write_whole(path: Path, text: str, error: type[SpikebrainError] = InputError) -> None:
    """Write a UTF-8 file in one step; see `whole_file`."""
    with whole_file(path, error) as partial:
        partial.write_text(text, encoding="utf-8")


def finite(content: Any) -> Any:
    """Return JSON values with null in the place of NaN and infinity, which JSON does not have.

    >>> finite({"loss": [1.5, float("nan")]})
    {'loss': [1.5, None]}
    """
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, Mapping):
        return {key: finite(value) for key, value in content.items()}
    return [finite(value) for value in content] if isinstance(content, list | tuple) else content


def write_json(path: Path, content: Any, *, indent: int | None = 1, error: type[SpikebrainError] = InputError) -> None:
    """Write JSON values in one step; see `whole_file`.

    Args:
        path: of the file.
        content: JSON values; NaN and infinity become null.
        indent: spaces a level, with a line for each element but those of lists of plain values; None for one line.
        error: class of the error.
    """
    content = finite(content)
    text = json.dumps(content, allow_nan=False) if indent is None else _lines(content, "\n", " " * indent)
    write_whole(path, text + "\n", error)


def _lines(value: Any, line: str, indent: str) -> str:
    r"""Return JSON with an element a line, and a list of plain values on one.

    >>> print(_lines({"sizes": [1, 2], "none": {}, "layers": [{"name": "a"}]}, "\n", " "))
    {
     "sizes": [1, 2],
     "none": {},
     "layers": [
      {
       "name": "a"
      }
     ]
    }
    """
    deeper = line + indent
    if isinstance(value, dict) and value:
        # As json.dumps writes a key, which need not be a text.
        items = [f"{json.dumps({key: 0})[1:-4]}: {_lines(item, deeper, indent)}" for key, item in value.items()]
        return "{" + deeper + f",{deeper}".join(items) + line + "}"
    if isinstance(value, list | tuple) and any(isinstance(item, dict | list | tuple) for item in value):
        return "[" + deeper + f",{deeper}".join(_lines(item, deeper, indent) for item in value) + line + "]"
    return json.dumps(value)


def write_tensors(
    path: Path, tensors: dict[str, Tensor], metadata: dict[str, str], error: type[SpikebrainError] = InputError
) -> None:
    """Write a safetensors file in one step; see `whole_file`."""
    with whole_file(path, error) as partial:
        safetensors.torch.save_file(tensors, partial, metadata=metadata)


def cannot_write(path: Path, reason: Exception, error: type[SpikebrainError] = InputError) -> SpikebrainError:
    """Return the error that says that a file or folder cannot be written, and why."""
    why = reason.strerror if isinstance(reason, OSError) and reason.strerror else reason
    return error(f"{path}: cannot be written: {why}. Make room there, or name another folder.")


def make_folder(path: Path, error: type[SpikebrainError] = InputError) -> None:
    """Make a folder if it is missing; raise an error of that class if it cannot be made."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as reason:
        raise cannot_write(path, reason, error) from reason


# Folders that a block of `only_writer` holds, by device and inode, and the thread of each.
_HELD: dict[tuple[int, int], int] = {}


@contextmanager
def only_writer(folder: Path, error: type[SpikebrainError] = InputError) -> Iterator[None]:
    """Keep other processes, and threads, of this package from writing into a folder while a `with` block runs.

    A block inside of another one of the same thread is part of it. The lock is on the folder itself: it leaves no file,
    and ends with its process, however that ends. Where folders cannot be locked (Windows, some network disks) nothing
    is kept from anybody.

    Args:
        folder: made if it is missing.
        error: class of the error.
    Raises:
        SpikebrainError: of that class: another one is writing there, or the folder cannot be made.
    """
    make_folder(folder, error)
    try:
        handle = None if fcntl is None else os.open(folder, os.O_RDONLY)
    except OSError:  # whoever writes there will say why that cannot be
        handle = None
    if fcntl is None or handle is None:
        yield
        return
    try:
        found = os.fstat(handle)
        key, me = (found.st_dev, found.st_ino), threading.get_ident()
        if _HELD.get(key) == me:
            yield
            return
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as reason:
            if reason.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise error(
                    f"{folder}: another process is writing there. Wait until it has ended, or name another folder."
                ) from reason
        _HELD[key] = me
        try:
            yield
        finally:
            _HELD.pop(key, None)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def read_whole(path: Path, error: type[SpikebrainError] = InputError) -> str:
    """Return the text of a UTF-8 file, without a byte order mark.

    Raises:
        SpikebrainError: of that class: the file cannot be read, or is not UTF-8.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as reason:
        raise error(f"{path}: cannot be read: {reason.strerror or reason}.") from reason
    except UnicodeDecodeError as reason:
        raise error(
            f"{path}: expected UTF-8 text, got {reason.reason} at byte {reason.start}. Save the file as UTF-8."
        ) from reason


def read_json(path: Path, error: type[SpikebrainError] = InputError) -> Any:
    """Return the content of a JSON file.

    Raises:
        SpikebrainError: of that class: the file cannot be read, is not JSON, or holds what no file of ours does: see
            `parse_json`.
    """
    return parse_json(read_whole(path, error), str(path), error)


def parse_json(
    text: str,
    where: str,
    error: type[SpikebrainError] = InputError,
    object_hook: Callable[[dict[str, Any]], Any] | None = None,
) -> Any:
    """Return the JSON values of a text.

    Args:
        text: the text.
        where: it is from, for messages.
        error: class of the error.
        object_hook: as for `json.loads`.
    Raises:
        SpikebrainError: of that class: the text is not JSON, nests deeper than 64 levels, or holds an integer that
            exceeds the largest float.

    >>> parse_json('{"k": 3}', "settings.json")
    {'k': 3}
    """
    return _parsed(functools.partial(json.loads, object_hook=object_hook), text, where, "JSON", error)


def _parsed(parse: Callable[[str], Any], text: str, where: str, kind: str, error: type[SpikebrainError]) -> Any:
    try:
        content = parse(text)
    except RecursionError as reason:
        raise error(f"{where}: expected {kind} of at most {_DEEPEST} levels, it nests deeper.") from reason
    except ValueError as reason:  # errors of syntax, and integers of thousands of digits
        raise error(f"{where}: expected {kind}, got something else: {reason}.") from reason
    fault = _fault(content)
    if fault is not None:
        raise error(f"{where}: {fault}.")
    return content


def _fault(content: Any) -> str | None:
    """Return what JSON or TOML values hold that would fail far from here, and where; None if there is nothing."""
    level: list[tuple[str, Any]] = [("", content)] if _is_searched(content) else []
    for _ in range(_DEEPEST + 1):
        below: list[tuple[str, Any]] = []
        for place, value in level:
            if isinstance(value, dict):
                below += [(f"{place}.{key}".lstrip("."), v) for key, v in value.items() if _is_searched(v)]
            elif isinstance(value, list):
                below += [(f"{place}[{i}]", v) for i, v in enumerate(value) if _is_searched(v)]
            else:
                return f"{place}: expected a number below 1e308, got an integer of {value.bit_length()} bits"
        if not below:
            return None
        level = below
    return f"{level[0][0][:80]}...: expected at most {_DEEPEST} levels, it nests deeper"


def _is_searched(value: Any) -> bool:
    """Return whether a value holds others, or is an integer that no float holds."""
    return isinstance(value, dict | list) or (isinstance(value, int) and value.bit_length() > _LARGEST_FLOAT_BITS)


def remove(path: Path) -> None:
    """Delete a file, if there is one, and what killed runs left of it while they wrote it."""
    for file in (path, *path.parent.glob(f".{path.name}.*.partial")):
        file.unlink(missing_ok=True)


def read_toml(
    name_or_path: str | os.PathLike, folder: Path, what: str, names: Callable[[], Sequence[str]]
) -> tuple[Path, dict[str, Any]]:
    """Read a TOML file that comes with the package, by name, or another one, by path (*.toml).

    Args:
        name_or_path: name without ending, or path.
        folder: of the files that come with the package.
        what: the file describes, for messages.
        names: returns all names that can be asked for, for messages.
    Returns:
        The path that was read, and its content.
    Raises:
        InputError: there is no such file, or it is not a TOML file.
    """

    def wrong() -> InputError:
        return InputError(f"{what}: expected one of {', '.join(names())}, or the path of a .toml file; got {given!r}.")

    given = name_or_path
    if not isinstance(name_or_path, str | os.PathLike):
        raise wrong()
    given = os.fspath(name_or_path)
    path = Path(given) if given.endswith(".toml") else folder / f"{given}.toml"
    try:
        is_there = path.exists()
    except (OSError, ValueError):  # too long a name, or one with a zero byte
        is_there = False
    if not is_there or (path.parent == folder and not path.is_file()):
        raise wrong()
    return path, _parsed(tomllib.loads, read_whole(path), str(path), "a TOML file", InputError)


def check_format(content: Mapping[str, Any], expected: int, where: str, example: str) -> None:
    """Check the format version of a TOML file, before anything else in it.

    Args:
        content: of the file.
        expected: the version that this release reads.
        where: the file, for the message.
        example: a file in this format.
    Raises:
        InputError: the version is missing or another one; the message says what to do.
    """
    found = content.get("format")
    if type(found) is int and found == expected:
        return
    line = f"format = {expected}"
    if "format" not in content:
        raise InputError(
            f"{where}: expected {line!r} at the top of the file, but it has no format version. Compare its keys with "
            f"{example} and add the line {line!r}."
        )
    raise InputError(
        f"{where}: expected {line!r}, got format = {found!r}: the file is for another version of spikebrain. Bring its "
        f"keys in line with {example} and set {line!r}, or use the version of spikebrain that the file was written for."
    )


def check_faults(faults: Sequence[str], where: str) -> None:
    """Raise an InputError that lists all faults of a file, if there are any."""
    if faults:
        raise InputError(f"{where}: {len(faults)} fault(s):\n  " + "\n  ".join(faults))


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Wait for a file or folder, and let no other process have it inside a `with` block.

    The lock ends with the process, however that ends. It binds only those who ask for it.

    Raises:
        InputError: the system has no such locks.
    """
    if fcntl is None:
        raise InputError(f"{path}: expected a system that can lock files, such as Linux or macOS.")
    held = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield
    finally:
        os.close(held)
