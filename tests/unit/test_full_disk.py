"""A full disk, and a folder in the place of a file, while a job writes: an error of ours, and nothing half written."""

import errno
import json
import os
from collections import Counter

import pytest
import torch

from spikebrain import files
from spikebrain.analysis import plot_histogram
from spikebrain.analysis.energy import describe_energy
from spikebrain.energy import DigitalEnergy, count_operations
from spikebrain.errors import CheckpointError, InputError
from spikebrain.jobs import (
    ConvertSettings,
    DistillRun,
    EnergySettings,
    ReportSettings,
    SimulateSettings,
    convert,
    distill,
    energy,
    report,
    simulate,
)
from spikebrain.models import from_transformer, save, to_spiking
from spikebrain.models.recording import record

PLAN = "gla,swa"


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("The neuron fires when its membrane potential reaches the threshold. " * 8)
    return path


@pytest.fixture(autouse=True)
def student(tmp_path, tiny_llama, tokenizer):
    """What a distillation starts from."""
    save(from_transformer(tiny_llama, PLAN), tmp_path / "student", tokenizer)


@pytest.fixture
def full_disk(monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return lambda: monkeypatch.setattr(files.os, "fsync", full)


def counts_file(folder, model):
    spiking = to_spiking(model)
    with record(spiking, block_bytes=(64,)) as recording, torch.no_grad():
        spiking(torch.arange(8)[None])
    path = folder / "report.json"
    path.write_text(
        json.dumps({"kind": "energy", "format": 1, **describe_energy(count_operations(recording), DigitalEnergy())})
    )
    return path


def run_energy(folder, model, text, out):
    energy(EnergySettings(source=str(counts_file(folder, model))), out)


def run_save(folder, model, text, out):
    save(to_spiking(model), out / "model.safetensors")


def run_folder(folder, model, text, out):
    save(from_transformer(model, PLAN), out)


def run_plot(folder, model, text, out):
    plot_histogram(Counter({0: 3, 1: 2}), out / "histogram.png", "title")


def run_convert(folder, model, text, out):
    convert(ConvertSettings(model=str(folder), layout=PLAN), out, force=True)


def run_report(folder, model, text, out):
    report(ReportSettings(model=str(folder), text=text, num_tokens=64, context=32), out)


def run_simulate(folder, model, text, out):
    settings = SimulateSettings(model=str(folder), text=text, num_tokens=3, timeline="model.layers.0.mlp.up_proj")
    simulate(settings, out)


def run_distill(folder, model, text, out):
    tokens = {"context": 32, "batch_size": 2, "attention_steps": 1, "logits_steps": 1}
    distill(DistillRun(teacher=str(folder), student=folder.parent / "student", text=(text,), **tokens), out, force=True)


FAST = [
    (run_save, "model.safetensors"),
    (run_folder, "config.json"),
]
SLOW = [
    (run_plot, "histogram.png"),
    (run_energy, "energy.json"),
    (run_convert, "config.json"),
    (run_report, "layers.csv"),
    (run_simulate, "simulation.json"),
    (run_simulate, "timeline.pftrace"),
    (run_distill, "training.safetensors"),
    (run_distill, "loss.png"),
]
JOBS = [*FAST, *(pytest.param(*job, marks=pytest.mark.slow) for job in SLOW)]


@pytest.mark.parametrize(("run", "file"), JOBS)
def test_a_folder_in_the_place_of_a_file(tmp_path, model_folder, tiny_llama, text, run, file):
    out = tmp_path / "out"
    (out / file / "inner").mkdir(parents=True)
    with pytest.raises((InputError, CheckpointError), match=rf"{file}: cannot be (written|read): "):
        run(model_folder, tiny_llama, text, out)
    assert not list(out.rglob("*.partial"))


@pytest.mark.parametrize(("run", "file"), JOBS)
def test_a_disk_that_is_full(tmp_path, model_folder, tiny_llama, text, full_disk, run, file):
    out = tmp_path / "out"
    out.mkdir()
    full_disk()
    with pytest.raises((InputError, CheckpointError), match="cannot be written: No space left on device"):
        run(model_folder, tiny_llama, text, out)
    assert not list(out.rglob("*.partial"))
