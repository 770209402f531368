"""A code of your own, outside the package: balanced ternary, in which each spike has a power of three as its weight.

It needs only two methods. The layer, the backends, recordings and plots then work as with any other code.
"""

from dataclasses import dataclass

import torch
from torch import nn

import spikebrain as sb
from spikebrain.coding import ENCODERS


@ENCODERS.register("balanced-ternary")  # only needed to save a model and load it again
@dataclass(frozen=True)
class BalancedTernary(sb.Encoder):
    """Digits -1, 0 and 1 of weight 3^(T-1-t): 5 = 9 - 3 - 1."""

    def encode(self, count, num_timesteps):
        largest = (3**num_timesteps - 1) // 2
        if int(count.abs().max()) > largest:
            raise ValueError(f"expected |count| <= {largest} in {num_timesteps} timesteps")
        digits, rest = [], count.to(torch.int64)
        for _ in range(num_timesteps):
            digit = (rest + 1) % 3 - 1
            digits.append(digit)
            rest = (rest - digit) // 3
        spikes = torch.stack(digits[::-1]).to(torch.int8)
        return sb.SpikeTrain(spikes, 3 ** torch.arange(num_timesteps - 1, -1, -1))

    def timesteps_for(self, max_count):
        num_timesteps = 1
        while (3**num_timesteps - 1) // 2 < max_count:
            num_timesteps += 1
        return num_timesteps


train = BalancedTernary().encode(torch.tensor([5, -1, 0]), num_timesteps=3)
print("5, -1, 0 as spikes:", train.spikes.t().tolist(), "weighing", train.timestep_weight.tolist())
assert sb.decode(train).tolist() == [5, -1, 0]

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(256, 512), nn.GELU(), nn.Linear(512, 256))
x = torch.randn(64, 256)
outputs = {}
for encoder in (sb.BidirectionalBitwise(), BalancedTernary()):
    spiking = sb.to_spiking(model, sb.SpikeSettings(encoder=encoder))
    with torch.no_grad(), sb.record(spiking) as recording:
        outputs[encoder] = spiking(x)
    num_spikes = sum(layer.num_spikes for layer in recording.layers.values())
    num_timesteps = max(layer.num_timesteps for layer in recording.layers.values())
    print(f"{encoder}: {num_timesteps} timesteps, {num_spikes / (64 * 768):.2f} spikes a channel")

same = torch.equal(*outputs.values())
print("same output, bit for bit:", same)
