"""One layer's spikes in three codes: printed as text, the last code also as raster.png next to the script.

Pass a folder to write raster.png there instead.
"""

import sys
from pathlib import Path

import torch
from torch import nn

import spikebrain as sb
from spikebrain.analysis import plot_raster

out = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
torch.manual_seed(0)
tokens = torch.randn(6, 40)  # six tokens of 40 channels

for encoder in (sb.Ternary(), sb.BidirectionalBitwise(), sb.SignedDigit()):
    layer = sb.SpikeLinear.from_linear(nn.Linear(40, 8), encoder=encoder)
    with sb.record(layer, keep_trains=True) as recording:
        layer(tokens)
    train = recording.spikes_of("")

    print(
        f"{encoder}: {train.num_timesteps} timesteps, {train.num_spikes} spikes, {train.firing_rate:.0%} of all places"
    )
    for neuron in range(4):
        spikes = train.spikes[:, :, neuron].t()  # tokens x timesteps
        print("  ", " | ".join("".join("-·+"[s + 1] for s in token) for token in spikes.tolist()))

plot_raster(train, out / "raster.png", title="Six random tokens in the signed-digit code")
print("raster.png written")
