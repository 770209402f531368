"""Spikes as address events (AER), in NumPy and pandas: which channels fire most, and when.

An event is a spike: a timestep, a token, a channel, and a value of +1 or -1.
"""

import numpy as np
import torch
from torch import nn

import spikebrain as sb

torch.manual_seed(0)
layer = sb.SpikeLinear.from_linear(nn.Linear(32, 8), encoder="bitwise-bidirectional")
with torch.no_grad(), sb.record(layer, keep_trains=True) as recording:
    layer(torch.randn(5, 32))

train = recording.spikes_of("")
events = sb.AEREvents.from_train(train)
print(events)

table = events.to_pandas()
print("\nthe first events:")
print(table.head(3).to_string(index=False))
print("\nthe busiest channels:")
busiest = table.groupby("channel").size().sort_values(ascending=False, kind="stable").head(3)
print(busiest.to_string())

# The value of each spike is its timestep's weight: adding them up gives the counts back.
weight = train.timestep_weight.numpy()[table["timestep"]]
counts = np.zeros((5, 32), int)
np.add.at(counts, (table["token"], table["channel"]), table["value"] * weight)
print("\ncounts from the events equal the layer's:", np.array_equal(counts, sb.decode(train).numpy()))

# As a structured array, in the layout of Tonic and other event libraries: x, y, t and p.
array = events.to_numpy()
again = sb.AEREvents.from_numpy(array, train.timestep_weight, events.shape)
print(f"{array.dtype.names} and back: {torch.equal(again.to_train().spikes, train.spikes)}")
