"""A sweep whose processes are killed, and processes that share one: the rows are those of an unbroken one."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest

from spikebrain.jobs import SweepSettings, sweep
from spikebrain.jobs.sweep.storage import JOURNAL

pytest.importorskip("optuna", reason="needs the extra sweep")
pytest.importorskip("pyarrow", reason="needs the extra sweep")
pytestmark = pytest.mark.slow

OPTIONS = {"k": [2.0, 2.5, 3.0, 3.5], "encoder": ["binary", "ternary", "signed-digit"]}
NUM_POINTS = 12


@pytest.fixture
def unbroken(model_folder, text, tmp_path):
    settings = SweepSettings(OPTIONS, str(model_folder), text, 48, 24, device="cpu")
    sweep(settings, tmp_path / "unbroken")
    return (tmp_path / "unbroken" / "results.csv").read_text()


@pytest.fixture
def start(model_folder, text):
    """Start the command in a process of its own."""

    def start(out, *more):
        options = [word for key, values in OPTIONS.items() for word in ("-o", f"{key}={','.join(map(str, values))}")]
        where = ["--model", model_folder, "--text", text, "--num-tokens", 48, "--context", 24, "--device", "cpu"]
        command = [sys.executable, "-m", "spikebrain.cli", "sweep", *options, *where, "--out", out, *more]
        return subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    return start


def num_records(out):
    path = out / JOURNAL
    return path.read_bytes().count(b"\n") if path.exists() else 0


def check(out, unbroken):
    """Check that the rows are those of an unbroken sweep, and that each point was completed once."""
    assert (out / "results.csv").read_text() == unbroken
    records = [json.loads(line) for line in (out / JOURNAL).read_text().splitlines()]
    results = [r["trial_id"] for r in records if "result" in r.get("user_attr", {})]
    assert len(results) == len(set(results)) == NUM_POINTS
    ended = Counter(r["state"] for r in records if r["op_code"] == 6)  # of the journal: a state is set
    assert ended[1] == NUM_POINTS  # complete


def test_killed_at_random_times(start, unbroken, tmp_path):
    chance, out = random.Random(os.getpid()), tmp_path / "s"
    for _ in range(6):
        process = start(out)
        enough = num_records(out) + chance.randint(5, 13)  # a run writes about seven, to begin twelve points as many
        while num_records(out) < enough and process.poll() is None:
            time.sleep(chance.random() * 0.01)
        assert process.poll() is None, process.stdout.read()
        process.send_signal(signal.SIGKILL)
        process.wait()
    process = start(out)
    said, _ = process.communicate()
    assert process.returncode == 0, said
    assert "Going on: " in said
    check(out, unbroken)


def test_two_commands_on_one_study(start, unbroken, tmp_path):
    out = tmp_path / "s"
    both = [start(out), start(out)]
    said = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    check(out, unbroken)


def test_workers_end_with_their_command(start, unbroken, tmp_path):
    out = tmp_path / "s"
    process = start(out, "--workers", 2)
    while num_records(out) < NUM_POINTS + 12 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()  # the workers hold the other end, so that this waits for them
    before = num_records(out)
    process = start(out, "--workers", 2)
    said, _ = process.communicate()
    assert process.returncode == 0, said
    assert num_records(out) > before
    check(out, unbroken)
