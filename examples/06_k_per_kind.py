"""k per kind of layer: which layers can do with fewer spikes?

k is the mean |x| of a token divided by its threshold: with a larger k a layer spikes more and rounds less.
"""

import torch

import spikebrain as sb

TEXT = (
    "Neurons in the brain exchange short pulses, and only when there is something to say. "
    "A silent neuron costs almost nothing, which is why a brain gets by on twenty watts."
)

model, tokenizer, _ = sb.load("smollm2")
ids = torch.tensor([tokenizer.encode(TEXT)])


def predictions(model):
    with torch.inference_mode():
        return model(ids).logits[0].float().log_softmax(-1)


expected = predictions(model)
# A pattern of layer names, and its k; the first pattern that matches counts.
choices = {
    "k = 3": {"*": 3.0},
    "less for q and k": {"*q_proj": 1.5, "*k_proj": 1.5, "*": 3.0},
    "less for down_proj": {"*down_proj": 1.5, "*": 3.0},
}
for name, ks in choices.items():
    neurons = {pattern: sb.AdaptiveThreshold(k=k) for pattern, k in ks.items()}
    spiking = sb.to_spiking(model, sb.SpikeSettings(neuron=neurons))
    with sb.record(spiking) as recording:
        found = predictions(spiking)
    # How far the next token's distribution is from the float model's, in bits a token.
    bits = torch.nn.functional.kl_div(found, expected, log_target=True, reduction="batchmean") / 0.6931
    spikes = sb.spike_statistics(recording.layers.values()).mean_spikes
    print(f"{name}: {bits:.2f} bits a token from the float model, {spikes:.2f} spikes a channel and token")
print("On the command line: spikebrain report --k '*q_proj=1.5' --k 3")
