"""Processes that train together: their steps are those of one process, and what they share and refuse."""

import json
import os
import subprocess
import sys

import pytest
import torch

from spikebrain import jobs
from spikebrain.errors import InputError
from spikebrain.models.training import Stage, Team, WrittenText
from spikebrain.models.training.distill import batch_of

COMMAND = "from spikebrain.cli import main\nmain()\n"
TEXT = "A neuron fires when its potential reaches the threshold, and then it rests for a while. " * 40


@pytest.fixture
def student(model_folder, tmp_path):
    jobs.convert(jobs.ConvertSettings(str(model_folder)), tmp_path / "student")
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path / "student"


def torchrun(tmp_path, content, *arguments, size=2):
    """Run a program in several processes."""
    script = tmp_path / "start.py"
    script.write_text(content)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size)]
    return subprocess.run(
        [*command, str(script), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_parts_of_a_batch_are_the_batch():
    tokens = torch.arange(70)
    stage = Stage(objective="logits", context=5, steps=1, learning_rate=1.0, batch_size=6)
    for index in range(5):
        parts = [batch_of(tokens, stage, 3, index, 1, Team(rank, 3)) for rank in range(3)]
        assert torch.equal(torch.cat(parts), batch_of(tokens, stage, 3, index, 1))
    with pytest.raises(InputError, match=r"batch_size: expected a multiple of 4, the number of processes, got 6\."):
        batch_of(tokens, stage, 3, 0, 1, Team(1, 4))


def test_no_two_processes_get_the_same_written_text(teacher):
    texts, size = [], 3
    for rank in range(size):
        written = WrittenText(teacher, at_once=2, seed=1, team=Team(rank, size))
        texts += written.batch(0, 12, 0, 5).tolist()
        assert written.identity() == "written by the teacher, 2 at once, seed 1, for 3 processes"
    assert len({tuple(text) for text in texts}) == 15
    alone = WrittenText(teacher, at_once=2, seed=1)
    assert {tuple(text) for text in alone.batch(0, 12, 0, 12).tolist()} <= {tuple(text) for text in texts}


AVERAGE = """
import torch
import torch.distributed as dist
from torch import nn
from spikebrain.models.training import Team

dist.init_process_group("gloo")
team, rank = Team.of_processes(), dist.get_rank()
assert (team.rank, team.size, team.is_first) == (rank, 2, rank == 0)
assert team.agree(True) is True
assert team.agree(rank == 0) is False
assert team.told(["first", rank]) == ["first", 0]
model = nn.Linear(3, 2)
model.weight.data.fill_(rank)
team.equalise(model)
assert bool((model.weight == 0).all())
only_here, nowhere = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(1))
model.weight.grad = torch.full((2, 3), 1.0 + 2 * rank)
if rank == 1:
    only_here.grad = torch.tensor([4.0, -2.0])
loss = team.average([model.weight, only_here, nowhere], torch.tensor(float(rank)))
assert float(loss) == 0.5
assert bool((model.weight.grad == 2).all())
assert only_here.grad.tolist() == [2.0, -1.0]
assert nowhere.grad is None
print("averaged")
dist.destroy_process_group()
"""


def test_gradients_are_averaged(tmp_path):
    ran = torchrun(tmp_path, AVERAGE)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("averaged") == 2


def test_one_process_on_its_own_is_refused(run, model_folder, student, tmp_path, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    code, _, err = run(
        "distill", model_folder, student, "--text", tmp_path / "text.txt", "--out", tmp_path / "out", "--parallel"
    )
    assert code == 2
    assert "Start it by torchrun, as the help of --parallel shows." in err
    assert not (tmp_path / "out").exists()
    shown = " ".join(run("distill", "--help")[1].split())
    assert "torchrun --nproc_per_node=2 --no_python spikebrain distill" in shown


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(run, model_folder, student, tmp_path):
    options = ["--context", 16, "--batch-size", 4, "--attention-steps", 3, "--logits-steps", 4, "--device", "cpu"]
    arguments = ["distill", model_folder, student, "--text", tmp_path / "text.txt", *options, "--json"]
    code, _, err = run(*arguments, "--out", tmp_path / "one")
    assert code == 0, err
    ran = torchrun(tmp_path, COMMAND, *arguments, "--parallel", "--out", tmp_path / "two")
    assert ran.returncode == 0, ran.stderr
    shown = json.loads(ran.stdout)  # of the first process alone
    one, two = (json.loads((tmp_path / name / "loss.json").read_text()) for name in ("one", "two"))
    assert [point["loss"] for point in shown["losses"]] == [point["loss"] for point in two]
    torch.testing.assert_close(
        *(torch.tensor([point["loss"] for point in losses]) for losses in (one, two)), rtol=1e-3, atol=1e-6
    )
    assert not list((tmp_path / "two").glob("plan.json"))
    ran = torchrun(tmp_path, COMMAND, *arguments, "--parallel", "--out", tmp_path / "three", size=3)
    assert ran.returncode != 0
    assert "--batch-size: expected a multiple of 3, the number of processes, got 4." in ran.stderr
    ran = torchrun(tmp_path, COMMAND, *arguments, "--parallel", "--out", tmp_path / "two")  # which is full
    assert ran.returncode != 0
    assert f"{tmp_path / 'two'}: holds config.json" in " ".join(ran.stderr.split())
    assert "gloo" not in ran.stderr


@pytest.mark.slow
def test_written_text_in_the_time_that_is_given(model_folder, student, tmp_path):
    options = ["--fresh", "--context", 16, "--batch-size", 2, "--minutes", 1e-9, "--device", "cpu", "--json"]
    arguments = ["distill", model_folder, student, *options, "--parallel", "--out", tmp_path / "out"]
    ran = torchrun(tmp_path, COMMAND, *arguments)
    assert ran.returncode == 0, ran.stderr
    assert len(json.loads(ran.stdout)["losses"]) == 2
    assert {"config.json", "loss.json"} <= {path.name for path in (tmp_path / "out").iterdir()}
