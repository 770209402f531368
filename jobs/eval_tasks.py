"""Tasks that `eval` knows: where their documents are, how they are read and checked, and how lm-eval scores them."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files import parse_json

_OPENERS: Mapping[str, Callable[[bytes], bytes]] = {
    "": lambda packed: packed,
    ".bz2": bz2.decompress,
    ".gz": gzip.decompress,
    ".xz": lzma.decompress,
}
_KINDS = {str: "a text that is not blank", list: "a list of at least two texts that are not blank", int: "an integer"}

Document = dict[str, Any]


@dataclass(frozen=True)
class LocalTask:
    """A task whose documents are local files.

    Attributes:
        files: names of its files, in a folder of the task's name or in the data folder itself; each may be packed, with
            the ending .bz2, .gz or .xz.
        read: turns the lines of each file into documents.
        scoring: of lm-eval's task configuration: the prompt, the answers, and the metrics as (name, aggregation).
        metric: that stands for the task in an average.
    """

    files: tuple[str, ...]
    read: Callable[..., list[Document]]
    scoring: Mapping[str, Any]
    metric: str = "acc"


@dataclass(frozen=True)
class Documents:
    """The documents of a task.

    Attributes:
        task: its name.
        documents: all of them, or the first ones.
        total: how many its files hold.
        files: the path and SHA-256 of each file.
    """

    task: str
    documents: list[Document]
    total: int
    files: dict[str, str]


def read_task(task: str, folder: Path, limit: int | None) -> Documents:
    """Read and check all documents of a task.

    Args:
        task: name in `TASKS`.
        folder: that holds its files, or a folder of its name with them.
        limit: documents to return, from the first on; None for all.
    Raises:
        InputError: a file is missing or empty, cannot be read, or holds a faulty document; the message names file, line
            and field.
    """
    found = [_find(task, folder, name) for name in TASKS[task].files]
    packed = [_read_bytes(path) for path in found]
    lines = [_lines(path, content) for path, content in zip(found, packed, strict=True)]
    documents = TASKS[task].read(*lines)
    digests = {path.name: hashlib.sha256(content).hexdigest() for path, content in zip(found, packed, strict=True)}
    return Documents(task, documents[:limit], len(documents), digests)


def check_tasks(tasks: tuple[str, ...], data: Path | None, limit: int | None, what: str = "") -> None:
    """Check which tasks are to run, before anything is read.

    Args:
        tasks: names in `TASKS`, each once.
        data: folder with their files.
        limit: documents of each task; None for all.
        what: that cannot do without tasks, for the message; empty if there may be none.
    Raises:
        InputError: an unknown task, one that stands twice, none, no folder, or a limit below 1.
    """
    if not tasks and what:
        raise InputError(f"tasks: expected at least one of {', '.join(TASKS)} for {what}, got none.")
    for task in tasks:
        if task not in TASKS:
            raise InputError(f"tasks: expected some of {', '.join(TASKS)}; got {task!r}.")
        if tasks.count(task) > 1:
            raise InputError(f"tasks: expected each value once, got {task!r} twice.")
    if tasks and data is None:
        raise InputError("data: expected the folder with the files of the tasks, got none.")
    if limit is not None and limit < 1:
        raise InputError(f"limit: expected an integer >= 1, got {limit}.")


def _find(task: str, folder: Path, name: str) -> Path:
    places = [place / f"{name}{ending}" for place in (folder / task, folder) for ending in _OPENERS]
    path = next((path for path in places if path.is_file()), None)
    if path is None:
        raise InputError(f"data {folder}: expected {task}/{name} or {name} for the task {task}, found neither.")
    return path


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}.") from error


@dataclass(frozen=True)
class _Lines:
    """The lines of a file, and the file, for messages."""

    path: Path
    lines: list[str]

    def where(self, index: int) -> str:
        return f"{self.path}, line {index + 1}"


def _lines(path: Path, content: bytes) -> _Lines:
    unpack = next((unpack for ending, unpack in _OPENERS.items() if ending and path.name.endswith(ending)), bytes)
    try:
        text = unpack(content).decode("utf-8-sig")
    except (OSError, EOFError, ValueError, lzma.LZMAError, zlib.error) as error:
        raise InputError(f"{path}: expected UTF-8 text, got something else: {error}. Fetch the file again.") from error
    lines = text.replace("\r\n", "\n").split("\n")
    if not lines[-1]:
        lines.pop()
    if not lines:
        raise InputError(f"{path}: expected at least one document, the file is empty.")
    return _Lines(path, lines)


def _rows(lines: _Lines) -> Iterator[tuple[str, Document]]:
    """Yield where each line of a JSON-lines file is, and its fields."""
    for i, line in enumerate(lines.lines):
        row = parse_json(line, lines.where(i))
        if not isinstance(row, dict):
            raise InputError(f"{lines.where(i)}: expected a JSON object with fields, got {_shown(row)}.")
        yield lines.where(i), row


def _field(row: Document, where: str, name: str, kind: type) -> Any:
    if name not in row:
        raise InputError(f"{where}: expected the field {name!r}, {_KINDS[kind]}; got {_named(row)}.")
    value = row[name]
    fits = type(value) is kind
    if kind is str:
        fits = fits and bool(value.strip())
    if kind is list:
        fits = fits and len(value) >= 2 and all(isinstance(text, str) and text.strip() for text in value)
    if not fits:
        raise InputError(f"{where}: field {name!r}: expected {_KINDS[kind]}, got {_shown(value)}.")
    return value


def _label(value: Any, where: str, name: str, num_options: int) -> int:
    if type(value) is not int or not 0 <= value < num_options:
        raise InputError(f"{where}: {name}: expected a label from 0 to {num_options - 1}, got {_shown(value)}.")
    return value


def _choice(row: Document, where: str, options: list[str]) -> int:
    return _label(_field(row, where, "gold", int), where, "field 'gold'", len(options))


def _label_line(lines: _Lines, i: int, num_options: int) -> int:
    """Return the label that a line of its own holds."""
    text = lines.lines[i].strip()
    return _label(int(text) if text.isdecimal() else text, lines.where(i), "this line", num_options)


def _named(row: Document) -> str:
    return f"only {', '.join(map(repr, row))}" if row else "none"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _winogrande(lines: _Lines) -> list[Document]:
    documents = []
    for where, row in _rows(lines):
        options = _field(row, where, "context_options", list)
        text = _field(row, where, "continuation", str)
        # A continuation that is only punctuation follows its word without a space.
        answer = f" {text}" if re.search(r"\w", text) else text
        documents.append({"options": options, "answer": answer, "gold": _choice(row, where, options)})
    return documents


def _arc_easy(lines: _Lines) -> list[Document]:
    documents = []
    for where, row in _rows(lines):
        query, options = _field(row, where, "query", str), _field(row, where, "choices", list)
        documents.append({"query": f"{query}\nAnswer:", "options": options, "gold": _choice(row, where, options)})
    return documents


def _piqa(lines: _Lines, labels: _Lines) -> list[Document]:
    if len(lines.lines) != len(labels.lines):
        raise InputError(
            f"{labels.path}: expected a label for each of the {len(lines.lines):,} lines of {lines.path.name}, got "
            f"{len(labels.lines):,}."
        )
    documents = []
    for i, (where, row) in enumerate(_rows(lines)):
        options = [_field(row, where, name, str) for name in ("sol1", "sol2")]
        query = f"Question: {_field(row, where, 'goal', str)}\nAnswer:"
        documents.append({"query": query, "options": options, "gold": _label_line(labels, i, 2)})
    return documents


def _hellaswag(lines: _Lines) -> list[Document]:
    """Read a context, a label and four endings, a line each."""
    size, documents = 6, []
    for i in range(0, len(lines.lines), size):
        item = lines.lines[i : i + size]
        if len(item) < size:
            raise InputError(
                f"{lines.where(i)}: expected a context, a label and 4 endings, a line each; the file ends after "
                f"{len(item)} of these {size} lines."
            )
        for j, text in enumerate(item):
            if not text.strip():
                what = ("the context", "the label")[j] if j < 2 else f"ending {j - 2}"
                raise InputError(f"{lines.where(i + j)}: expected {what} of an item of {size} lines, got a blank line.")
        documents.append({"query": item[0], "options": item[2:], "gold": _label_line(lines, i + 1, 4)})
    return documents


def _lambada(lines: _Lines) -> list[Document]:
    return [
        {"query": _field(row, where, "context", str), "answer": " " + _field(row, where, "continuation", str)}
        for where, row in _rows(lines)
    ]


_ACC = [("acc", "mean")]
_CHOICE = {"output_type": "multiple_choice", "doc_to_target": "gold", "doc_to_choice": "options"}
_QUESTION = {**_CHOICE, "doc_to_text": "query", "metrics": [*_ACC, ("acc_norm", "mean")]}
# Each as lm-eval's own task of that name has it, with the spaces that the files leave out.
TASKS = {
    "winogrande": LocalTask(
        ("winogrande.jsonl",),
        _winogrande,
        # The options are contexts, and all are followed by the same text.
        {
            "output_type": "multiple_choice",
            "doc_to_text": "gold",
            "doc_to_target": "answer",
            "doc_to_choice": "options",
            "target_delimiter": "",
            "metrics": _ACC,
        },
    ),
    "arc_easy": LocalTask(("arc_easy.jsonl",), _arc_easy, _QUESTION),
    "piqa": LocalTask(("valid.jsonl", "valid-labels.lst"), _piqa, _QUESTION),
    "hellaswag": LocalTask(("hellaswag_val_full.txt",), _hellaswag, _QUESTION, "acc_norm"),
    "lambada": LocalTask(
        ("lambada_openai.jsonl",),
        _lambada,
        {
            "output_type": "loglikelihood",
            "doc_to_text": "query",
            "doc_to_target": "answer",
            "metrics": [("perplexity", "perplexity"), *_ACC],
        },
    ),
}
