"""The gradients of a step: computed kernel by kernel, or as one CUDA graph.

A step of a small model launches thousands of small kernels, which takes Python longer than the GPU takes to run them.
The student's part of a step is therefore captured after a few batches, and replayed for all that follow. The teacher
runs beside it: its kernels are launched while the GPU still works on the batch before.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..spikingbrain.moe import MixtureOfExperts
from .objectives import hidden_of, layers_of, match_layers, match_logits
from .settings import DistillSettings, Stage

# Batches before the capture: kernels are compiled, their launch settings found, and gradients allocated in them.
_BEFORE = 4


def why_not_captured(student: nn.Module, settings: DistillSettings) -> str | None:
    """Return why a student's steps on a GPU cannot be one graph, or None.

    Args:
        student: the model.
        settings: as for `distill`.
    """
    if settings.gradient_checkpointing:
        return "layers are computed again in the backward pass"
    mixtures = [module for module in student.modules() if isinstance(module, MixtureOfExperts)]
    learn = any(stage.trainable == "all" for stage in settings.stages)
    if any(learn or not mixture.are_equal for mixture in mixtures):
        return "how many tokens an expert gets is known only while a step runs"
    return None


class Gradients:
    """Adds the gradients of batches to a student's parameters.

    Args:
        student: parameters that require gradients learn.
        teacher: the Transformer.
        stage: objective and sizes; all batches have the same shape.
        settings: precision, and what may rule a graph out.
        penalty: added to the loss of logits; see `match_logits`.
    """

    def __init__(
        self,
        student: PreTrainedModel,
        teacher: Any,
        stage: Stage,
        settings: DistillSettings,
        penalty: Callable[[], Tensor] | None = None,
    ) -> None:
        self._student = student
        self._precision, self._share = settings.precision, 1 / stage.accumulation
        self._known_of: Callable[[Any, Tensor], tuple[Tensor, ...]]
        self._learn: Callable[..., Tensor]
        if stage.objective == "attention":
            self._known_of, self._learn = layers_of, match_layers
        else:
            options = {"temperature": stage.temperature, "ce_weight": stage.ce_weight, "penalty": penalty}
            self._known_of, self._learn = (
                hidden_of,
                functools.partial(match_logits, head=teacher.get_output_embeddings(), **options),
            )
        self._teacher = teacher
        may_capture = student.device.type == "cuda" and why_not_captured(student, settings) is None
        self._left = _BEFORE if may_capture else -1
        self._graph: _Graph | None = None
        self._reached: list[nn.Parameter] = []

    @property
    def is_captured(self) -> bool:
        """Whether a graph adds to the gradients, which must then stay where they are."""
        return self._graph is not None

    def add(self, ids: Tensor) -> Tensor:
        """Add the gradients of a batch, as its share of a step, and return its loss, which a GPU may still compute.

        Args:
            ids: token ids, [B, L], on the CPU.
        """
        device = self._student.device
        if device.type == "cuda":
            ids = ids.pin_memory().to(device, non_blocking=True)
        else:
            ids = ids.to(device)
        with self._autocast():
            known = self._known_of(self._teacher, ids)
        if self._graph is None and self._left == 0:
            self._capture(known, ids)
        if self._graph is not None:
            return self._graph.replay(known, ids)
        self._left -= self._left > 0
        return self._eager(known, ids)

    def _eager(self, known: tuple[Tensor, ...], ids: Tensor) -> Tensor:
        with self._autocast():
            loss = self._learn(self._student, known, ids, self._share)
        if self._left == 0:
            self._reached = [parameter for parameter in self._student.parameters() if parameter.grad is not None]
        return loss

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._student.device.type, torch.bfloat16, enabled=self._precision == "bfloat16")

    def _capture(self, known: tuple[Tensor, ...], ids: Tensor) -> None:
        for parameter in self._reached:  # a graph adds to gradients that exist
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        try:
            self._graph = _Graph(self._eager, known, ids)
        except RuntimeError as error:
            self._left = -1
            warnings.warn(
                f"distill: the steps could not be captured in a CUDA graph, so they run kernel by kernel: {error}",
                stacklevel=2,
            )


class _Graph:
    """A captured batch: what it reads, and its loss."""

    def __init__(self, run: Callable[..., Tensor], known: tuple[Tensor, ...], ids: Tensor) -> None:
        self._known, self._ids = tuple(x.clone() for x in known), ids.clone()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._loss = run(self._known, self._ids)

    def replay(self, known: tuple[Tensor, ...], ids: Tensor) -> Tensor:
        for kept, new in zip((*self._known, self._ids), (*known, ids), strict=True):
            kept.copy_(new)
        self._graph.replay()
        return self._loss.clone()
