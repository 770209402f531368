"""A neuron of your own: it fires where the adaptive-threshold neuron would, but ignores what is small beside the rest.

A neuron has two methods: `initial_state`, and `step`, which returns counts and the threshold that a spike stands for.
The package has this one with compiled kernels: `DeadZoneThreshold`.
"""

from dataclasses import dataclass

import torch
from torch import nn

import spikebrain as sb
from spikebrain.errors import ActivationError
from spikebrain.testing import check_neuron


@dataclass(frozen=True)
class DeadZone(sb.Neuron[None]):
    """|x| below `share` of the token's mean is silent; else count = round(x / threshold), threshold = mean|x| / k."""

    k: float = 3.0
    share: float = 0.5

    def initial_state(self, x):
        return None

    def step(self, x, state=None):
        if not x.isfinite().all():
            raise ActivationError("DeadZone: expected finite activations.")
        mean = x.abs().mean(-1, keepdim=True).clamp(min=1e-5)
        heard = torch.where(x.abs() < self.share * mean, torch.zeros_like(x), x)
        threshold = mean / self.k
        return sb.SpikeCount((heard / threshold).round().to(torch.int32), threshold), None


check_neuron(DeadZone())  # silence in, silence out, and all else that every neuron must keep
print("DeadZone keeps the laws of a neuron")

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(256, 256), nn.GELU(), nn.Linear(256, 64))
x = torch.randn(200, 256)
expected = model(x).detach()
for neuron in (sb.AdaptiveThreshold(k=3.0), DeadZone(share=0.25), DeadZone(share=0.5)):
    spiking = sb.to_spiking(model, sb.SpikeSettings(neuron=neuron))
    with torch.no_grad(), sb.record(spiking) as recording:
        error = (spiking(x) - expected).norm() / expected.norm()
    found = sb.spike_statistics(recording.layers.values())
    print(f"{neuron}: {found.silent_fraction:.0%} silent, {found.mean_spikes:.2f} spikes a channel, error {error:.1%}")
