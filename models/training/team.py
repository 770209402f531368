"""Processes that train one model together: each has a copy, takes a part of every batch, and averages gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ...errors import InputError


@dataclass(frozen=True)
class Team:
    """Where a process stands among those that train together (data parallel).

    All of them take the same steps. Gradients are averaged before each step, so the copies stay equal: a step is that
    of one process with whole batches, but for the order in which floats are added.

    Attributes:
        rank: of this process, from 0. The first one writes files.
        size: number of processes; 1 for a process on its own, which exchanges nothing.
        on_host: the group that exchanges what is on the CPU; None for the usual one.
    """

    rank: int = 0
    size: int = 1
    on_host: Any = None

    @classmethod
    def of_processes(cls) -> Team:
        """Return the place of this process in torch.distributed, which must have been initialised."""
        on_host = None if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")
        return cls(dist.get_rank(), dist.get_world_size(), on_host)

    @property
    def is_first(self) -> bool:
        """Whether this process writes files."""
        return self.rank == 0

    def share(self, batch_size: int) -> int:
        """Return how many texts of a batch a process takes.

        Raises:
            InputError: the processes cannot take equal parts.
        """
        if batch_size % self.size:
            raise InputError(
                f"batch_size: expected a multiple of {self.size}, the number of processes, got {batch_size}."
            )
        return batch_size // self.size

    def agree(self, yes: bool) -> bool:
        """Return whether all processes say yes."""
        if self.size == 1:
            return yes
        votes = torch.tensor(int(yes))
        dist.all_reduce(votes, dist.ReduceOp.MIN, group=self.on_host)
        return bool(votes)

    def told(self, content: Any) -> Any:
        """Return what the first process has; the others' argument does not matter."""
        if self.size == 1:
            return content
        box = [content]
        dist.broadcast_object_list(box, 0, group=self.on_host)
        return box[0]

    @torch.no_grad()
    def equalise(self, model: nn.Module) -> None:
        """Give all copies the parameters of the first process."""
        if self.size > 1:
            for parameter in model.parameters():
                dist.broadcast(parameter.data, 0)

    @torch.no_grad()
    def average(self, parameters: Sequence[nn.Parameter], loss: Tensor) -> Tensor:
        """Average the gradients over the processes, in place, and return the average of the loss.

        A parameter that got a gradient in some processes only, such as an expert without tokens, counts as 0 in others.
        """
        if self.size == 1:
            return loss
        reached = torch.tensor([parameter.grad is not None for parameter in parameters], dtype=torch.uint8)
        dist.all_reduce(reached, dist.ReduceOp.MAX, group=self.on_host)
        gradients = []
        for parameter, is_reached in zip(parameters, reached.tolist(), strict=True):
            if is_reached and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if is_reached:
                gradients.append(parameter.grad)
        flat = torch.cat([loss.detach().reshape(1).float(), *(gradient.flatten().float() for gradient in gradients)])
        dist.all_reduce(flat)
        flat /= self.size
        mean, *parts = flat.split([1, *(gradient.numel() for gradient in gradients)])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))
        return mean[0].to(loss.dtype)


ALONE = Team()
