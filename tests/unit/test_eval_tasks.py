"""The files of tasks: what is read, and the error for each fault, with file, line and field."""

import bz2
import gzip
import json
import lzma

import pytest
from task_files import NAMES, ROWS, write_tasks

from spikebrain.errors import InputError
from spikebrain.jobs.eval_tasks import TASKS, read_task


@pytest.fixture
def data(tmp_path):
    return write_tasks(tmp_path / "data")


def test_documents(data):
    found = {task: read_task(task, data, None) for task in NAMES}
    assert found.keys() == TASKS.keys()
    assert {(len(task.documents), task.total) for task in found.values()} == {(5, 5)}
    rows = found["winogrande"].documents
    assert rows[0] == {"options": ["Ann told 0 Bo. Ann", "Ann told 0 Bo. Bo"], "answer": " ran.", "gold": 0}
    assert rows[1]["answer"] == "."  # punctuation only: no space before it
    assert found["arc_easy"].documents[4]["query"] == "Question: 4?\nAnswer:"
    piqa = {"query": "Question: Cut 1\nAnswer:", "options": ["knife it", "a spoon"], "gold": 1}
    assert found["piqa"].documents[1] == piqa
    roof = {"query": "Roof: He is 3", "options": ["is up.", "is off.", "has a cube.", "fell."], "gold": 3}
    assert found["hellaswag"].documents[3] == roof
    assert found["lambada"].documents[0] == {"query": "He saw 0 and", "answer": " ran"}


def test_the_first_documents_of_files_beside_each_other_packed_in_any_way(data, tmp_path):
    text = (data / "lambada" / "lambada_openai.jsonl").read_bytes()
    for i, (ending, pack) in enumerate({".gz": gzip.compress, ".xz": lzma.compress, ".bz2": bz2.compress}.items()):
        folder = tmp_path / str(i)
        folder.mkdir()
        (folder / f"lambada_openai.jsonl{ending}").write_bytes(pack(text.replace(b"\n", b"\r\n")))
        found = read_task("lambada", folder, 2)
        assert (len(found.documents), found.total) == (2, 5)
        assert found.documents == read_task("lambada", data, 2).documents


def broken(row, **fields):
    return json.dumps({name: value for name, value in (row | fields).items() if value is not None})


FIRST = {name: rows[0] for name, rows in ROWS.items()}
WINO, ARC, PIQA, LAMBADA = ROWS
CASES = {
    "missing": (WINO, broken(FIRST[WINO], gold=None), r"line 3: expected the field 'gold', an integer; got only 'con"),
    "no options": (ARC, broken(FIRST[ARC], choices="red"), "line 3: field 'choices': expected a list of .*, got 'red'"),
    "one option": (WINO, broken(FIRST[WINO], context_options=["A"]), "line 3: field 'context_options': expected a l"),
    "blank option": (ARC, broken(FIRST[ARC], choices=["a", " "]), "line 3: field 'choices': expected a list of at le"),
    "number": (LAMBADA, broken(FIRST[LAMBADA], context=3), "line 3: field 'context': expected a text .*, got 3"),
    "empty": (LAMBADA, broken(FIRST[LAMBADA], continuation=""), "line 3: field 'continuation': expected a text"),
    "label": (ARC, broken(FIRST[ARC], gold=4), "line 3: field 'gold': expected a label from 0 to 3, got 4"),
    "below": (WINO, broken(FIRST[WINO], gold=-1), "line 3: field 'gold': expected a label from 0 to 1, got -1"),
    "bool": (WINO, broken(FIRST[WINO], gold=True), "line 3: field 'gold': expected an integer, got True"),
    "list": (PIQA, "[1]", r"line 3: expected a JSON object with fields, got \[1\]"),
    "no JSON": (PIQA, '{"goal": ', "line 3: expected JSON, got something else"),
    "blank line": (PIQA, "", "line 3: expected JSON, got something else"),
    "a large label": ("piqa/valid-labels.lst", "2", "line 3: this line: expected a label from 0 to 1, got 2"),
    "a word for a label": ("piqa/valid-labels.lst", "one", "line 3: this line: expected a label .*, got 'one'"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_faulty_document(case, data):
    name, line, message = CASES[case]
    path = data / name
    lines = path.read_text().split("\n")
    path.write_text("\n".join([*lines[:2], line, *lines[3:]]))
    with pytest.raises(InputError, match=message) as found:
        read_task(name.partition("/")[0], data, None)
    assert str(path) in str(found.value)


def test_faulty_files(data):
    labels = data / "piqa" / "valid-labels.lst"
    labels.write_text("0\n1\n")
    with pytest.raises(InputError, match=r"valid-labels.lst: expected a label for each of the 5 lines of .*, got 2"):
        read_task("piqa", data, None)
    packed = data / "hellaswag" / "hellaswag_val_full.txt.bz2"
    text = bz2.decompress(packed.read_bytes()).decode()
    for content, message in [
        (text.rsplit("\n", 2)[0] + "\n", "line 25: .* the file ends after 5 of these 6 lines"),
        (text.replace("is off.", " ", 1), "line 4: expected ending 1 of an item of 6 lines, got a blank line"),
        (text.replace("\n1\n", "\n9\n"), "line 8: this line: expected a label from 0 to 3, got 9"),
    ]:
        packed.write_bytes(bz2.compress(content.encode()))
        with pytest.raises(InputError, match=message):
            read_task("hellaswag", data, None)
    for content in (b"BZh9", bz2.compress(text.encode())[:-9], b"plain"):
        packed.write_bytes(content)
        with pytest.raises(InputError, match=r"bz2: expected UTF-8 text, got something else"):
            read_task("hellaswag", data, None)
    lambada = data / "lambada" / "lambada_openai.jsonl"
    lambada.write_bytes(b"\xff")
    with pytest.raises(InputError, match="expected UTF-8 text"):
        read_task("lambada", data, None)
    lambada.write_text("")
    with pytest.raises(InputError, match="at least one document, the file is empty"):
        read_task("lambada", data, None)
    lambada.unlink()
    with pytest.raises(InputError, match=r"data .*: expected lambada/lambada_openai.jsonl or lambada_openai.jsonl"):
        read_task("lambada", data, None)
