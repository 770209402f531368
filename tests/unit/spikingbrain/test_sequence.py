"""One text read by several processes: the logits and the state of one process."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from spikebrain.errors import InputError
from spikebrain.models.spikingbrain import SpikingBrainForCausalLM, sequence_prefill, tiny_7b

RANKS = Path(__file__).with_name("sequence_ranks.py")


def run(folder, size, *more):
    """Return exit codes and outputs of all ranks."""
    commands = [[sys.executable, str(RANKS), str(folder), str(rank), str(size), *more] for rank in range(size)]
    started = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for command in commands
    ]
    outputs = [process.communicate(timeout=180)[0] for process in started]
    return [process.returncode for process in started], outputs


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4])
def test_several_ranks_equal_one(tmp_path, size):
    codes, outputs = run(tmp_path, size)
    assert codes == [0] * size, "\n".join(outputs)
    assert all("passed" in output for output in outputs)


@pytest.mark.slow
def test_a_rank_that_dies(tmp_path):
    codes, outputs = run(tmp_path, 2, "dies")
    assert codes == [4, 3], "\n".join(outputs)
    assert "rank 0 of 2 got no answer from another rank" in outputs[0]


def test_without_a_process_group():
    with pytest.raises(InputError, match=r"expected a process group\. Start the program with torchrun"):
        sequence_prefill(SpikingBrainForCausalLM(tiny_7b()), torch.zeros(1, 4, dtype=torch.int64))
