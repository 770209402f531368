"""The chip as a backend of `SpikeLinear`."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..chip.description import Description, load_description
from ..chip.layer import IMPLEMENTATIONS, LayerSimulation, check_jitter, simulate_layer
from ..chip.mapping import InOrder, Mapping, Placement
from ..chip.network import Network, build_network
from ..errors import InputError
from .base import BACKENDS, Backend

# Packets of a call are built for this many places of a train at a time.
_PORTION = 2**24


@BACKENDS.register("chip")
class Chip(Backend):
    """Accumulates on a simulated chip, packet by packet.

    Each layer is mapped to the chip by itself; `simulate_model` maps a whole model at once.

    Args:
        description: a preset by name (ideal-45nm, async-45nm, loihi), the path of a .toml file, or a `Description`.
        mapping: cuts and places layers.
        stream: weights stream from DRAM, so that layers larger than the chip fit.
        overlap: tokens of a call overlap, as in prefill; else one begins when the one before has ended.
        jitter: services last up to this share longer, at random; changes times, never sums.
        seed: of the jitter.
        trace: keep every service of every call.
        implementation: "engine", or "simpy" for the short and slow one.
        on_simulation: called with the `LayerSimulation` of every call.
    Raises:
        InputError: an argument is wrong; a layer that does not fit raises when it is called.

    >>> from spikebrain.coding import Ternary
    >>> train = Ternary().encode(torch.tensor([[2, -1]]), num_timesteps=2)
    >>> weight = torch.tensor([[10, 1], [20, 2]], dtype=torch.int8)
    >>> seen = []
    >>> Chip("async-45nm", on_simulation=seen.append).accumulate(train, weight).tolist()
    [[19, 38]]
    >>> int(seen[0].activity.num_synops)  # 3 spikes reach 2 outputs each
    6
    """

    def __init__(
        self,
        description: str | os.PathLike | Description = "async-45nm",
        *,
        mapping: Mapping | None = None,
        stream: bool = False,
        overlap: bool = True,
        jitter: float = 0.0,
        seed: int = 0,
        trace: bool = False,
        implementation: str = "engine",
        on_simulation: Callable[[LayerSimulation], Any] | None = None,
    ) -> None:
        self.description = description if isinstance(description, Description) else load_description(description)
        self.mapping = mapping or InOrder()
        if not isinstance(self.mapping, Mapping):
            raise InputError(f"Chip.mapping: expected a Mapping such as InOrder(), got {mapping!r}.")
        if implementation not in IMPLEMENTATIONS:
            raise InputError(
                f"Chip.implementation: expected one of {', '.join(IMPLEMENTATIONS)}, got {implementation!r}."
            )
        check_jitter(jitter, seed)
        self.stream, self.overlap, self.jitter, self.seed = stream, overlap, jitter, seed
        self.trace, self.implementation, self.on_simulation = trace, implementation, on_simulation
        self._placed: dict[tuple[int, int], tuple[Placement, Network]] = {}

    def __repr__(self) -> str:
        return f"Chip({self.description.name!r})"

    def why_unavailable(self, device: torch.device) -> str | None:
        """Return why there is no simulation on that device: it runs on a CPU only."""
        if device.type == "cpu":
            return None
        return f"a chip is simulated on the CPU, got tensors on {device}; move the model."

    def place(self, in_features: int, out_features: int) -> tuple[Placement, Network]:
        """Return where a layer of that shape lies, and its stations."""
        shape = (in_features, out_features)
        if shape not in self._placed:
            placement = self.mapping.place(*shape, self.description, streamed=self.stream)
            self._placed[shape] = placement, build_network(placement, self.description)
        return self._placed[shape]

    def _accumulate(self, spikes: Tensor, timestep_weight: Tensor, weight: Tensor) -> Tensor:
        num_timesteps, num_tokens, in_features = spikes.shape
        out_features = len(weight)
        sums = torch.zeros(num_tokens, out_features, dtype=torch.int64)
        if not sums.numel() or not in_features:
            return sums
        placement, network = self.place(in_features, out_features)
        rows = weight.t().contiguous().numpy()
        portion = max(1, _PORTION // (num_timesteps * in_features))
        for first in range(0, num_tokens, portion):
            part = np.ascontiguousarray(spikes[:, first : first + portion].numpy())
            found = simulate_layer(
                part,
                timestep_weight.numpy(),
                rows,
                self.description,
                placement,
                network=network,
                overlap=self.overlap,
                jitter=self.jitter,
                seed=self.seed,
                trace=self.trace,
                implementation=self.implementation,
            )
            sums[first : first + portion] = torch.from_numpy(found.sums)
            if self.on_simulation is not None:
                self.on_simulation(found)
        return sums
