"""What users meet at the console: Ctrl-C at any time, characters that it cannot write, prompts that are no text."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from spikebrain.errors import InputError
from spikebrain.jobs import GenerateSettings

pytestmark = pytest.mark.slow
# As pip writes it; `spikebrain` looks for this name.
ENTRY = "import sys\nfrom spikebrain.cli import main\nsys.exit(main())\n"
PATCHED = """
import os, signal, sys, time
from spikebrain import jobs
from spikebrain.cli import main
{body}
sys.argv = ["spikebrain", {arguments}]
main()
"""


def run_patched(body, *arguments, out=None, **environment):
    script = PATCHED.format(body=body, arguments=", ".join(map(repr, arguments)))
    pipes = {"stdout": out or subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.run([sys.executable, "-c", script], env={**os.environ, **environment}, check=False, **pipes)


@pytest.mark.parametrize("command", ["module", "script"])
def test_interrupted_while_importing(tmp_path, command):
    (tmp_path / "spikebrain").write_text(ENTRY)
    (tmp_path / "torch.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(60)\n")
    words = [sys.executable, *(["-m", "spikebrain.cli"] if command == "module" else ["spikebrain"]), "doctor"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(words, cwd=tmp_path, **pipes) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"importing\n"
        process.send_signal(signal.SIGINT)
        out, said = process.communicate(timeout=60)
    assert (process.returncode, out, said) == (130, b"", b"Interrupted.\n")


def test_a_program_that_imports_the_package_keeps_its_own_handling():
    code = "import signal, spikebrain; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stdout == "True\n"


WORK = """
def work():
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(30)
    finally:
        print("cleaned up", flush=True)
        {then}
jobs.examine = work
"""


@pytest.mark.parametrize("then", ["pass", "os.kill(os.getpid(), signal.SIGINT); time.sleep(30)"], ids=["once", "twice"])
def test_interrupted_while_working(then):
    run = run_patched(WORK.format(then=then), "doctor")
    assert (run.returncode, run.stdout, run.stderr) == (130, b"cleaned up\n", b"Interrupted.\n")


WRITES = """
import torch
from spikebrain.jobs import Generated
def work(settings, write, progress):
    write("caf\\u00e9 \\u2192 \\U0001d54a")
    progress.say("\\u03bb")
    progress.bar("\\u2192", 2, "tokens")(2)
    return Generated("", torch.zeros(2, dtype=torch.int64), 2, 1.0, 8, None)
jobs.generate = work
"""


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("cp1252", b"caf\xe9 \\u2192 \\U0001d54a"),
        ("ascii", b"caf\\xe9 \\u2192 \\U0001d54a"),
        ("utf-8", "café → 𝕊".encode()),
    ],
)
def test_characters_that_a_console_cannot_write(encoding, shown):
    run = run_patched(WRITES, "generate", "model", "prompt", PYTHONIOENCODING=encoding)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith(shown)
    assert ("λ" if encoding == "utf-8" else "\\u03bb").encode() in run.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_text_that_comes_onto_a_full_disk():
    with open("/dev/full", "w") as full:
        run = run_patched(WRITES, "generate", "model", "prompt", out=full)
    assert run.returncode == 2
    assert (
        run.stderr == b"error: standard output: cannot be written: No space left on device. Send it to another place.\n"
    )


@pytest.mark.parametrize("ways", [(), ("-q",), ("--json",)])
def test_standard_output_that_is_closed(ways):
    run = run_patched("import sys; sys.stdout = None\n" + WRITES, "generate", "model", "prompt", *ways)
    assert run.returncode == 2
    assert run.stderr.startswith(b"error: standard output: expected a terminal, file or pipe, got none: it is closed.")


def test_a_message_that_a_console_cannot_write():
    run = run_patched("", "energy", "λ.json", PYTHONIOENCODING="ascii")
    assert run.returncode == 2
    assert b"error: \\u03bb.json: cannot be read: No such file or directory." in run.stderr


def test_a_prompt_that_is_no_text(as_users):
    for prompt in ("caf\udce9", 3):
        with pytest.raises(InputError, match="prompt: expected a text that UTF-8 can hold, got"):
            GenerateSettings("model", prompt)
