"""Checks what ran against exact integer products, on a random sample of output elements."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch import nn

from ..models import SpikeLinear
from ..models.layers.spike_linear import Step, observing


class ExactnessCheck:
    """Recomputes sampled accumulations as integer products of count and weight, without spikes.

    The sample depends on the seed, the layer and the counts that it meets, not on the order in which layers run.

    Args:
        seed: of the sample.
        num_per_step: output elements checked each time a layer runs.

    Attributes:
        num_checked: elements compared so far.
        num_mismatches: elements that differed.
        first_mismatch: what the first one was, or None.
    """

    def __init__(self, seed: int = 0, num_per_step: int = 32) -> None:
        self.seed = seed
        self.num_per_step = num_per_step
        self.num_checked = 0
        self.num_mismatches = 0
        self.first_mismatch: str | None = None
        self._lock = threading.Lock()

    @contextmanager
    def watch(self, model: nn.Module) -> Iterator[ExactnessCheck]:
        """Check every spiking layer of a model inside a `with` block."""
        with observing((module for module in model.modules() if isinstance(module, SpikeLinear)), self._check):
            yield self

    def state(self) -> dict[str, Any]:
        """Return what has been found so far, as JSON values."""
        return {name: getattr(self, name) for name in ("num_checked", "num_mismatches", "first_mismatch")}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        self.num_checked, self.num_mismatches = state["num_checked"], state["num_mismatches"]
        self.first_mismatch = state["first_mismatch"]

    def _check(self, layer: SpikeLinear, step: Step) -> None:
        rng = np.random.default_rng([self.seed, zlib.crc32(layer.name.encode()), int(step.count.abs().sum())])
        tokens = rng.integers(len(step.count), size=self.num_per_step)
        groups = rng.integers(len(layer.groups), size=self.num_per_step)
        outputs = rng.integers(layer.out_features, size=self.num_per_step)
        for token, g, output in zip(tokens.tolist(), groups.tolist(), outputs.tolist(), strict=True):
            channels = layer.groups[g]
            count = step.count[token, channels].cpu().numpy().astype(np.int64)
            weight = layer.weight[output, channels].cpu().numpy().astype(np.int64)
            expected, found = int(count @ weight), int(step.accumulation[token, g, output])
            with self._lock:
                self.num_checked += 1
                if expected != found:
                    where = f"{layer.name}, token {step.first_token + token}, output {output}"
                    self.num_mismatches += 1
                    self.first_mismatch = self.first_mismatch or f"{where}: expected {expected}, got {found}"
