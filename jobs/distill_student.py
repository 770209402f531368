"""What learns: a SpikingBrain model, or an ordinary Transformer that will run on spikes; and how it is saved."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from ..errors import CheckpointError, InputError
from ..files import cannot_write
from ..models import GradedLinear, SpikeLinear, SpikeSettings, save, to_spiking
from ..models.io import load
from ..models.spikingbrain import SpikingBrainForCausalLM
from ..neuro import AdaptiveThreshold
from .given import SPIKES, refuse, refuse_spikes
from .inputs import is_spiking, require_tokenizer
from .progress import Progress

# Folder of the float model beside one that was trained to run on spikes.
FLOAT = "float"
# Groups of GGUF files, by the bits of their integers: 4 with minima, or 8 without.
_STORED = {4: {"weights": "int4"}, 8: {"weights": "int8", "group_size": 32}}


class Student(NamedTuple):
    """A model that is to be trained.

    Attributes:
        model: in floats.
        tokenizer: its tokenizer.
        spikes: how an ordinary Transformer will run on spikes; None for a SpikingBrain model.
    """

    model: Any
    tokenizer: Any
    spikes: SpikeSettings | None


def student_of(run: Any, teacher: Any, progress: Progress) -> Student:
    """Load what learns.

    A folder on spikes, as `calibrate` writes it, gives the settings. Its float weights are those in its folder `float`
    if it was trained before, or else the teacher's.

    Args:
        run: the job; `student`, and how it is to spike.
        teacher: the Transformer.
        progress: told what happens.
    Raises:
        InputError: an argument has no effect on such a student, or the student is not of the teacher's kind.
    """
    model, tokenizer, source = load(run.student, say=progress.say, bar=progress.bar)
    if isinstance(model, SpikingBrainForCausalLM):
        why = "on a SpikingBrain model, which trains with spikes by `spiking`"
        refuse(run, (*SPIKES, "growth", "budget"), why)
        if is_spiking(model):
            raise InputError(
                f"student: expected a SpikingBrain model without spikes, got {source}, which spikes. Name the folder "
                "that it was made from; `spiking` trains with spikes in the forward pass."
            )
        return Student(model, require_tokenizer(tokenizer, source), None)
    refuse(
        run,
        ("attention_steps", "logits_rate", "only_attention", "spiking"),
        f"on {source}, which is no SpikingBrain model",
    )
    if run.logits_steps is not None:
        refuse(run, ("minutes",), "where `logits_steps` are given")
    if run.logits_steps == 0:
        raise InputError("logits_steps: expected more than 0, the only steps of an ordinary Transformer, got 0.")
    if not is_spiking(model):
        return Student(model, require_tokenizer(tokenizer, source), run.spike_settings())
    refuse_spikes(run, source)
    spikes = _trainable(model, source, progress)
    kept = Path(run.student) / FLOAT
    floats = load(kept, say=progress.say, bar=progress.bar).model if kept.is_dir() else copy.deepcopy(teacher)
    _check_same(model, floats, source)
    if kept.is_dir():
        _check_origin(model, floats, spikes, kept)
    return Student(floats, require_tokenizer(tokenizer, source), spikes)


def save_student(student: Student, out: Path) -> nn.Module:
    """Write a trained model: a SpikingBrain model as it is; another on spikes, with its float weights in `float`.

    Args:
        student: on the CPU.
        out: folder.
    Returns:
        The model that `load` returns from there.
    """
    if student.spikes is None:
        save(student.model, out, student.tokenizer)
        return student.model
    try:
        student.model.save_pretrained(out / FLOAT)
        student.tokenizer.save_pretrained(out / FLOAT)
    except OSError as error:
        raise cannot_write(out / FLOAT, error, CheckpointError) from error
    spiking = to_spiking(student.model, student.spikes)
    save(spiking, out, student.tokenizer)
    return spiking


def _trainable(model: nn.Module, source: str, progress: Progress) -> SpikeSettings:
    """Return the settings of a spiking model, with weights that follow from floats in the place of stored ones."""
    settings: SpikeSettings = model.conversion.settings  # pyright: ignore[reportAssignmentType, reportAttributeAccessIssue]
    if settings.weights != "stored":
        return settings
    layers = _own_rows(model).values()
    kinds = {(layer.weight_bits, layer.group_size, layer.minimum is None) for layer in layers}
    bits = next(iter(kinds))[0]
    if kinds not in ({(4, 32, False)}, {(8, 32, True)}):
        raise InputError(
            "student: expected stored weights of one kind, of 4 bits with minima or of 8 without, in groups of 32, got "
            f"others in {source}. Calibrate with `weights` int4 or int8."
        )
    progress.say(
        f"Stored weights do not learn: they become {_STORED[bits]['weights']} in groups of 32, with compact scales."
    )
    return replace(settings, **_STORED[bits], compact_scales=True)


def _own_rows(model: nn.Module) -> dict[str, SpikeLinear]:
    """Return the layer's own rows of each layer on spikes, by name."""
    graded = {name: module.own for name, module in model.named_modules() if isinstance(module, GradedLinear)}
    plain = {name: module for name, module in model.named_modules() if isinstance(module, SpikeLinear)}
    return {name: layer for name, layer in plain.items() if ".levels." not in f".{name}"} | graded


def _check_origin(spiking: nn.Module, floats: nn.Module, spikes: SpikeSettings, kept: Path) -> None:
    """Raise an InputError unless a model on spikes was made of the float weights beside it; its first layer tells."""
    name, layer = next(iter(_own_rows(spiking).items()))
    alone = replace(spikes, layers=(name,), skip=(), neuron=AdaptiveThreshold(), coarse=(), attention=None)
    made: Any = to_spiking(floats, alone).get_submodule(name)
    if not (torch.equal(made.weight, layer.weight) and torch.equal(made.scale, layer.scale)):
        raise InputError(
            f"student: expected float weights in {kept} of which the model beside them was made, got others: {name} "
            f"differs. Delete {kept}, and the teacher's are taken."
        )


def _check_same(spiking: nn.Module, floats: nn.Module, source: str) -> None:
    """Raise an InputError unless every layer on spikes has a float layer of its size."""
    own = dict(floats.named_modules())
    for name, layer in _own_rows(spiking).items():
        found = own.get(name)
        shape = getattr(getattr(found, "weight", None), "shape", None)
        shape = shape[::-1] if shape is not None and isinstance(found, Conv1D) else shape
        if shape != layer.weight.shape:
            raise InputError(
                f"student: expected a model on spikes that was made of the teacher, got {source}, whose {name} has "
                f"weights {list(layer.weight.shape)}, where the teacher has "
                f"{'no such layer' if shape is None else list(shape)}. Name its own teacher."
            )
