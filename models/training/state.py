"""The state of a training on disk: one safetensors file, replaced in one step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ...errors import CheckpointError, InputError
from ...files import parse_json, write_json, write_tensors

FILE_NAME = "training.safetensors"
LOSSES = "loss.json"


def save_state(
    folder: Path, key: str, model: nn.Module, optimizer: torch.optim.Optimizer, progress: dict[str, Any]
) -> None:
    """Write parameters, optimiser state and progress in one step; a crash leaves the previous file.

    Args:
        folder: where to write.
        key: identifies the job.
        model: all of its parameters are written, by name.
        optimizer: its state is written; it may hold only some of the parameters.
        progress: JSON values; "losses" are also written to loss.json.
    Raises:
        CheckpointError: it cannot be written.
    """
    names: dict[torch.Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    tensors = {f"model.{name}": parameter.detach() for parameter, name in names.items()}
    for parameter, remembered in optimizer.state.items():
        tensors |= {f"optimizer.{names[parameter]}:{field}": value for field, value in remembered.items()}
    tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    write_tensors(folder / FILE_NAME, tensors, {"key": key, "progress": json.dumps(progress)}, CheckpointError)
    write_json(folder / LOSSES, progress["losses"], error=CheckpointError)


class SavedState:
    """A state that `save_state` wrote.

    Args:
        folder: where it was written.
        key: identifies the job that goes on.
    Attributes:
        progress: as it was saved; None if there is no state.
    Raises:
        InputError: the state belongs to another job.
        CheckpointError: the file is damaged.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.path = folder / FILE_NAME
        self.progress: dict[str, Any] | None = None
        self._tensors: dict[str, Tensor] = {}
        if not self.path.exists():
            return
        try:
            with safe_open(self.path, "pt") as file:
                metadata = file.metadata() or {}
                self._tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{self.path}: cannot be read: {error}. Delete it to start again.") from error
        if metadata.get("key") != key:
            raise InputError(
                f"{self.path}: is the state of a training with other settings, tokens or sizes, or of other "
                "models. Name another folder, or delete it to start again."
            )
        self.progress = parse_json(metadata.get("progress", ""), str(self.path), CheckpointError)

    @torch.no_grad()
    def restore_model(self, model: nn.Module) -> None:
        """Copy the saved parameters into a model with the same parameters."""
        for name, parameter in model.named_parameters():
            parameter.copy_(self._tensors[f"model.{name}"])

    def restore_optimizer(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Copy the saved optimiser state into an optimiser of the same parameters."""
        parameters = dict(model.named_parameters())
        for name, tensor in self._tensors.items():
            kind, _, rest = name.partition(".")
            if kind == "optimizer":
                owner, _, field = rest.rpartition(":")
                parameter = parameters[owner]
                optimizer.state[parameter][field] = tensor.to(parameter.device, copy=True)
