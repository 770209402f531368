"""The simulated chip as a backend of `SpikeLinear`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ..chip import BYTES, Description, InOrder, LayerSimulation, Weights, load_description, simulate_layer
from ..chip import Mapping as ChipMapping
from ..chip.checks import placed
from ..chip.layer import IMPLEMENTATIONS, check_jitter
from ..chip.mapping import MAPPINGS, Placement
from ..chip.network import Network, build_network
from ..coding import PackedTrain, SpikeTrain
from ..errors import InputError
from ..registry import Raw
from .base import BACKENDS, Backend, WeightMemory, as_int32

# Packets of a call are built for this many places of a train at a time.
_PORTION = 2**24


@BACKENDS.register("chip")
@dataclass(frozen=True, repr=False)
class Chip(Backend):
    """Accumulates on a simulated chip, packet by packet.

    Each layer is mapped to the chip by itself; `simulate_model` maps a whole model at once. Settings and chip are saved
    with a model, whole; only `on_simulation` cannot be.

    Attributes:
        description: a name of `chip_names()`, the path of a .toml file, or a `Description`.
        mapping: cuts layers into cores and places them, an object or a registered name.
        stream: weights stream from DRAM, so that layers larger than the chip fit.
        overlap: tokens of a call overlap, as in prefill; else each begins when the one before has ended.
        jitter: services last up to this share longer, at random; changes times, never sums.
        seed: of the jitter.
        trace: keep every service of every call.
        implementation: "engine" (compiled), or "simpy" to run on SimPy.
        on_simulation: called with the `LayerSimulation` of every call.
    Raises:
        InputError: a setting is wrong; a layer that does not fit raises when it is called.

    >>> from spikebrain.coding import Ternary
    >>> train = Ternary().encode(torch.tensor([[2, -1]]), num_timesteps=2)
    >>> weight = torch.tensor([[10, 1], [20, 2]], dtype=torch.int8)
    >>> seen = []
    >>> Chip("async-45nm", on_simulation=seen.append).accumulate(train, weight).tolist()
    [[19, 38]]
    >>> int(seen[0].activity.num_synops)  # 3 spikes reach 2 outputs each
    6
    """

    knows_memory: ClassVar[bool] = True

    description: str | os.PathLike | Description = "async-45nm"
    mapping: str | ChipMapping = field(default_factory=InOrder, kw_only=True)
    stream: bool = field(default=False, kw_only=True)
    overlap: bool = field(default=True, kw_only=True)
    jitter: float = field(default=0.0, kw_only=True)
    seed: int = field(default=0, kw_only=True)
    trace: bool = field(default=False, kw_only=True)
    implementation: str = field(default="engine", kw_only=True)
    on_simulation: Callable[[LayerSimulation], Any] | None = field(default=None, kw_only=True, compare=False)
    _placed: dict[tuple[int, int, Weights], tuple[Placement, Network]] = field(
        default_factory=dict, init=False, compare=False
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "description", load_description(self.description))
        object.__setattr__(self, "mapping", MAPPINGS.resolve(self.mapping, "Chip.mapping"))
        if self.implementation not in IMPLEMENTATIONS:
            raise InputError(
                f"Chip.implementation: expected one of {', '.join(IMPLEMENTATIONS)}, got {self.implementation!r}."
            )
        check_jitter(self.jitter, self.seed)

    def __repr__(self) -> str:
        """Show the chip's name and every other setting that is not the default."""
        plain = ("stream", "overlap", "jitter", "seed", "trace", "implementation")
        defaults = {f.name: f.default for f in fields(self)}
        shown = [f"{name}={getattr(self, name)!r}" for name in plain if getattr(self, name) != defaults[name]]
        if type(self.mapping) is not InOrder:
            shown.insert(0, f"mapping={self.mapping!r}")
        return f"Chip({', '.join([repr(self.chip.name), *shown])})"

    @property
    def chip(self) -> Description:
        """The chip itself, read."""
        assert isinstance(self.description, Description)
        return self.description

    def to_fields(self) -> dict[str, Any]:
        """Return the settings for `registry.to_dict`.

        Raises:
            InputError: `on_simulation` is set, which no file can hold.
        """
        if self.on_simulation is not None:
            raise InputError("save: Chip.on_simulation is set, which a file cannot hold. Set it to None before saving.")
        hidden = ("on_simulation", "_placed", "description")
        settings = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in hidden}
        return {"description": Raw(self.chip.to_dict()), **settings}

    @classmethod
    def from_fields(cls, content: Mapping[str, Any]) -> Chip:
        """Build a backend from what `to_fields` gave."""
        settings = dict(content)
        return cls(Description.from_dict(settings.pop("description")), **settings)

    def why_unavailable(self, device: torch.device) -> str | None:
        """Return why there is no simulation on that device: it runs on a CPU only."""
        if device.type == "cpu":
            return None
        return f"a chip is simulated on the CPU, got tensors on {device}; move the model."

    def place(self, in_features: int, out_features: int, weights: Weights = BYTES) -> tuple[Placement, Network]:
        """Return where a layer of that shape and with such weights lies, and its stations."""
        key = (in_features, out_features, weights)
        if key not in self._placed:
            assert isinstance(self.mapping, ChipMapping)
            placement = placed(self.mapping, *key[:2], self.chip, streamed=self.stream, weights=weights)
            self._placed[key] = placement, build_network(placement, self.chip)
        return self._placed[key]

    def _accumulate(self, spikes: Tensor, timestep_weight: Tensor, weight: Tensor) -> Tensor:
        sums = torch.zeros(spikes.shape[1], len(weight), dtype=torch.int64)
        for tokens, found in self._simulate(spikes, timestep_weight, weight, BYTES):
            sums[tokens] = torch.from_numpy(found.sums)
        return sums

    def accumulate_in_memory(self, train: SpikeTrain | PackedTrain, weight: Tensor, memory: WeightMemory) -> Tensor:
        """Return the sums of each group: cores hold weights in their real width, and rescale group by group."""
        where = f"{type(self).__name__}.accumulate"
        train = self._checked(train, weight, where)
        out_features, in_features = weight.shape
        size = memory.group_size or max(in_features, 1)
        num_groups = max(-(-in_features // size), 1)
        parameter_bits = -(-8 * memory.scale_bytes // max(num_groups * out_features, 1)) if num_groups > 1 else 0
        weights = Weights(memory.bits, size if num_groups > 1 else None, parameter_bits, memory.has_minimum)
        flat = train.spikes.reshape(train.num_timesteps, train.spikes.shape[1:-1].numel(), in_features)
        sums = torch.zeros(flat.shape[1], num_groups, out_features, dtype=torch.int64)
        for tokens, found in self._simulate(flat, train.timestep_weight, weight, weights):
            of_groups = found.sums[:, None] if found.group_sums is None else found.group_sums
            sums[tokens] = torch.from_numpy(of_groups).long()
        if train.zero_point and in_features:
            rows = weight.long().split(size, 1)
            sums -= train.zero_point * torch.stack([row.sum(1) for row in rows])
        return as_int32(sums, where).reshape(*train.spikes.shape[1:-1], num_groups, out_features)

    def _simulate(
        self, spikes: Tensor, timestep_weight: Tensor, weight: Tensor, weights: Weights
    ) -> Iterator[tuple[slice, LayerSimulation]]:
        """Yield some tokens after the other, and what the chip did with them; nothing if nothing is added up."""
        num_timesteps, num_tokens, in_features = spikes.shape
        if not num_tokens or not weight.numel():
            return
        placement, network = self.place(in_features, len(weight), weights)
        rows = weight.t().contiguous().numpy()
        portion = max(1, _PORTION // (num_timesteps * in_features))
        for first in range(0, num_tokens, portion):
            part = np.ascontiguousarray(spikes[:, first : first + portion].numpy())
            found = simulate_layer(
                part,
                timestep_weight.numpy(),
                rows,
                self.chip,
                placement,
                network=network,
                overlap=self.overlap,
                jitter=self.jitter,
                seed=self.seed,
                trace=self.trace,
                implementation=self.implementation,
            )
            yield slice(first, first + portion), found
            if self.on_simulation is not None:
                self.on_simulation(found)
