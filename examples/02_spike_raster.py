"""One layer's spikes in four codes: printed as text, and all of them side by side in raster.png next to the script.

Pass a folder to write raster.png there instead.
"""

import sys
from pathlib import Path

import torch
from torch import nn

import spikebrain as sb
from spikebrain.analysis import plot_raster, raster

out = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
torch.manual_seed(0)
tokens = torch.randn(6, 40)  # six tokens of 40 channels

layer = sb.SpikeLinear.from_linear(nn.Linear(40, 8))
with torch.no_grad(), sb.record(layer, keep_trains=True, keep_inputs=True) as recording:
    layer(tokens)

# The counts are the same in every code. Below the rate codes stands the membrane potential of one neuron, unrolled.
codes = ("binary", "ternary", "bitwise-bidirectional", "signed-digit")
drawn = raster(recording, encoders=codes, title="Six random tokens in four codes", num_neurons=40)
for panel in drawn.panels:
    num_timesteps, num_spikes = panel.spikes.shape[2], sum(panel.num_spikes)
    rate = panel.firing_rate.sum(0).mean()
    print(f"{panel.code}: {num_timesteps} timesteps are shown, {num_spikes} spikes, {rate:.0%} of all places")
    for neuron in range(4):
        tokens_of = panel.spikes[neuron].tolist()
        print("  ", " | ".join("".join("-·+"[s + 1] for s in token) for token in tokens_of))
print("\n".join(drawn.notes))
plot_raster(drawn, out / "raster.png")
print("raster.png written")
