"""The command `generate` from a file, and by several processes of torchrun."""

import json
import subprocess
import sys

import pytest

from spikebrain import jobs


@pytest.fixture
def float_folder(model_folder, tmp_path):
    jobs.convert(jobs.ConvertSettings(str(model_folder), layout="7b", window=16), tmp_path / "float")
    return tmp_path / "float"


def test_a_prompt_from_a_file(run, float_folder, tmp_path):
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("A neuron fires")
    options = ("--max-new-tokens", 5, "--device", "cpu")
    _, typed, _ = run("generate", float_folder, "A neuron fires", "--json", *options)
    code, read, err = run("generate", float_folder, "--prompt-file", prompt, "--json", *options)
    assert code == 0, err
    typed, read = json.loads(typed), json.loads(read)
    assert read["token_ids"] == typed["token_ids"]
    assert (read["prompt"], read["prompt_file"]) == (None, str(prompt))
    code, shown, _ = run("generate", float_folder, "--prompt-file", prompt, *options)
    assert code == 0
    assert not shown.startswith("A neuron fires")  # a long text is not printed again
    for arguments, got in (((), "neither"), (("A", "--prompt-file", prompt), "both")):
        code, _, err = run("generate", float_folder, *arguments)
        assert code == 2
        assert f"got {got}." in err
    code, _, err = run("generate", float_folder, "--prompt-file", tmp_path / "none.txt")
    assert code == 2
    assert "cannot be read" in err
    prompt.write_text("")
    code, _, err = run("generate", float_folder, "--prompt-file", prompt)
    assert code == 2
    assert f"--prompt-file {prompt}: expected at least one token, got none." in err


def test_one_process_on_its_own_is_refused(run, float_folder, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    code, _, err = run("generate", float_folder, "A", "--parallel", "--device", "cpu")
    assert code == 2
    assert "expected to be started by torchrun" in err
    assert "Start it by torchrun, as the help of --parallel shows." in err
    shown = " ".join(run("generate", "--help")[1].split())
    assert "torchrun --nproc_per_node=2 --no_python spikebrain generate" in shown


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3])
def test_several_processes_write_what_one_does(run, float_folder, tmp_path, size):
    text = "A neuron fires when its potential reaches the threshold, and then it rests for a while. " * 2
    (tmp_path / "prompt.txt").write_text(text)
    arguments = ["generate", str(float_folder), "--prompt-file", str(tmp_path / "prompt.txt"), "--max-new-tokens", "6"]
    arguments += ["--device", "cpu", "--json"]
    code, alone, err = run(*arguments)
    assert code == 0, err
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size)]
    script = tmp_path / "start.py"
    script.write_text("from spikebrain.cli import main\nmain()\n")
    ran = subprocess.run(
        [*torchrun, str(script), *arguments, "--parallel"], capture_output=True, text=True, check=False, timeout=300
    )
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)  # of one process alone
    assert found["token_ids"] == json.loads(alone)["token_ids"]
    (tmp_path / "prompt.txt").write_text("A")
    ran = subprocess.run(
        [*torchrun, str(script), *arguments, "--parallel"], capture_output=True, text=True, check=False
    )
    assert ran.returncode != 0
    name = f"--prompt-file {tmp_path / 'prompt.txt'}"
    assert f"{name}: expected {size} tokens or more, one for each process" in ran.stderr
