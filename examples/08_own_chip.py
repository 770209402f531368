"""A chip of your own beside async-45nm: the same spikes, packet by packet, on both.

A chip is a TOML file in which each number has a unit, a process and a source: `spikebrain simulate --template` writes
one. In Python it is a dataclass, of which a copy with other values is another chip.
"""

from dataclasses import replace

import torch
from torch import nn

import spikebrain as sb
from spikebrain.chip import load_description

ours = load_description("async-45nm")
core = replace(ours.core, lanes=4 * ours.core.lanes, queue_packets=2)
mine = replace(ours, name="mine: four times the lanes, short queues", core=core)

torch.manual_seed(0)
linear = nn.Linear(1024, 512)
x = torch.randn(4, 1024)

outputs = []
for chip in (ours, mine):
    seen = []
    layer = sb.SpikeLinear.from_linear(linear, backend=sb.Chip(chip, on_simulation=seen.append))
    with torch.no_grad():
        outputs.append(layer(x))
    (found,) = seen
    energy_pj = found.activity.energy_pj(chip)
    largest = max(energy_pj, key=lambda part: energy_pj[part])
    print(chip.name)
    print(f"  a token takes {found.latency_ps.mean() / 1e6:.2f} µs")
    print(f"  and {sum(energy_pj.values()) / 4e6:.3f} µJ, most of it for {largest}")
print("the same sums:", torch.equal(*outputs))
