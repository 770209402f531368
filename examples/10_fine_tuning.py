"""Fine-tuning through spikes: a network learns to live with the rounding of its own spikes.

Inside `spike_aware` the float model computes what its spiking layers will compute, and gradients pass straight through
the roundings. Here with few spikes (k = 0.7), where rounding hurts.
"""

import torch
from torch import nn

import spikebrain as sb

torch.manual_seed(0)
teacher = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 4))  # what is to be learned
model = nn.Sequential(nn.Linear(16, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 4))
settings = sb.SpikeSettings(neuron=sb.AdaptiveThreshold(k=0.7))
test = torch.randn(1000, 16)


def train(num_steps):
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(num_steps):
        x = torch.randn(256, 16)
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), teacher(x).detach()).backward()
        optimizer.step()


@torch.no_grad()
def error(model):
    expected = teacher(test)
    return float((model(test) - expected).pow(2).mean() / expected.pow(2).mean())


train(600)
before = error(sb.to_spiking(model, settings))
print(f"in floats: the error is {error(model):.1%} of the signal")
print(f"on spikes: {before:.0%}")

with sb.spike_aware(model, settings):
    train(300)
after = error(sb.to_spiking(model, settings))
print(f"on spikes, after fine-tuning through them: {after:.0%}")
assert after < before
