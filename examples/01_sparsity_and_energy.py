"""How sparse are the spikes of a language model, layer by layer, and what would they cost by the paper's estimate?

Prints the sparsest and the densest kind of layer, each over all 30 blocks, for three values of k.
"""

from collections import defaultdict

import torch

import spikebrain as sb
from spikebrain.analysis import spike_statistics
from spikebrain.energy import PaperEnergy, count_operations

TEXT = (
    "Neurons in the brain exchange short pulses, and only when there is something to say. "
    "A silent neuron costs almost nothing, which is why a brain gets by on twenty watts."
)

model, tokenizer, _ = sb.load("smollm2")
ids = torch.tensor([tokenizer.encode(TEXT)])
print(f"{ids.shape[1]} tokens")

for k in (2.0, 3.0, 4.0):
    spiking = sb.to_spiking(model, sb.SpikeSettings(neuron=sb.AdaptiveThreshold(k=k)))
    with torch.inference_mode(), sb.record(spiking) as recording:
        spiking(ids)

    by_kind = defaultdict(list)  # model.layers.12.mlp.down_proj -> down_proj
    for name, layer in recording.layers.items():
        by_kind[name.rpartition(".")[2]].append(layer)
    kinds = sorted((spike_statistics(layers).mean_spikes, kind) for kind, layers in by_kind.items())

    overall = spike_statistics(recording.layers.values())
    paper = PaperEnergy()
    energy = paper.estimate(count_operations(recording))
    print(f"\nk = {k:g}: {overall.mean_spikes:.2f} spikes a channel, {overall.silent_fraction:.0%} of channels silent")
    print(f"  fewest spikes: {kinds[0][1]} {kinds[0][0]:.2f}, most: {kinds[-1][1]} {kinds[-1][0]:.2f}")
    print(f"  additions only: {energy.spike_mac_pj:.3f} pJ a MAC, {energy.ratio_vs_int8:.1f}x less than INT8")
    print(f"  with 32-bit additions: {overall.mean_spikes * paper.table['int32_add']:.3f} pJ")
