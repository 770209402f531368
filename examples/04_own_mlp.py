"""A network of your own on spikes: train it, put it on spikes, and compare accuracy, spikes and energy.

The task: a point in the plane lies on one of two spirals. Any module with `nn.Linear` layers goes the same way.
"""

import torch
from torch import nn

import spikebrain as sb

torch.manual_seed(0)


def spirals(num_points):
    """Return points on two spirals, with a little noise, and which spiral each is on."""
    which = torch.arange(num_points) % 2
    angle = 0.5 + 9 * torch.rand(num_points).sqrt()
    turned = angle + torch.pi * which
    points = torch.stack([turned.cos(), turned.sin()], 1) * angle[:, None] / 10
    return points + 0.01 * torch.randn(num_points, 2), which


model = nn.Sequential(nn.Linear(2, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 2))
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
points, which = spirals(2000)
for _ in range(400):
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(points), which).backward()
    optimizer.step()

points, which = spirals(1000)  # that it has not seen


@torch.no_grad()
def accuracy(model):
    return float((model(points).argmax(1) == which).float().mean())


print(f"float: {accuracy(model):.0%} of 1,000 points are right")
for k in (1.0, 3.0, 8.0):
    spiking = sb.to_spiking(model, sb.SpikeSettings(neuron=sb.AdaptiveThreshold(k=k)))
    with sb.record(spiking) as recording:
        right = accuracy(spiking)
    spikes = sb.spike_statistics(recording.layers.values()).mean_spikes
    energy = sb.PaperEnergy().estimate(sb.count_operations(recording))
    print(
        f"k = {k:g}: {right:.0%} right, {spikes:.1f} spikes a channel, {energy.ratio_vs_int8:.1f}x less than INT8 MACs"
    )

print("The last line counts additions only; spikebrain energy prices reading the weights, too.")
