"""Damaged files of every kind that is read; `python tests/unit/fuzz.py` runs many more."""

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import fuzz
import pytest
from made_deadly import ends_at_7

from spikebrain.errors import CheckpointError
from spikebrain.models.io import gguf_file

pytestmark = pytest.mark.usefixtures("as_users")
NEEDS = {"hdf5": "h5py", "parquet": "pyarrow", "study": "optuna"}
COUNT = int(os.environ.get("SPIKEBRAIN_MUTATIONS", "60"))


@pytest.mark.parametrize("name", fuzz.subjects())
def test_damaged_files(tmp_path, name):
    pytest.importorskip(NEEDS.get(name, "numpy"), reason="pip install 'spikebrain[exchange,sweep]'")
    subject = fuzz.subjects()[name](tmp_path)
    found = [fuzz.run_one(subject, tmp_path, name, number) for number in range(COUNT)]
    assert [(i, fault) for i, (_, fault) in enumerate(found) if fault] == []
    assert name in ("progress", "evaluation") or sum(refused for refused, _ in found) > 5
    (tmp_path / subject.name).write_bytes(subject.content)
    result = subject.read(tmp_path / subject.name)
    assert subject.expected is None or result == subject.expected


@pytest.mark.parametrize("kind", [0, 4, 6, 10])  # uint8, uint32, float32, uint64
def test_a_gguf_array_that_claims_10_to_the_18_numbers(tmp_path, kind):
    """gguf's own reader takes what lies beyond the end for empty, 10^18 times."""
    subject = fuzz.subjects()["gguf"](tmp_path)
    key = b"tokenizer.ggml.token_type"
    at = subject.content.index(key) + len(key) + 4
    content = subject.content[:at] + struct.pack("<IQ", kind, 10**18) + subject.content[at + 12 :]
    (tmp_path / "it.gguf").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"it\.gguf: .*in its header ends at byte"):
        subject.read(tmp_path / "it.gguf")


def test_other_claims_of_a_gguf_file(tmp_path):
    subject = fuzz.subjects()["gguf"](tmp_path)
    for place in (8, 16):  # numbers of tensors and of settings
        content = subject.content[:place] + struct.pack("<Q", 10**18) + subject.content[place + 8 :]
        (tmp_path / "it.gguf").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"it\.gguf: "):
            subject.read(tmp_path / "it.gguf")
    assert gguf_file.is_gguf(tmp_path / "it.gguf")


@pytest.mark.slow
def test_the_script_goes_on(tmp_path):
    command = [sys.executable, str(Path(fuzz.__file__)), "--readers", "table", "--processes", "1", "--state"]
    command += [str(tmp_path / "s.json"), "--count"]
    first = subprocess.run([*command, "20"], capture_output=True, text=True, check=True)
    assert "table              20 inputs" in first.stdout
    done = json.loads((tmp_path / "s.json").read_text())
    assert list(done) == ["('table', 0, 20)"]
    again = subprocess.run([*command, "20"], capture_output=True, text=True, check=True)
    assert again.stdout == first.stdout
    assert json.loads((tmp_path / "s.json").read_text()) == done  # not run again, as its seconds show


@pytest.mark.slow
def test_an_input_that_ends_the_process_is_a_fault():
    """pyarrow, HDF5 and others are C; what follows such an input is run all the same."""
    worker = fuzz.Worker(ends_at_7)
    found = worker.run(("table", 5, 10))
    assert found["faults"] == [[7, "ended the process, exit code 3"]]
    assert (found["count"], found["refused"]) == (10, 7)  # 8 to 14; those before died with it
    worker.close()


@pytest.mark.slow
def test_no_byte_of_a_parquet_footer_ends_the_process(tmp_path):
    """pyarrow has no way out for its own errors where it looks at a column, as of a wrong length."""
    pytest.importorskip("pyarrow", reason="pip install 'spikebrain[exchange]'")
    code = """
import sys, fuzz, pathlib, spikebrain
folder = pathlib.Path(sys.argv[1])
subject = fuzz.subjects()["parquet"](folder)
start = len(subject.content) - 8 - int.from_bytes(subject.content[-8:-4], "little")
for at in range(start, len(subject.content) - 8):
    content = bytearray(subject.content)
    content[at] ^= 2
    (folder / subject.name).write_bytes(content)
    try:
        subject.read(folder / subject.name)
    except spikebrain.errors.CheckpointError:
        pass
"""
    where = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(fuzz.__file__).parent), *sys.path])}
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=where, check=True)
