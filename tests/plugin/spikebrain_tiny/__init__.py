"""One plug-in of each kind, as small as they can be."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from spikebrain.backends import Backend
from spikebrain.chip import Mapping, load_description
from spikebrain.coding import Encoder, SpikeTrain, Ternary
from spikebrain.neuro import Neuron, SpikeCount
from spikebrain.neuro.base import checked_activations, raise_if_not_finite


@dataclass(frozen=True)
class NegatedTernary(Encoder):
    """The ternary code with spikes of the other sign, each worth -1."""

    def encode(self, count, num_timesteps):
        train = Ternary().encode(count, num_timesteps)
        return SpikeTrain(-train.spikes, -train.timestep_weight)

    def timesteps_for(self, max_count):
        return max(1, max_count)


@dataclass(frozen=True)
class LargestOverSteps(Neuron[None]):
    """The largest |x| of a token is `steps` spikes."""

    steps: int = 7

    def initial_state(self, x):
        return None

    def step(self, x, state=None):
        wide = checked_activations(x, "LargestOverSteps")
        raise_if_not_finite(x, "LargestOverSteps")
        threshold = (wide.abs().amax(-1, keepdim=True) / self.steps).clamp_min(1e-5)
        return SpikeCount((wide / threshold).round().to(torch.int32), threshold), None


@dataclass(frozen=True)
class Einsum(Backend):
    """All timesteps in one sum of 64-bit integers."""

    def _accumulate(self, spikes, timestep_weight, weight):
        return torch.einsum("t,tki,oi->ko", timestep_weight, spikes.long(), weight.long())


@dataclass(frozen=True)
class SmallBlocks(Mapping):
    """Blocks of as few outputs as the chip has cores for, with all inputs if they fit."""

    def cut(self, in_features, out_features, chip):
        num_in = -(-in_features // max(1, chip.core.sram_bytes // 40))
        rows = -(-in_features // num_in)
        columns = max(1, chip.core.sram_bytes // (rows + 40))
        return num_in, -(-out_features // columns)

    def home(self, placement):
        return placement.columns - 1, 0


TABLE = Path(__file__).parent / "tiny_table.toml"
CHIP = replace(load_description("async-45nm"), name="tiny-chip")
